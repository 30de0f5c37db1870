"""What load_into cannot make act is refused, with the pipeline as it was; its remedies are Python that runs."""

from __future__ import annotations

import pkgutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.livestates import PATHS, SCALE, STATES, adapter, forward, model, off, pipeline

import loraforge
from loraforge.errors import LoraforgeError
from loraforge.live import load_into
from loraforge.live.load_into import set_strength


def _state_of(transformer: Any) -> dict[str, Any]:
    """All that a refusal must leave alone."""
    named = dict(transformer.named_modules())
    return {
        "modules": {path: id(module) for path, module in named.items()},
        "grads": {name: p.requires_grad for name, p in transformer.named_parameters()},
        "active": {p: (list(m.active_adapters), m.disable_adapters, list(m.merged_adapters))
                   for p, m in named.items() if hasattr(m, "merged_adapters")},
        "adapters": set(getattr(transformer, "peft_config", {})),
        "hooks": {path: id(m._hf_hook) for path, m in named.items() if hasattr(m, "_hf_hook")},
        "groups": {path: sorted(m._diffusers_hook.hooks) for path, m in named.items()
                   if hasattr(m, "_diffusers_hook") and m._diffusers_hook.hooks},
        "processors": {path: type(p) for path, p in transformer.attn_processors.items()},
        "attributes": {k for k in vars(transformer) if "peft" in k},
    }  # fmt: skip


def _loaded_before(pipe: Any, place: Path) -> None:
    loraforge.load_into(pipe, adapter(place, 7)[0], name="old", trained_scale=SCALE)


def _off_before(pipe: Any, place: Path) -> None:
    _loaded_before(pipe, place)
    pipe.disable_lora()


def _fused_before(pipe: Any, place: Path) -> None:
    _loaded_before(pipe, place)
    pipe.fuse_lora()


def _trained_before(pipe: Any, place: Path) -> None:
    pipe.transformer.requires_grad_(True)


BEFORE = {**STATES, "loaded": _loaded_before, "off": _off_before, "fused": _fused_before, "trained": _trained_before}


