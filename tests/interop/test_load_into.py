"""Adapters of every format in live pipelines: the recorded forward, the base's bits back, offload before and after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.oracle import FILE_CASES, SAT_CASES, Case
from helpers.pipelines import complaints, latents, load
from helpers.tolerance import FORWARD, UPDATE, off_by
from safetensors.torch import load_file

import loraforge
from loraforge.algebra.lora import LoraWeight
from loraforge.errors import ConversionError, LoraforgeError, ScaleError
from loraforge.live.load_into import set_strength

Folders = Callable[..., Path]


def kind_of(case: Case) -> str:
    return case.base.name


def forward(pipe: Any, case: Case) -> torch.Tensor:
    """The transformer's output for the recorded inputs."""
    inputs = load_file(case.base / "inputs.safetensors")
    extra = {"image_rotary_emb": (inputs["rope_cos"], inputs["rope_sin"])} if "rope_cos" in inputs else {}
    with torch.no_grad():
        output: torch.Tensor = pipe.transformer(
            inputs["x"], inputs["context"], inputs["timesteps"], return_dict=False, **extra
        )[0]
    return output


def recorded(case: Case, name: str = "lora_on") -> torch.Tensor:
    return load_file(case.folder / "forward.safetensors")[name]


@pytest.mark.parametrize("name", [*SAT_CASES, *FILE_CASES])
def test_the_recorded_forward_and_the_bases_bits(name: str, pipelines: Folders) -> None:
    case = Case(name)
    pipe = load(pipelines(kind_of(case)))
    if name in SAT_CASES:
        pipe.transformer.norm_out.norm.eps = 1e-6  # SAT's final norm; diffusers uses 1e-5
    before, base = latents(pipe), forward(pipe, case)
    with complaints() as heard:
        found = loraforge.load_into(pipe, case.source, **case.said)
    assert heard == []
    on, tolerance = forward(pipe, case), case.manifest["tolerance"]["forward"]
    assert (on - recorded(case)).abs().max() <= tolerance
    assert (base - recorded(case)).abs().max() > 100 * tolerance
    assert found.modules == len(case.deltas) and found.strength == 1.0
    assert "patterns" in name or np.isclose(found.scalings, case.scale).all()
    assert (latents(pipe) - before).abs().max() > 0.01
    set_strength(pipe.transformer, found.name, 0.0)
    assert torch.equal(latents(pipe), before) and torch.equal(forward(pipe, case), base)


@pytest.mark.parametrize("form", ["diffusers", "peft", "sat"])
@pytest.mark.parametrize("name", ["sat_2b_r4", "sat_5b_r8", "sat_5b_i2v_r8", "sat_1.5_t2v_r4"])
def test_every_format_gives_the_same_video(name: str, form: str, pipelines: Folders, tmp_path: Path) -> None:
    case = Case(name)
    options = {"base": case.sat_base} if form == "sat" else {}
    loraforge.convert(case.source, to=form, out=tmp_path / "out", **case.said, **options)
    one, other = (load(pipelines(kind_of(case))) for _ in range(2))
    loraforge.load_into(one, case.source, **case.said)
    loraforge.load_into(other, tmp_path / "out")
    assert off_by(latents(one), latents(other)) <= FORWARD


def test_strength_scales_the_update(pipelines: Folders) -> None:
    case = Case("sat_5b_r8")
    pipe = load(pipelines("5b"))
    found = loraforge.load_into(pipe, case.source, 0.5, **case.said)
    layer = pipe.transformer.get_submodule("transformer_blocks.0.attn1.to_q")
    delta = layer.get_delta_weight(found.name).double().numpy()
    want = 0.5 * case.deltas["transformer_blocks.0.attn1.to_q"]
    assert np.linalg.norm(delta - want) <= UPDATE * np.linalg.norm(want)


def test_the_numbers_of_the_file_go_in_as_they_are(pipelines: Folders) -> None:
    """The scale stands beside them: folded in, one that is no power of two would round them."""
    case = Case("peft_plain")
    adapter = loraforge.read(case.source)
    path, (weight,) = next(iter(adapter.modules.items()))
    odd = replace(adapter, modules={path: (replace(weight, scaling=0.3),)})
    pipe = load(pipelines("2b"))
    found = loraforge.load_into(pipe, odd)
    layer = pipe.transformer.get_submodule(path)
    assert np.array_equal(layer.lora_A[found.name].weight.detach().numpy(), weight.A)
    assert np.array_equal(layer.lora_B[found.name].weight.detach().numpy(), weight.B)
    assert layer.scaling[found.name] == pytest.approx(0.3, rel=1e-12)


def test_two_that_cancel(pipelines: Folders) -> None:
    case = Case("peft_plain")
    pipe = load(pipelines("2b"))
    before = latents(pipe)
    loraforge.load_into(pipe, case.source, 0.5)
    once = latents(pipe)
    loraforge.load_into(pipe, case.source, -0.5)
    assert (once - before).abs().max() > 0.01 and (latents(pipe) - before).abs().max() < 1e-4


