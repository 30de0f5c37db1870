"""The Python code in a model card: complete, at strength 1.0, with the settings that the base model needs.

The classes come from the architecture's TOML, the settings from variants.toml; a model without settings there runs
with those of Diffusers. Source: PEFT's `PeftModel.from_pretrained`, which changes the transformer it is called with.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from loraforge.facts.variants import VariantSettings, known_settings, table
from loraforge.names.layout import Architecture, Variant

EXAMPLE = "A panda plays the guitar by a stream in a bamboo forest, soft light, calm water"
_DEFAULT_SIZE = (480, 720)
"""Height and width that the pipeline takes by default, for all released models but 1.5."""


def snippet(
    repo: str, base: str | None, form: str, weights: str, arch: Architecture, variant: Variant | None, prompt: str
) -> str | None:
    """Markdown: how to install and run what is in `repo`; None if no known Python library runs it as it is."""
    if variant is None or not variant.pipeline or form not in ("diffusers", "peft", "pipeline", "transformer"):
        return None
    if base is None and form != "pipeline":
        return None
    wants = known_settings(variant.name)
    model = _Model(variant.pipeline, arch.transformer_of(variant), arch.pipelines[variant.pipeline], wants)
    packages = "torch diffusers transformers accelerate sentencepiece imageio imageio-ffmpeg"
    packages += " peft" if form in ("diffusers", "peft") else ""
    code = [*_imports(form, model), "", *_model(repo, str(base), form, weights, model), "", *_run(model, prompt)]
    text = ["```sh", f"pip install {packages}", "```\n", "```python", *code, "```\n"]
    if wants:
        frames = wants.frames_rule.replace(", ", " frames, ")
        text.append(f"{variant.name} makes {frames}, shown at {wants.fps} a second.\n")
    text.append(
        "Where the GPU is too small, put `pipe.enable_model_cpu_offload()` in the place of `pipe.to(device)`, "
        "and `pipe.vae.enable_tiling()` after it."
    )
    return "\n".join(text)


@dataclass(frozen=True, slots=True)
class _Model:
    """What is known of the base model."""

    pipeline: str
    transformer: str
    task: str
    wants: VariantSettings | None

    @property
    def given(self) -> tuple[str, str] | None:
        """The function that loads the picture or video, and the argument; None if the pipeline takes only text."""
        return _GIVEN.get(self.task.partition("-")[0])

    @property
    def dtype(self) -> str:
        return f"torch_dtype=torch.{self.wants.torch_dtype if self.wants else 'bfloat16'}"


_GIVEN = {
    "image": ("load_image", 'image=load_image("first_frame.png")'),
    "video": ("load_video", 'video=load_video("input.mp4")'),
}
"""First word of a task -> the function that loads its input, and the argument."""


def _imports(form: str, model: _Model) -> Iterator[str]:
    names = [model.pipeline, *([model.wants.scheduler] if model.wants else [])]
    names += [model.transformer] if form == "transformer" else []
    helpers = ["export_to_video"] if model.task.endswith("video") else []
    helpers += [model.given[0]] if model.given else []
    yield "import torch"
    yield f"from diffusers import {', '.join(sorted(names))}"
    if helpers:
        yield f"from diffusers.utils import {', '.join(helpers)}"
    if form == "peft":
        yield "from peft import PeftModel"


def _model(repo: str, base: str, form: str, weights: str, model: _Model) -> Iterator[str]:
    yield 'device = "cuda" if torch.cuda.is_available() else "cpu"'
    if form == "transformer":
        yield f'transformer = {model.transformer}.from_pretrained("{repo}", {model.dtype})'
        yield f'pipe = {model.pipeline}.from_pretrained("{base}", transformer=transformer, {model.dtype})'
    else:
        yield f'pipe = {model.pipeline}.from_pretrained("{repo if form == "pipeline" else base}", {model.dtype})'
    if wants := model.wants:
        spacing = f'timestep_spacing="{wants.timestep_spacing}"'
        yield f"pipe.scheduler = {wants.scheduler}.from_config(pipe.scheduler.config, {spacing})"
    if form == "diffusers":
        yield f'pipe.load_lora_weights("{repo}", weight_name="{weights}")'
    elif form == "peft":
        yield f'PeftModel.from_pretrained(pipe.transformer, "{repo}")  # puts the adapter into pipe.transformer'
    yield "pipe.to(device)"


def _run(model: _Model, prompt: str) -> Iterator[str]:
    video = model.task.endswith("video")
    yield f"{'video' if video else 'image'} = pipe("
    if model.given:
        yield f"    {model.given[1]},"
    yield f"    prompt={_literal(prompt)},"
    if model.wants:
        yield from _settings(model.wants)
    yield "    generator=torch.Generator().manual_seed(42),"
    if video:
        yield ").frames[0]"
        yield f'export_to_video(video, "video.mp4"{f", fps={model.wants.fps}" if model.wants else ""})'
    else:
        yield ").images[0]"
        yield 'image.save("image.png")'


def _settings(wants: VariantSettings) -> Iterator[str]:
    if (wants.height, wants.width) != _DEFAULT_SIZE:
        yield f"    height={wants.height},\n    width={wants.width},"
    yield f"    num_frames={wants.num_frames},"
    if wants.max_sequence_length != table()["defaults"]["max_sequence_length"]:
        yield f"    max_sequence_length={wants.max_sequence_length},"
    yield f"    num_inference_steps={wants.num_inference_steps},"
    yield f"    guidance_scale={wants.guidance_scale},"
    yield f"    use_dynamic_cfg={wants.use_dynamic_cfg},"


def _literal(text: str) -> str:
    """The text as a Python literal without `<!--`, which would end our section of the card."""
    return repr(text).replace("<!--", "\\x3c!--")