@pytest.mark.parametrize("when", ["in diffusers", "after it"])
@pytest.mark.parametrize("state", [state for state in BEFORE if state not in ("compiled", "in_peft")])
def test_a_failure_leaves_everything_as_it_was(
    state: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = adapter(tmp_path)
    pipe = pipeline(model())
    BEFORE[state](pipe, tmp_path)
    before, was = forward(pipe.transformer), _state_of(pipe.transformer)

    def broken(*_given: Any, **_options: Any) -> None:
        raise RuntimeError("no accelerator")

    if when == "in diffusers":
        monkeypatch.setattr("peft.set_peft_model_state_dict", broken)
    else:
        monkeypatch.setattr("loraforge.live.load_into.set_strength", broken)
    with pytest.raises(LoraforgeError, match=r"RuntimeError: no accelerator.*The pipeline is as it was"):
        loraforge.load_into(pipe, file, name="a", trained_scale=SCALE)
    monkeypatch.undo()
    assert _state_of(pipe.transformer) == was
    assert torch.equal(forward(pipe.transformer), before)
    loraforge.load_into(pipe, file, name="a", trained_scale=SCALE)  # the same name is free


STEPS = """peft.inject_adapter_in_model peft.set_peft_model_state_dict
loraforge.live.load_into._unfused loraforge.live.load_into._settle loraforge.live.load_into._others_as_before
loraforge.live.load_into.set_strength loraforge.live.load_into.idle peft.tuners.lora.layer.LoraLayer.set_scale
diffusers.hooks.group_offloading._maybe_remove_and_reapply_group_offloading
diffusers.hooks.group_offloading._apply_group_offloading
diffusers.models.attention.AttentionModuleMixin.unfuse_projections""".split()


@pytest.mark.parametrize("then", ["before it", "after it"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("state", ["group_leaf", "group_block", "fused_qkv", "fused", "hook_of_the_users"])
def test_a_failure_in_any_step_leaves_everything_as_it_was(
    state: str, step: str, then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = adapter(tmp_path)
    pipe = pipeline(model())
    BEFORE[state](pipe, tmp_path)
    before, was = forward(pipe.transformer), _state_of(pipe.transformer)
    module, _, name = step.rpartition(".")
    real, calls = getattr(pkgutil.resolve_name(module), name), 0

    def breaks(*given: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        result = real(*given, **options) if calls > 1 or then == "after it" else None
        if calls > 1:
            return result
        list(result if hasattr(result, "__next__") else ())  # the notes of a step that yields them
        raise RuntimeError("no accelerator")

    monkeypatch.setattr(step, breaks)
    try:
        loraforge.load_into(pipe, file, name="a", trained_scale=SCALE)
    except LoraforgeError as error:
        assert "The pipeline is as it was" in str(error)  # Diffusers may raise another one as it cleans up
    assert calls == 0 or _state_of(pipe.transformer) == was
    if calls:
        monkeypatch.undo()
        assert torch.equal(forward(pipe.transformer), before)


def _meta(pipe: Any) -> None:
    pipe.transformer.to("meta")


def _float8(pipe: Any) -> None:
    pipe.transformer.to(torch.float8_e4m3fn)


def _half(pipe: Any) -> None:
    pipe.transformer.to(torch.float16)


REFUSED: dict[str, tuple[Callable[[Any], None], dict[str, float], str]] = {
    "on meta": (_meta, {}, "are on `meta`"),
    "float8 as it is": (_float8, {}, "float8 without layerwise casting"),
    "too large for half": (_half, {"of_b": 1e6}, "become infinity"),
    "too small for half": (_half, {"of_b": 1e-8}, "changes the update by more than 1%"),
    "half lost in A": (_half, {"of_a": 1e-7}, "changes the update by more than 1%"),
    "NaN": (lambda pipe: None, {"of_a": float("nan")}, "NaN or infinity"),
    "infinity": (lambda pipe: None, {"of_b": float("inf")}, "NaN or infinity"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_not_act_is_refused_before_anything_is_touched(case: str, tmp_path: Path) -> None:
    state, sizes, words = REFUSED[case]
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore")
        file, _ = adapter(tmp_path, **sizes)
    pipe = pipeline(model())
    state(pipe)
    was = _state_of(pipe.transformer)
    with pytest.raises(LoraforgeError, match=words):
        loraforge.load_into(pipe, file, trained_scale=SCALE)
    assert _state_of(pipe.transformer) == was


@pytest.mark.parametrize("case", ["too large for half", "too small for half"])
def test_the_remedy_for_a_type_that_is_too_narrow_runs(case: str, tmp_path: Path) -> None:
    state, sizes, _ = REFUSED[case]
    file, delta = adapter(tmp_path, **sizes)
    pipe = pipeline(model())
    state(pipe)
    with pytest.raises(LoraforgeError) as refused:
        loraforge.load_into(pipe, file, trained_scale=SCALE)
    exec(refused.value.remedies[0].command, {"pipe": pipe, "torch": torch})
    found = loraforge.load_into(pipe, file, name="a", trained_scale=SCALE)
    layer = pipe.transformer.get_submodule(PATHS[0])
    held = layer.get_delta_weight(found.name).double().numpy()
    assert np.linalg.norm(held - delta[PATHS[0]]) < 0.01 * np.linalg.norm(delta[PATHS[0]])


@pytest.mark.parametrize("name", ["a.b", "", 3])
def test_names_peft_cannot_have(name: Any, tmp_path: Path) -> None:
    with pytest.raises(LoraforgeError, match="cannot be part of a module's path"):
        loraforge.load_into(model(), adapter(tmp_path)[0], name=name, trained_scale=SCALE)


def test_a_second_one_of_a_name_is_refused_with_a_line_that_runs(tmp_path: Path) -> None:
    pipe, (file, delta) = pipeline(model()), adapter(tmp_path)
    loraforge.load_into(pipe, file, name="a", trained_scale=SCALE)
    with pytest.raises(LoraforgeError, match="there is an adapter a in it already") as refused:
        loraforge.load_into(pipe, file, name="a", trained_scale=SCALE)
    assert off(forward(pipe.transformer), forward(model(delta))) < 1e-6
    exec(refused.value.remedies[0].command, {"pipe": pipe})
    loraforge.load_into(pipe, file, name="a", trained_scale=SCALE)
    assert off(forward(pipe.transformer), forward(model(delta))) < 1e-6


def test_remedies_are_python_that_runs(tmp_path: Path) -> None:
    """A scale that is not recorded: each candidate is a call of load_into, and each of them loads."""
    file, _ = adapter(tmp_path)
    with pytest.raises(LoraforgeError) as refused:
        loraforge.load_into(pipeline(model()), file)
    lines = [remedy.command for remedy in refused.value.remedies]
    assert lines and all(line.startswith("load_into(pipe, ") for line in lines)
    for line in lines:
        if "<" in line or "'N'" in line:
            continue
        exec(line, {"pipe": pipeline(model()), "load_into": loraforge.load_into})


def test_a_pipeline_without_its_transformer() -> None:
    with pytest.raises(LoraforgeError, match="the transformer of CogVideoXPipeline is None"):
        loraforge.load_into(pipeline(None), "a.safetensors")


def _then(change: Callable[[Any], object]) -> Callable[..., None]:
    """`set_strength`, and something after it that spoils its work."""

    def instead(module: Any, name: str, strength: float) -> None:
        set_strength(module, name, strength)
        change(module)

    return instead


def _each(change: Callable[[Any], object]) -> Callable[..., None]:
    return _then(lambda module: [change(m) for m in module.modules() if hasattr(m, "lora_A")])


WRONG: dict[str, tuple[Callable[..., None], str]] = {
    "another scale": (_each(lambda layer: layer.scaling.update(a=1.0)), "its scale differs"),
    "not active": (_each(lambda layer: layer.set_adapter([])), "it is not active there"),
    "other numbers": (_each(lambda layer: layer.lora_B["a"].weight.data.mul_(1.01)), "its numbers differ"),
    "on meta": (_each(lambda layer: layer.lora_A.to("meta")), "are on `meta`"),
    "switched off": (_then(lambda module: module.disable_lora()), "switched off there"),
    "fused away": (_then(lambda module: module.fuse_qkv_projections()), "a fused projection is used instead"),
    "merged": (_then(lambda module: module.fuse_lora()), "only a fused adapter acts there"),
    "taken out": (_then(lambda module: module.unload_lora()), "there is no layer of it"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_loader_that_does_something_else_is_noticed(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instead, words = WRONG[case]
    pipe, (file, _) = pipeline(model()), adapter(tmp_path)
    before, was = forward(pipe.transformer), _state_of(pipe.transformer)
    monkeypatch.setattr("loraforge.live.load_into.set_strength", instead)
    with pytest.raises(LoraforgeError, match=f"would not act as it should.*{words}"):
        loraforge.load_into(pipe, file, name="a", trained_scale=SCALE)
    if case != "fused away":  # which adds modules of its own
        assert _state_of(pipe.transformer) == was
    if case != "merged":  # which rounds the base weights
        assert torch.equal(forward(pipe.transformer), before)


@pytest.mark.parametrize("moment", ["_as_diffusers", "set_strength"])
def test_a_file_that_changes_meanwhile_is_not_loaded(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = adapter(tmp_path)
    pipe = pipeline(model())
    before, was = forward(pipe.transformer), _state_of(pipe.transformer)
    known = getattr(load_into, moment)

    def changed(*words: Any) -> Any:
        done = known(*words)
        data = file.read_bytes()
        file.write_bytes(data[:-64] + bytes(64))
        return done

    monkeypatch.setattr(load_into, moment, changed)
    with pytest.raises(LoraforgeError, match="changed while it was read: is training still running"):
        loraforge.load_into(pipe, file, name="a", trained_scale=SCALE)
    assert _state_of(pipe.transformer) == was
    assert torch.equal(forward(pipe.transformer), before)
