"""The lines of Python in a model card: complete, at strength 1.0, with what the base model calls for.

Sources: variants.toml; diffusers CogVideoXPipeline and CogVideoXImageToVideoPipeline, their `__call__`; PEFT's
`PeftModel.from_pretrained`, which puts the adapter into the transformer it is given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from loraforge.facts.variants import VariantSettings, table

EXAMPLE = "A panda plays the guitar by a stream in a bamboo forest, soft light, calm water"
_DEFAULT_SIZE = (480, 720)
"""What the released configurations make the pipeline's default, but for those of 1.5, which say another."""


@dataclass(frozen=True, slots=True)
class Snippet:
    """What a reader copies."""

    install: str
    code: str
    remarks: tuple[str, ...]


def snippet(
    repo: str, base: str | None, form: str, weights: str, wants: VariantSettings | None, prompt: str
) -> Snippet | None:
    """The lines that run what is in `repo`; None where nothing known in Python runs it as it is."""
    if wants is None or form not in ("diffusers", "peft", "pipeline", "transformer"):
        return None
    if base is None and form != "pipeline":
        return None
    packages = "diffusers transformers accelerate sentencepiece imageio imageio-ffmpeg"
    packages += " peft" if form in ("diffusers", "peft") else ""
    lines = [*_imports(form, wants), "", *_model(repo, str(base), form, weights, wants), "", *_run(wants, prompt)]
    remarks = (
        f"{wants.variant} makes {wants.frames_rule.replace(', ', ' frames, ')}, shown at {wants.fps} a second.",
        "Where the GPU is too small, put `pipe.enable_model_cpu_offload()` in the place of `pipe.to(device)`, "
        "and `pipe.vae.enable_tiling()` after it.",
    )
    return Snippet(f"pip install torch {packages}", "\n".join(lines), remarks)


def _imports(form: str, wants: VariantSettings) -> Iterator[str]:
    names = [wants.pipeline, wants.scheduler, *(["CogVideoXTransformer3DModel"] if form == "transformer" else [])]
    image = wants.pipeline == "CogVideoXImageToVideoPipeline"
    yield "import torch"
    yield f"from diffusers import {', '.join(sorted(names))}"
    yield f"from diffusers.utils import export_to_video{', load_image' if image else ''}"
    if form == "peft":
        yield "from peft import PeftModel"


def _model(repo: str, base: str, form: str, weights: str, wants: VariantSettings) -> Iterator[str]:
    dtype = f"torch_dtype=torch.{wants.torch_dtype}"
    yield 'device = "cuda" if torch.cuda.is_available() else "cpu"'
    if form == "transformer":
        yield f'transformer = CogVideoXTransformer3DModel.from_pretrained("{repo}", {dtype})'
        yield f'pipe = {wants.pipeline}.from_pretrained("{base}", transformer=transformer, {dtype})'
    else:
        yield f'pipe = {wants.pipeline}.from_pretrained("{repo if form == "pipeline" else base}", {dtype})'
    spacing = f'timestep_spacing="{wants.timestep_spacing}"'
    yield f"pipe.scheduler = {wants.scheduler}.from_config(pipe.scheduler.config, {spacing})"
    if form == "diffusers":
        yield f'pipe.load_lora_weights("{repo}", weight_name="{weights}")'
    elif form == "peft":
        yield f'PeftModel.from_pretrained(pipe.transformer, "{repo}")  # puts the adapter into pipe.transformer'
    yield "pipe.to(device)"


def _run(wants: VariantSettings, prompt: str) -> Iterator[str]:
    yield "video = pipe("
    if wants.pipeline == "CogVideoXImageToVideoPipeline":
        yield '    image=load_image("first_frame.png"),'
    yield f"    prompt={_literal(prompt)},"
    if (wants.height, wants.width) != _DEFAULT_SIZE:
        yield f"    height={wants.height},\n    width={wants.width},"
    yield f"    num_frames={wants.num_frames},"
    if wants.max_sequence_length != table()["defaults"]["max_sequence_length"]:
        yield f"    max_sequence_length={wants.max_sequence_length},"
    yield f"    num_inference_steps={wants.num_inference_steps},"
    yield f"    guidance_scale={wants.guidance_scale},"
    yield f"    use_dynamic_cfg={wants.use_dynamic_cfg},"
    yield "    generator=torch.Generator().manual_seed(42),"
    yield ").frames[0]"
    yield f'export_to_video(video, "video.mp4", fps={wants.fps})'


def _literal(text: str) -> str:
    """The text in Python, without what would be a comment in Markdown, as the marks of our section are."""
    return repr(text).replace("<!--", "\\x3c!--")
