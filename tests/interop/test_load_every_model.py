"""load_into in a pipeline of every architecture: each layer adds the adapter's update, and unloading restores."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from helpers import encoders
from helpers.tiny import TABLE, Tiny, tiny_models
from helpers.tolerance import UPDATE, share
from helpers.trained import RANK, SCALE, trained
from safetensors.torch import load_file, save_file

import loraforge
from loraforge.errors import LoraforgeError
from loraforge.format.registry import formats
from loraforge.live.acting import FUSED
from loraforge.live.target import of_its_model
from loraforge.names.catalog import architecture

BARE = {"cosmos2", "glm_image", "hunyuanvideo15", "qwen21"}
"""Those whose pipelines take no adapters, or cannot be made of a transformer alone: it is given without one."""
PLAIN = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "linear_1", "linear_2", "linear", "net.2"]
"""All but a convolution of 1 x 1 x 1, whose update PEFT 0.21 computes in a wrong shape (get_delta_weight)."""
FLAVOURS = [("diffusers", tiny) for tiny in tiny_models()]
FLAVOURS += [(("comfyui", "kohya")[tiny.number], tiny) for tiny in tiny_models() if tiny.number < 2]


def pipeline(tiny: Tiny, transformer: Any, **more: Any) -> Any:
    """The architecture's pipeline with nothing but the model, a scheduler and what else is given."""
    kind = getattr(diffusers, tiny.variant.pipeline or next(iter(tiny.whole.pipelines)))
    parts = dict.fromkeys(inspect.signature(kind.__init__).parameters.keys() - {"self"})
    options = {name: p.default for name, p in inspect.signature(kind.__init__).parameters.items() if name in parts}
    given = {name: value for name, value in options.items() if value not in (inspect.Parameter.empty, None)}
    flow = tiny.whole.component == "transformer"
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler() if flow else diffusers.DDIMScheduler(steps_offset=1)
    return kind(**{**parts, **given, tiny.whole.component: transformer, "scheduler": scheduler, **more})


@pytest.mark.parametrize(("flavour", "tiny"), FLAVOURS, ids=str)
def test_every_layer_adds_the_update(flavour: str, tiny: Tiny, tmp_path: Path) -> None:
    if tiny.name not in formats()[flavour].layouts:
        pytest.skip(f"{flavour} has no names for it")
    file, named = tmp_path / "style.safetensors", {"trained_scale": SCALE, "architecture": tiny.name}
    in_blocks = tiny.name == "ideogram4" and flavour != "diffusers"  # of the rest only Diffusers' names are known
    words = ["to_q", "to_k", "to_v", "to_out.0", "w1"] if in_blocks else [] if tiny.name != "hunyuanvideo15" else PLAIN
    updates = trained(tiny, file, *words)
    if flavour != "diffusers":
        loraforge.convert(file, to=flavour, out=tmp_path / "other.safetensors", **named)
        file, named = tmp_path / "other.safetensors", {"architecture": tiny.name}
    model = tiny.model()
    pipe = model if tiny.name in BARE else pipeline(tiny, model)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    loaded = loraforge.load_into(pipe, file, name="style", **named)
    assert loaded.modules == len(updates) > 0
    for path, update in updates.items():
        layer = model.get_submodule(path)
        assert layer.active_adapters == ["style"]
        assert share(layer.get_delta_weight("style").double().numpy(), update) <= UPDATE, path
    (model.unload_lora if pipe is model else pipe.unload_lora_weights)()
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[key], tensor) for key, tensor in before.items())


def _wide(part: str, sizes: dict[str, Any]) -> dict[str, Any]:
    return {"text_encoder": encoders.t5(sizes[part]), "tokenizer": encoders.t5_words()}


def _of_flux(sizes: dict[str, Any]) -> dict[str, Any]:
    second = {f"{name}_2": part for name, part in _wide("joint_attention_dim", sizes).items()}
    first = {"text_encoder": encoders.clip(sizes["pooled_projection_dim"]), "tokenizer": encoders.clip_words()}
    return first | second


