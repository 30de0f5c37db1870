"""The tiny pipelines are pipelines, and what diffusers does with them that loraforge counts on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from helpers.oracle import FILE_CASES, SAT_CASES, Case
from helpers.pipelines import DATA, KINDS, TEXT_LENGTH, arguments, complaints, latents, load, pipeline_folder
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import T5EncoderModel, T5Tokenizer

import loraforge

Folders = Callable[..., Path]
WEIGHTS = "pytorch_lora_weights.safetensors"
RECORDED = {"2b": "sat_2b_r4", "5b": "sat_5b_r8", "5b_i2v": "sat_5b_i2v_r8", "1.5_t2v": "sat_1.5_t2v_r4"}
"""Kind -> a case that recorded its base's forward with the LoRA off."""
PEFT_CASES = ("peft_plain", "peft_rslora", "peft_patterns", "peft_dora", "peft_modules_to_save")
VIDEO = "CogVideoXVideoToVideoPipeline"


def kind_of(case: Case) -> str:
    return str(case.manifest["base"]).removeprefix("bases/")


def forward(pipe: Any, kind: str) -> torch.Tensor:
    """The recorded inputs, with the pipeline's own rotary tables."""
    x, context, timesteps = (
        load_file(DATA / "bases" / kind / "inputs.safetensors")[name] for name in ("x", "context", "timesteps")
    )
    tables = None
    if pipe.transformer.config.use_rotary_positional_embeddings:
        tables = pipe._prepare_rotary_positional_embeddings(8 * x.shape[3], 8 * x.shape[4], x.shape[1], "cpu")
    with torch.no_grad():
        result: torch.Tensor = pipe.transformer(x, context, timesteps, image_rotary_emb=tables, return_dict=False)[0]
    return result


def forward_off_by(pipe: Any, case: Case, name: str) -> float:
    if case.name in SAT_CASES:
        pipe.transformer.norm_out.norm.eps = 1e-6  # SAT's final norm; diffusers uses 1e-5
    return float((forward(pipe, kind_of(case)) - load_file(case.folder / "forward.safetensors")[name]).abs().max())


def scalings(pipe: Any) -> list[float]:
    return [scale for m in pipe.transformer.modules() if hasattr(m, "lora_A") for scale in m.scaling.values()]