def test_two_that_add_up_beside_one_that_diffusers_loaded(pipelines: Folders, tmp_path: Path) -> None:
    case = Case("peft_plain")
    loraforge.convert(case.source, to="diffusers", out=tmp_path / "out")
    pipe = load(pipelines("2b"))
    pipe.load_lora_weights(str(tmp_path / "out"), adapter_name="theirs")
    pipe.set_adapters(["theirs"], [0.25])
    found = loraforge.load_into(pipe, case.source, 0.75)
    assert sorted(pipe.transformer.get_submodule("transformer_blocks.0.attn1.to_q").active_adapters) == sorted(
        ["theirs", found.name]
    )
    assert (forward(pipe, case) - recorded(case)).abs().max() <= 10 * case.manifest["tolerance"]["forward"]


def test_before_and_after_model_offload(pipelines: Folders) -> None:
    case = Case("sat_5b_r8")
    plain = load(pipelines("5b"))
    loraforge.load_into(plain, case.source, **case.said)
    want = latents(plain)
    before = load(pipelines("5b"))
    loraforge.load_into(before, case.source, **case.said)
    before.enable_model_cpu_offload(device="cpu")
    after = load(pipelines("5b"))
    after.enable_model_cpu_offload(device="cpu")
    loraforge.load_into(after, case.source, **case.said)
    assert torch.equal(latents(before), want) and torch.equal(latents(after), want)


def test_after_group_offload(pipelines: Folders) -> None:
    case = Case("sat_5b_r8")
    plain, grouped = (load(pipelines("5b")) for _ in range(2))
    loraforge.load_into(plain, case.source, **case.said)
    grouped.transformer.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    loraforge.load_into(grouped, case.source, **case.said)
    assert torch.equal(latents(grouped), latents(plain))


def test_a_transformer_alone(pipelines: Folders) -> None:
    case = Case("sat_2b_r4")
    pipe = load(pipelines("2b"))
    pipe.transformer.norm_out.norm.eps = 1e-6
    found = loraforge.load_into(pipe.transformer, case.source, name="mine", **case.said)
    assert found.name == "mine" and "mine" in pipe.transformer.peft_config
    assert (forward(pipe, case) - recorded(case)).abs().max() <= case.manifest["tolerance"]["forward"]


def test_the_type_of_the_pipeline_is_kept(pipelines: Folders) -> None:
    case = Case("sat_5b_r8")
    pipe = load(pipelines("5b"), torch_dtype=torch.bfloat16)
    loraforge.load_into(pipe, case.source, **case.said)
    assert {parameter.dtype for parameter in pipe.transformer.parameters()} == {torch.bfloat16}


def test_one_of_several_scalings_in_a_module(pipelines: Folders) -> None:
    """Rows of one module at two scales, which one LoRA layer cannot have: the scale goes into the numbers."""
    case = Case("sat_5b_r8")
    adapter = loraforge.read(case.source, **case.said)
    qkv = "transformer.layers.0.attention.query_key_value"
    delta = adapter.modules[qkv]
    odd = tuple(replace(w, scaling=w.scaling * (n + 1)) for n, w in enumerate(delta))
    pipe = load(pipelines("5b"))
    found = loraforge.load_into(pipe, replace(adapter, modules={qkv: odd}))
    for n, part in enumerate(("to_q", "to_k", "to_v")):
        path = f"transformer_blocks.0.attn1.{part}"
        held = pipe.transformer.get_submodule(path).get_delta_weight(found.name).double().numpy()
        want = (n + 1) * case.deltas[path]
        assert np.linalg.norm(held - want) <= UPDATE * np.linalg.norm(want)


def test_refusals_leave_the_pipeline_as_it_was(pipelines: Folders, tmp_path: Path) -> None:
    pipe = load(pipelines("5b"))
    before = latents(pipe)
    wrong = Case("sat_1.5_t2v_r4")
    adapter = loraforge.read(Case("sat_5b_r8").source, **Case("sat_5b_r8").said)
    path = next(iter(adapter.modules))
    weight = adapter.modules[path][0]
    wide = LoraWeight(np.ones((4, 99), np.float32), np.ones((weight.B.shape[0], 4), np.float32), 1.0)
    refused: list[tuple[type[LoraforgeError], Any, dict[str, Any]]] = [
        (ConversionError, replace(adapter, modules={**adapter.modules, path: (wide,) * 3}), {}),
        (ScaleError, Case("cogvideo_trainer_plain").source, {}),
        (LoraforgeError, tmp_path / "nowhere", {}),
        (LoraforgeError, Case("sat_5b_r8").source, {"strength": float("nan"), **Case("sat_5b_r8").said}),
    ]
    for thing in (3, "pipe", None):
        with pytest.raises(LoraforgeError, match="is no pipeline of Diffusers"):
            loraforge.load_into(thing, Case("sat_5b_r8").source)
    with pytest.raises(LoraforgeError, match="is no adapter"):
        loraforge.load_into(pipe, None)  # type: ignore[arg-type]
    for kind, source, options in refused:
        with pytest.raises(kind):
            loraforge.load_into(pipe, source, **options)
    assert not getattr(pipe.transformer, "peft_config", {}) and torch.equal(latents(pipe), before)
    other = load(pipelines("1.5_t2v"))
    with pytest.raises(ConversionError, match=r"there is no transformer_blocks\.1"):
        loraforge.load_into(other, Case("sat_5b_r8").source, **Case("sat_5b_r8").said)
    assert wrong.name
