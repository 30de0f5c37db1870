"""The prover on trial: faults put into what is written. `-s` prints who caught each.

A conversion must refuse to keep what is wrong; what it keeps must be seen by the program that loads it. The judge of
the second is not loraforge: the real loader's layers, or the checker, against the checker's reading of the source.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checker
import numpy as np
import pytest
import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from helpers.oracle import DATA, Case
from helpers.tolerance import UPDATE, share
from peft import PeftModel
from peft.tuners.lora import LoraLayer

import loraforge
from loraforge.errors import LoraforgeError, VerificationError
from prover import faults
from prover.seams import Fault, put_in

KNOWN_BLIND: dict[str, str] = {}
"""Faults that nobody catches, and why that is so."""

LEFT_TO_THE_LOADER = {
    "sat: no prefix": "bare names are read as SAT's too (the LoRA tensors alone); SAT does not know them"
}
"""Faults that the conversion's own proof lets pass, and why."""


def model() -> Any:
    return CogVideoXTransformer3DModel.from_config(json.loads((DATA / "bases/2b/config.json").read_text()))


def layers(loaded: Any, source: dict[str, checker.Module]) -> bool:
    """Whether the layers of the real model do what the source does."""
    found = {n.removeprefix("base_model.model."): m for n, m in loaded.named_modules() if isinstance(m, LoraLayer)}
    if {name.replace(".", "_") for name in found} != source.keys():
        return False
    for name, layer in found.items():
        want = source[name.replace(".", "_")]
        (adapter,) = layer.lora_A
        A, B = (part[adapter].weight.detach().double().numpy() for part in (layer.lora_A, layer.lora_B))
        got = layer.scaling[adapter] * (B.reshape(len(B), -1) @ A.reshape(len(A), -1))
        lengths = layer.lora_magnitude_vector[adapter].weight.detach() if layer.lora_magnitude_vector else np.zeros(0)
        if not share(got, want.update) <= UPDATE or not np.allclose(lengths, want.lengths, rtol=1e-6):
            return False
    return True


def in_diffusers(out: Path, source: dict[str, checker.Module], _: Case) -> bool:
    loaded = model()
    state, metadata = CogVideoXPipeline.lora_state_dict(str(out), return_lora_metadata=True)
    CogVideoXPipeline.load_lora_into_transformer(state, loaded, metadata=metadata)
    return layers(loaded, source)


def in_peft(out: Path, source: dict[str, checker.Module], _: Case) -> bool:
    return layers(PeftModel.from_pretrained(model(), str(out)), source)


def in_sat(out: Path, source: dict[str, checker.Module], case: Case) -> bool:
    """As SAT's load_checkpoint: every key of the model is there, and nothing else; the base is the base."""
    file = out / (out / "latest").read_text() / "mp_rank_00_model_states.pt"
    held = torch.load(file, weights_only=True)["module"]
    before = torch.load(next(case.sat_base.glob("*/*.pt")), weights_only=False)["module"]
    want = {key: tensor for key, tensor in before.items() if ".matrix_" not in key}
    right = held.keys() == before.keys() and all(torch.equal(held[key], tensor) for key, tensor in want.items())
    return right and by_the_checker(out, source, case)


def by_the_checker(out: Path, source: dict[str, checker.Module], _: Case) -> bool:
    found = checker.differences(source, checker.read(out))
    return all(off <= UPDATE for off, _ in found.values())


Judge = Callable[[Path, dict[str, checker.Module], Case], bool]
TARGETS: dict[str, tuple[str, str, dict[str, Any], Judge, list[dict[str, Fault]]]] = {
    "diffusers": ("peft_patterns", "diffusers", {}, in_diffusers,
                  [faults.NUMBERS, faults.NAMES, faults.DISK, faults.SAFETENSORS]),
    "diffusers, metadata": ("peft_patterns", "diffusers", {"scale_in": "metadata"}, in_diffusers,
                            [faults.HEADER, faults.OWN_ENTRY]),
    "peft": ("diffusers_meta_patterns", "peft", {}, in_peft, [faults.NUMBERS, faults.NAMES, faults.CONFIG]),
    "peft, DoRA": ("peft_dora", "peft", {}, in_peft, [faults.DORA]),
    "kohya": ("peft_patterns", "kohya", {}, by_the_checker,
              [faults.NUMBERS, faults.NAMES, faults.DISK, faults.SAFETENSORS]),
    "sat": ("sat_2b_r4", "sat", {}, in_sat, [faults.NUMBERS, faults.SAT, faults.DISK]),
}  # fmt: skip


def caught_by(fault: Fault | None, target: str, place: Path) -> str:
    """Who catches the fault: the proof of the conversion, at which of its steps, or the loader. Empty: nobody."""
    name, to, options, judge, _ = TARGETS[target]
    case, out = Case(name), place / "out"
    source = checker.read(case.run(place) if name.startswith("sat") else case.source)
    if to == "sat":
        options = options | {"base": case.sat_base, "target_alpha": 8}
    try:
        with put_in(fault or Fault()):
            loraforge.convert(case.source, to=to, out=out, **case.said, **options)
    except VerificationError as error:
        assert not out.exists()
        steps = {"other bytes": "proof: bytes", "damaged": "proof: bytes", "not read": "proof: reading",
                 "other modules": "proof: modules", "the base's": "proof: base", "folder": "proof: files",
                 "was not written": "proof: files"}  # fmt: skip
        return next((step for words, step in steps.items() if words in error.message), "proof: update")
    except (LoraforgeError, ValueError, OSError, KeyError) as error:
        assert not out.exists()
        return f"writer: {type(error).__name__}"
    if fault and written(out) == written(place.parent / "right"):
        return "nothing was changed"
    try:
        return "" if judge(out, source, case) else "loader: another update"
    except Exception as error:
        return f"loader: {type(error).__name__}"


@pytest.mark.parametrize("target", TARGETS)
def test_faults_are_caught(target: str, tmp_path: Path) -> None:
    assert caught_by(None, target, tmp_path / "n") == ""
    (tmp_path / "n" / "out").rename(tmp_path / "right")
    found = {
        name: caught_by(fault, target, tmp_path / str(n))
        for n, (name, fault) in enumerate(sorted((k, v) for some in TARGETS[target][4] for k, v in some.items()))
    }
    print(f"\n{target}: {len(found)} faults, {sum(map(bool, found.values()))} caught")
    for name, who in sorted(found.items(), key=lambda item: item[1]):
        print(f"  {name:<44} {who or 'NOBODY'}")
    print(" ", dict(Counter(who.partition(":")[0] for who in found.values())))
    assert "nothing was changed" not in found.values()
    for who_not, known in {"": KNOWN_BLIND, "loader": LEFT_TO_THE_LOADER}.items():
        passed = {f"{target}: {name}" for name, who in found.items() if who.partition(":")[0] == who_not}
        assert passed == {name for name in known if name.startswith(f"{target}: ")}


def test_there_are_enough_of_them() -> None:
    every = {(target, name) for target, (*_, some) in TARGETS.items() for faults_ in some for name in faults_}
    names = {name for _, name in every}
    assert len(names) >= 60 and len(names) - len(KNOWN_BLIND) >= 58


def written(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}
