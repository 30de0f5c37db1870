"""What load_into loads acts, whatever state the pipeline is in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.livestates import PATHS, SCALE, STATES, D, R, adapter, forward, model, off, pipeline
from peft import LoraConfig, PeftModel
from safetensors.numpy import save_file

import loraforge
from loraforge.live.load_into import set_strength


@pytest.mark.parametrize("through", ["pipe", "transformer"])
@pytest.mark.parametrize("state", STATES)
def test_it_acts(state: str, through: str, tmp_path: Path) -> None:
    file, delta = adapter(tmp_path)
    second, other = adapter(tmp_path, 2)
    pipe = pipeline(model())
    STATES[state](pipe, tmp_path)
    what = pipe if through == "pipe" else pipe.transformer
    found = loraforge.load_into(what, file, name="a", trained_scale=SCALE)
    assert found.modules == len(PATHS)
    assert off(forward(pipe.transformer), forward(model(delta))) < 1e-6
    assert off(forward(pipe.transformer), forward(model(delta))) < 1e-6  # and again, offloaded once
    loraforge.load_into(what, second, name="b", trained_scale=SCALE)
    assert off(forward(pipe.transformer), forward(model(delta, other))) < 1e-6
    inner = pipe.transformer.get_base_model() if isinstance(pipe.transformer, PeftModel) else pipe.transformer
    for name in ("a", "b"):
        set_strength(inner, name, 0.0)
    assert off(forward(pipe.transformer), forward(model())) < 1e-6


@pytest.mark.parametrize("others", [PATHS, PATHS[:2], ("transformer_blocks.1.ff.net.2",)])
@pytest.mark.parametrize("way", ["disable_lora", "disable_adapters"])
def test_adapters_that_are_switched_off_stay_off(way: str, others: tuple[str, ...], tmp_path: Path) -> None:
    file, delta = adapter(tmp_path)
    if others[0] not in PATHS:
        second = tmp_path / "b.safetensors"
        wide = np.full((R, 4 * D), 0.1, "f4"), np.full((D, R), 0.1, "f4")
        save_file({f"transformer.{others[0]}.lora_{k}.weight": t for k, t in zip("AB", wide, strict=True)}, second)
    else:
        second, _ = adapter(tmp_path, 2, paths=others)
    pipe = pipeline(model())
    loraforge.load_into(pipe, second, name="b", trained_scale=SCALE)
    getattr(pipe.transformer, way)()
    found = loraforge.load_into(pipe, file, name="a", trained_scale=SCALE)
    assert off(forward(pipe.transformer), forward(model(delta))) < 1e-6
    assert any("switched off" in note for note in found.notes)
    pipe.set_adapters(["a", "b"])
    assert off(forward(pipe.transformer), forward(model(delta))) > 1e-4


def test_a_fused_adapter_goes_on_acting(tmp_path: Path) -> None:
    file, delta = adapter(tmp_path)
    second, other = adapter(tmp_path, 2, paths=PATHS[:3])
    pipe = pipeline(model())
    loraforge.load_into(pipe, second, name="b", trained_scale=SCALE)
    pipe.fuse_lora()
    found = loraforge.load_into(pipe, file, name="a", trained_scale=SCALE)
    assert off(forward(pipe.transformer), forward(model(delta, other))) < 1e-6
    assert any("fused" in note for note in found.notes)


def test_float8_layers_are_computed_in_the_type_of_the_rest(tmp_path: Path) -> None:
    file, _ = adapter(tmp_path)
    types = torch.float8_e4m3fn, torch.bfloat16
    pipe, want = pipeline(model().bfloat16()), model().bfloat16()
    pipe.transformer.enable_layerwise_casting(*types)
    base = forward(pipe.transformer, torch.bfloat16)
    found = loraforge.load_into(pipe, file, name="a", trained_scale=SCALE)
    layer = pipe.transformer.get_submodule(PATHS[0])
    assert layer.lora_A["a"].weight.dtype == torch.bfloat16 == layer.lora_B["a"].weight.dtype
    assert layer.base_layer.weight.dtype == torch.float8_e4m3fn
    loraforge.load_into(want, file, name="a", trained_scale=SCALE)
    want.enable_layerwise_casting(*types)
    assert torch.equal(forward(pipe.transformer, torch.bfloat16), forward(want, torch.bfloat16))
    assert off(forward(pipe.transformer, torch.bfloat16), base) > 0.01
    assert any("bfloat16" in note and "off by 0.00" in note for note in found.notes)


def test_no_note_where_no_number_is_rounded(tmp_path: Path) -> None:
    file, _ = adapter(tmp_path)
    assert loraforge.load_into(model(), file, trained_scale=SCALE).notes == loraforge.load_into(
        pipeline(model()), file, trained_scale=SCALE
    ).notes == loraforge.read(file, trained_scale=SCALE).notes  # fmt: skip


def test_what_was_trained_goes_on_being_trained(tmp_path: Path) -> None:
    pipe = pipeline(model())
    pipe.transformer.requires_grad_(False)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="mine")
    pipe.transformer.proj_out.requires_grad_(True)
    was = {id(p) for p in pipe.transformer.parameters() if p.requires_grad}
    loraforge.load_into(pipe, adapter(tmp_path)[0], name="a", trained_scale=SCALE)
    assert {id(p) for p in pipe.transformer.parameters() if p.requires_grad} == was


@pytest.mark.parametrize("state", ["group_leaf", "group_block"])
def test_new_layers_are_offloaded_with_the_others(state: str, tmp_path: Path) -> None:
    """Which a machine without a GPU does not show in a forward."""
    pipe = pipeline(model())
    STATES[state](pipe, tmp_path)
    loraforge.load_into(pipe.transformer, adapter(tmp_path)[0], name="a", trained_scale=SCALE)
    held: set[int] = set()
    for module in pipe.transformer.modules():
        registry = getattr(module, "_diffusers_hook", None)
        hook = registry.get_hook("group_offloading") if registry else None
        for part in hook.group.modules if hook else ():
            held |= {id(p) for p in part.parameters()}
    for path in PATHS:
        layer = pipe.transformer.get_submodule(path)
        assert {id(layer.lora_A["a"].weight), id(layer.lora_B["a"].weight)} <= held