def _of_sd3(sizes: dict[str, Any]) -> dict[str, Any]:
    third = {f"{name}_3": part for name, part in _wide("joint_attention_dim", sizes).items()}
    both = {f"text_encoder{n}": encoders.clip_projected(8, sizes["pooled_projection_dim"] // 2) for n in ("", "_2")}
    return both | {f"tokenizer{n}": encoders.clip_words() for n in ("", "_2")} | third


WHOLE: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], dict[str, Any]]] = {
    "flux": (_of_flux, {"height": 32, "width": 32, "max_sequence_length": 8}),
    "sd3": (_of_sd3, {"height": 32, "width": 32, "max_sequence_length": 8}),
    "wan": (partial(_wide, "text_dim"), {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 8}),
    "ltx": (partial(_wide, "caption_channels"), {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 8}),
}
"""Architecture -> its text encoders, as wide as the transformer takes, and the arguments of a call."""


def latents(pipe: Any, options: dict[str, Any]) -> torch.Tensor:
    noise = torch.Generator().manual_seed(0)
    made = pipe(prompt="a cat", num_inference_steps=2, generator=noise, output_type="latent", **options)
    return made[0].detach()


@pytest.mark.parametrize("name", [name for name in WHOLE if name in TABLE])
def test_a_prompt_gives_what_the_update_in_the_weights_gives(name: str, tmp_path: Path) -> None:
    encoders_of, options = WHOLE[name]
    tiny = Tiny(name, 0)
    tiny.config["out_channels"] = tiny.config["in_channels"]  # what is denoised has the width of the noise
    file = tmp_path / "style.safetensors"
    updates = trained(tiny, file, "to_q", "to_out.0", "proj")
    pipe = pipeline(tiny, tiny.model(), **encoders_of(tiny.config))
    pipe.set_progress_bar_config(disable=True)
    plain = latents(pipe, options)
    loraforge.load_into(pipe, file, trained_scale=SCALE, architecture=name)
    with_it = latents(pipe, options)
    pipe.unload_lora_weights()
    assert torch.equal(latents(pipe, options), plain)
    for path, update in updates.items():
        pipe.transformer.get_submodule(path).weight.data += torch.from_numpy(update).float()
    assert share(with_it.numpy(), latents(pipe, options).numpy()) <= 1e-5 < share(with_it.numpy(), plain.numpy())