def tree(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind", KINDS)
def test_it_loads_strictly(kind: str, pipelines: Folders) -> None:
    folder = pipelines(kind)
    with complaints() as heard:
        pipe = load(folder)
        for name, model in (
            ("transformer", diffusers.CogVideoXTransformer3DModel),
            ("vae", diffusers.AutoencoderKLCogVideoX),
            ("text_encoder", T5EncoderModel),
        ):
            _, info = model.from_pretrained(folder, subfolder=name, output_loading_info=True)
            assert not any(info.values()), (name, info)
    assert heard == []
    assert type(pipe).__name__ == KINDS[kind].pipeline
    assert type(pipe.tokenizer) is T5Tokenizer
    assert (pipe.vae_scale_factor_spatial, pipe.vae_scale_factor_temporal) == (8, 4)
    assert json.loads((folder / "scheduler/scheduler_config.json").read_text())["prediction_type"] == "v_prediction"


def test_a_missing_weight_is_heard(pipelines: Folders, tmp_path: Path) -> None:
    """Or the silence above would prove nothing."""
    for part, file in (("text_encoder", "model"), ("vae", "diffusion_pytorch_model")):
        shutil.copytree(pipelines("2b"), tmp_path / part)
        weights = load_file(tmp_path / part / part / f"{file}.safetensors")
        weights.pop(next(key for key in weights if "norm" in key))
        save_file(weights, tmp_path / part / part / f"{file}.safetensors", {"format": "pt"})
        with complaints() as heard:
            load(tmp_path / part)
        assert any("newly initialized" in line or "MISSING" in line for line in heard), (part, heard)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_writes_the_same_bytes(kind: str, pipelines: Folders, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    assert tree(pipeline_folder(kind, tmp_path / "again")) == tree(pipelines(kind))
    assert tree(pipeline_folder(kind, tmp_path / "other", seed=1)) != tree(pipelines(kind))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("kind", RECORDED)
def test_the_transformer_is_the_recorded_one(kind: str, pipelines: Folders) -> None:
    case = Case(RECORDED[kind])
    assert forward_off_by(load(pipelines(kind)), case, "lora_off") <= case.manifest["tolerance"]["forward"]


@pytest.mark.parametrize("prompt", ["", "a cat", "  zwei   Hüte\n一只猫 🐱", "</s> <pad> <extra_id_0>", "long " * 400])
def test_the_tokenizer_takes_any_prompt(prompt: str, pipelines: Folders) -> None:
    pipe = load(pipelines("5b"))
    embeds = pipe.encode_prompt(prompt, max_sequence_length=TEXT_LENGTH)
    assert all(x.shape == (1, TEXT_LENGTH, 32) and x.isfinite().all() for x in embeds)


@pytest.mark.parametrize(("asked", "inner", "inner_15", "given"), [(9, 3, 4, 9), (17, 5, 6, 17), (13, 4, 4, 16)])
@pytest.mark.parametrize("kind", KINDS)
def test_frames(kind: str, asked: int, inner: int, inner_15: int, given: int, pipelines: Folders) -> None:
    """8 N + 1 frames come out as asked. Of an even number of latent frames the VAE makes 4 each, the first included.

    1.5 pads the latent frames to an even number; they stay padded with output_type "latent" and are cut before the VAE.
    """
    pipe = load(pipelines(kind))
    size = pipe.transformer.config.sample_height
    shape = (1, inner_15 if pipe.transformer.config.patch_size_t else inner, 16, size, size)
    assert latents(pipe, num_frames=asked).shape == shape
    frames = pipe(**arguments(pipe, frames=asked)).frames
    assert frames.shape == (1, given, 8 * size, 8 * size, 3)
    assert frames.std() > 0.05


@pytest.mark.parametrize(("kind", "asked", "given"), [("2b", 9, 9), ("5b", 17, 17), ("1.5_t2v", 13, 16)])
def test_video_to_video(kind: str, asked: int, given: int, pipelines: Folders) -> None:
    pipe = load(pipelines(kind), VIDEO)
    size = 8 * pipe.transformer.config.sample_height
    assert pipe(**arguments(pipe, frames=asked)).frames.shape == (1, given, size, size, 3)
    assert torch.equal(latents(pipe), latents(pipe))
    if pipe.transformer.config.patch_size_t:  # 16 N + 1 frames, as text to video takes them, are an odd number inside
        with pytest.raises(ValueError, match="not divisible"):
            pipe(**arguments(pipe, frames=17))


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_call_gives_the_same_bits(kind: str, pipelines: Folders) -> None:
    first = latents(load(pipelines(kind)))
    pipe = load(pipelines(kind))
    assert torch.equal(latents(pipe), first)
    assert torch.equal(latents(pipe), first)
    for other in ({"prompt": "a dog"}, {"generator": torch.Generator().manual_seed(1)}):
        assert (latents(pipe, **other) - first).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_without_a_text_length(kind: str, pipelines: Folders) -> None:
    """It means 226 tokens: positions stored for 8 do not fit, and text_length=226 makes a pipeline that does."""

    def call(folder: Path) -> Any:
        pipe = load(folder)
        return pipe(**{name: value for name, value in arguments(pipe).items() if name != "max_sequence_length"})

    if kind in ("2b", "5b_i2v"):
        with pytest.raises(RuntimeError, match="must match the size"):
            call(pipelines(kind))
    else:
        call(pipelines(kind))
    assert call(pipelines(kind, text_length=TEXT_LENGTH)).frames.shape[1] == 9


@pytest.mark.parametrize("kind", KINDS)
def test_given_latents(kind: str, pipelines: Folders) -> None:
    """They replace the noise, 1.5's with its padding. What else draws numbers still needs a generator.

    An image is encoded by a draw from the VAE's posterior, before the noise; the DPM scheduler draws at every step.
    """
    pipe = load(pipelines(kind))
    drawn = latents(pipe)
    noise = torch.randn(drawn.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(latents(pipe, latents=noise), latents(pipe, latents=noise))
    if "i2v" in kind:
        assert not torch.equal(latents(pipe, latents=noise, generator=None), latents(pipe, latents=noise))
    else:
        assert torch.equal(latents(pipe, latents=noise), drawn)
        assert torch.equal(latents(pipe, latents=noise, generator=None), drawn)
    if pipe.transformer.config.patch_size_t:
        with pytest.raises(RuntimeError):
            latents(pipe, latents=noise[:, :3])
    pipe.scheduler = diffusers.CogVideoXDPMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    assert torch.equal(latents(pipe, latents=noise), latents(pipe, latents=noise))
    assert not torch.equal(latents(pipe, latents=noise, generator=None), latents(pipe, latents=noise, generator=None))


@pytest.mark.parametrize("kind", KINDS)
def test_the_released_settings_run(kind: str, pipelines: Folders) -> None:
    pipe = load(pipelines(kind))
    shift = pipe.scheduler.config.snr_shift_scale
    ddim = latents(pipe, num_inference_steps=4)
    pipe.scheduler = diffusers.CogVideoXDPMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    dpm = latents(pipe, num_inference_steps=4)
    assert pipe.scheduler.config.snr_shift_scale == shift
    assert pipe.scheduler.timesteps.tolist() == [999, 749, 499, 249]
    dynamic = latents(pipe, num_inference_steps=4, use_dynamic_cfg=True)
    assert ddim.isfinite().all()
    assert dpm.isfinite().all()
    assert dynamic.isfinite().all()
    assert not torch.equal(ddim, dpm)
    assert not torch.equal(dpm, dynamic)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_runs_on_a_cpu(kind: str, dtype: torch.dtype, pipelines: Folders) -> None:
    pipe = load(pipelines(kind), dtype=dtype)
    got, want = latents(pipe), latents(load(pipelines(kind)))
    assert got.dtype == dtype
    assert 0 < (got.float() - want).abs().max() < 0.5
    noise = torch.randn(got.shape)
    if "i2v" not in kind:
        with pytest.raises(RuntimeError, match="same dtype"):
            latents(pipe, latents=noise)  # they are not cast


def test_a_float16_folder_needs_a_dtype(pipelines: Folders) -> None:
    """Else diffusers widens its own models to float32 and transformers 5 leaves the text encoder in float16."""
    folder = pipelines("2b", dtype=torch.float16)
    assert {t.dtype for t in load_file(folder / "vae/diffusion_pytorch_model.safetensors").values()} == {torch.float16}
    assert latents(load(folder, dtype=torch.float16)).dtype == torch.float16
    pipe = load(folder)
    assert pipe.transformer.dtype == torch.float32
    assert torch.float16 in {x.dtype for x in pipe.text_encoder.parameters()}
    with pytest.raises(RuntimeError, match="same dtype"):
        latents(pipe)


@pytest.mark.parametrize("name", [*SAT_CASES, *FILE_CASES])
def test_a_converted_adapter_in_its_pipeline(name: str, pipelines: Folders, tmp_path: Path) -> None:
    """Every module, at 1.0, without a word; the recorded forward with it, and the base's bits once it is unloaded."""
    case = Case(name)
    loraforge.convert(case.source, to="diffusers", out=tmp_path / "out", **case.said)
    pipe = load(pipelines(kind_of(case)))
    before = latents(pipe)
    with complaints() as heard:
        pipe.load_lora_weights(str(tmp_path / "out"), weight_name=WEIGHTS)
    assert heard == []
    assert scalings(pipe) == [1.0] * len(case.deltas)
    assert (latents(pipe) - before).abs().max() > 0.05
    pipe.unload_lora_weights()
    assert torch.equal(latents(pipe), before)
    pipe.load_lora_weights(str(tmp_path / "out"), weight_name=WEIGHTS)
    assert forward_off_by(pipe, case, "lora_on") <= case.manifest["tolerance"]["forward"]


@pytest.mark.parametrize("name", PEFT_CASES)
def test_a_peft_folder_in_a_live_pipeline(name: str, pipelines: Folders) -> None:
    """One line does it, and its result may be dropped: PEFT works on the transformer in place, at the adapter's scale.

    diffusers' own loaders pass a PEFT folder by, or drop its alpha.
    """
    case = Case(name)
    pipe = load(pipelines("2b"))
    before = latents(pipe)
    PeftModel.from_pretrained(pipe.transformer, str(case.folder))
    assert type(pipe.transformer) is diffusers.CogVideoXTransformer3DModel
    assert forward_off_by(pipe, case, "lora_on") <= case.manifest["tolerance"]["forward"]
    assert (latents(pipe) - before).abs().max() > 0.05
    pipe.set_adapters(["default"], [0.5])  # diffusers knows it by PEFT's name, and the factor is on top of alpha / r
    halved = scalings(pipe)
    pipe.set_adapters(["default"], [1.0])
    assert [2 * scale for scale in halved] == scalings(pipe)
    if name == "peft_modules_to_save":
        return  # the weight it replaced stays replaced
    pipe.unload_lora_weights()
    assert torch.equal(latents(pipe), before)


def test_diffusers_own_loaders_do_not_read_a_peft_folder(pipelines: Folders) -> None:
    case = Case("peft_plain")
    pipe = load(pipelines("2b"))
    with complaints() as heard:
        pipe.load_lora_weights(str(case.folder), weight_name="adapter_model.safetensors")
    assert any("No LoRA keys" in line for line in heard)
    assert scalings(pipe) == []
    pipe.transformer.load_lora_adapter(
        str(case.folder), weight_name="adapter_model.safetensors", prefix="base_model.model"
    )
    assert (case.scale, set(scalings(pipe))) == (0.5, {1.0})


@pytest.mark.skipif(torch.accelerator.is_available(), reason="tells what happens without an accelerator")
def test_offloading_without_an_accelerator(pipelines: Folders, tmp_path: Path) -> None:
    for name in ("enable_model_cpu_offload", "enable_sequential_cpu_offload"):
        with pytest.raises(RuntimeError, match=f"`{name}` requires accelerator"):
            getattr(load(pipelines("2b")), name)()
    want = latents(load(pipelines("2b")))
    pipe = load(pipelines("2b"))
    pipe.enable_model_cpu_offload(device="cpu")
    assert torch.equal(latents(pipe), want)
    pipe = load(pipelines("2b"))
    pipe.transformer.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    assert torch.equal(latents(pipe), want)