@pytest.mark.parametrize("name", [name for name in ("flux", "wan") if name in TABLE])
def test_projections_that_an_attention_fused_by_itself(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Diffusers computes q, k and v by one layer there, and an adapter of one of them would do nothing."""
    encoders_of, options = WHOLE[name]
    tiny, way = Tiny(name, 0), {"trained_scale": SCALE, "architecture": name}
    tiny.config["out_channels"] = tiny.config["in_channels"]
    updates = trained(tiny, tmp_path / "style.safetensors", "to_k", "add_q_proj")
    pipe = pipeline(tiny, tiny.model(), **encoders_of(tiny.config))
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.fuse_qkv_projections()
    fused = {path for path, _ in pipe.transformer.named_modules() if path.endswith(tuple(FUSED))}
    with monkeypatch.context() as broken:
        broken.setattr("loraforge.live.load_into.set_strength", lambda *_: 1 / 0)
        with pytest.raises(LoraforgeError, match="ZeroDivisionError"):
            loraforge.load_into(pipe, tmp_path / "style.safetensors", **way)
    assert fused == {path for path, _ in pipe.transformer.named_modules() if path.endswith(tuple(FUSED))} != set()
    assert all(m.fused_projections for m in pipe.transformer.modules() if hasattr(m, "fused_projections"))
    loaded = loraforge.load_into(pipe, tmp_path / "style.safetensors", **way)
    assert any("were unfused" in note for note in loaded.notes)
    plain = pipeline(tiny, tiny.model(), **encoders_of(tiny.config))
    plain.set_progress_bar_config(disable=True)
    for path, update in updates.items():
        plain.transformer.get_submodule(path).weight.data += torch.from_numpy(update).float()
    assert share(latents(pipe, options).numpy(), latents(plain, options).numpy()) <= 1e-5


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    sd3, flux = Tiny("sd3", 0), Tiny("flux", 0)
    trained(flux, tmp_path / "style.safetensors")
    pipe = pipeline(sd3, sd3.model())
    title = architecture("flux").title
    with pytest.raises(
        LoraforgeError, match=f"style.safetensors is one of {title}, and the transformer is of"
    ) as refused:
        loraforge.load_into(pipe, tmp_path / "style.safetensors", trained_scale=SCALE)
    assert architecture("sd3").title in refused.value.message
    assert not hasattr(pipe.transformer, "peft_config")


def test_the_pipeline_decides_where_the_names_are_those_of_two_models(tmp_path: Path) -> None:
    flux, sd3 = Tiny("flux", 0), Tiny("sd3", 0)
    flux.config.update(attention_head_dim=12, axes_dims_rope=[4, 4, 4])  # as wide as the other
    updates = trained(flux, tmp_path / "style.safetensors", "attn.add_q_proj", "attn.add_k_proj")
    adapter = loraforge.read(tmp_path / "style.safetensors", trained_scale=SCALE)
    assert {adapter.architecture, *adapter.rivals} >= {"flux", "sd3"}
    for tiny in (flux, sd3):
        pipe = pipeline(tiny, tiny.model())
        assert of_its_model(pipe.transformer, adapter).architecture == tiny.name
        assert loraforge.load_into(pipe, adapter).modules == len(updates)


class TwoTransformers:
    """As Wan 2.2's pipeline has them."""

    def __init__(self, first: Any, second: Any) -> None:
        self.transformer, self.transformer_2 = first, second


def test_two_transformers_are_asked_about(tmp_path: Path) -> None:
    flux = Tiny("flux", 0)
    trained(flux, tmp_path / "style.safetensors", "to_q")
    pipe, options = TwoTransformers(flux.model(), flux.model()), {"trained_scale": SCALE, "architecture": "flux"}
    with pytest.raises(LoraforgeError, match="TwoTransformers has two transformers") as refused:
        loraforge.load_into(pipe, tmp_path / "style.safetensors", **options)
    lines = [remedy.command for remedy in refused.value.remedies]
    assert lines == ["load_into(pipe.transformer, adapter)", "load_into(pipe.transformer_2, adapter)"]
    known = {
        "pipe": pipe,
        "adapter": tmp_path / "style.safetensors",
        "load_into": partial(loraforge.load_into, **options),
    }
    exec(lines[1], known)
    assert not hasattr(pipe.transformer, "peft_config") and pipe.transformer_2.peft_config
    one = TwoTransformers(flux.model(), None)  # as in Wan 2.1, and in 2.2 at 5B
    loraforge.load_into(one, tmp_path / "style.safetensors", **options)
    with pytest.raises(LoraforgeError, match="the transformer of TwoTransformers is None") as refused:
        loraforge.load_into(TwoTransformers(None, flux.model()), tmp_path / "style.safetensors", **options)
    assert [remedy.command for remedy in refused.value.remedies] == ["load_into(pipe.transformer_2, adapter)"]


def test_run_names_the_line_that_loads_an_adapter_of_another_model(tmp_path: Path) -> None:
    flux = Tiny("flux", 0)
    trained(flux, tmp_path / "style.safetensors", "to_q", "norm1.linear")
    pipe, options = pipeline(flux, flux.model()), {"trained_scale": SCALE, "architecture": "flux"}
    with pytest.raises(LoraforgeError, match=r"is one of Flux\.1, and what is run is CogVideoX") as refused:
        loraforge.run([tmp_path / "style.safetensors"], base=tmp_path, prompt="x", **options)
    (convert,) = (remedy.command for remedy in refused.value.remedies)
    assert convert == f"loraforge convert {tmp_path / 'style.safetensors'} --to diffusers"
    assert "load_into" in str(refused.value)
    loraforge.load_into(pipe, tmp_path / "style.safetensors", **options)
    assert pipe.transformer.peft_config


def test_tensors_of_a_text_encoder_are_left_out_only_if_so_said(tmp_path: Path) -> None:
    """Diffusers' pipelines of Flux and SD3 would load them; what is converted is the transformer's part."""
    flux, file = Tiny("flux", 0), tmp_path / "style.safetensors"
    updates, state = trained(flux, file), {}
    for factor, shape in {"A": (RANK, 8), "B": (8, RANK)}.items():
        state[f"text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_{factor}.weight"] = torch.ones(shape)
    save_file(load_file(file) | state, file)
    way = {"trained_scale": SCALE, "architecture": "flux"}
    pipe = pipeline(flux, flux.model())
    with pytest.raises(LoraforgeError, match="2 of its tensors adapt the text encoder") as refused:
        loraforge.load_into(pipe, file, **way)
    assert "what is converted is the transformer's" in refused.value.message
    (line,) = (remedy.command for remedy in refused.value.remedies)
    assert line == f"load_into(pipe, {str(file)!r}, drop=['text_encoder*'])"
    assert loraforge.load_into(pipe, file, drop=["text_encoder*"], **way).modules == len(updates)
