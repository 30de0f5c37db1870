"""Every recorded adapter in every built-in format, judged by a reader that shares no line with loraforge."""

from __future__ import annotations

import ast
import math
import subprocess
import sys
from pathlib import Path

import checker
import numpy as np
import pytest
from helpers.oracle import FILE_CASES, SAT_CASES, Case
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.errors import ConversionError

NOT_SAT = {"diffusers_meta_patterns": "LoRA adapts only", "peft_dora": "magnitudes"}
"""Cases with modules that SAT's LoRA has not got."""


def test_it_imports_nothing_of_loraforge_and_is_short() -> None:
    text = Path(checker.__file__).read_text("utf-8")
    modules = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in modules for alias in node.names} | {getattr(node, "module", "") for node in modules}
    assert not any("loraforge" in (name or "") or "oracle" in (name or "") for name in names)
    assert len(text.splitlines()) <= 150


def read(case: Case, place: Path) -> dict[str, checker.Module]:
    """SAT's YAML lies elsewhere in tests/data; an alpha is stated where the files record none."""
    if case.name in SAT_CASES:
        return checker.read(case.run(place))
    return checker.read(case.source, float(case.manifest["alpha"]) if case.said else None)


@pytest.mark.parametrize("name", [*SAT_CASES, *FILE_CASES])
def test_it_reads_the_recorded_update(name: str, tmp_path: Path) -> None:
    """So that it is right itself: against the numbers the trainers computed."""
    case = Case(name)
    got = read(case, tmp_path)
    want = {path.replace(".", "_"): delta.reshape(len(delta), -1) for path, delta in case.deltas.items()}
    assert got.keys() == want.keys()
    if "dora" not in name:  # what DoRA adds depends on the base
        for path, delta in want.items():
            assert np.linalg.norm(got[path].update - delta) <= 1e-6 * np.linalg.norm(delta), path


@pytest.mark.parametrize("to", ["diffusers", "diffusers metadata", "peft", "sat", "sat alpha"])
@pytest.mark.parametrize("name", [*SAT_CASES, *FILE_CASES])
def test_it_agrees_with_the_conversion(name: str, to: str, tmp_path: Path) -> None:
    case, (to, _, how) = Case(name), to.partition(" ")
    more = {"metadata": {"scale_in": "metadata"}, "alpha": {"target_alpha": 8}}.get(how, {})
    more |= {"base": case.sat_base} if to == "sat" and not how else {"lora_only": True} if to == "sat" else {}
    try:
        loraforge.convert(case.source, to=to, out=tmp_path / "out", **case.said, **more)
    except ConversionError as refusal:
        assert to == "sat" and NOT_SAT[name] in refusal.message, refusal
        return
    found = checker.differences(read(case, tmp_path), checker.read(tmp_path / "out"))
    assert len(found) == len(case.deltas)
    assert all(off <= limit for off, limit in found.values()), found


@pytest.mark.parametrize("fault", ["twice", "exchanged", "one row", "one missing"])
def test_it_disagrees_where_it_should(fault: str, tmp_path: Path) -> None:
    case = Case("peft_plain")
    loraforge.convert(case.source, to="diffusers", out=tmp_path / "out")
    file = tmp_path / "out" / "pytorch_lora_weights.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if "to_q.lora_B" in key)
    other = key.replace("to_q", "to_k")
    if fault == "one missing":
        del tensors[key], tensors[key.replace("lora_B", "lora_A")]
    elif fault == "exchanged":
        tensors[key], tensors[other] = tensors[other], tensors[key]
    elif fault == "one row":
        tensors[key][5] *= 1.01
    else:
        tensors[key] *= 2
    save_file(tensors, file)
    found = checker.differences(checker.read(case.source), checker.read(tmp_path / "out"))
    wrong = {name for name, (off, limit) in found.items() if not off <= limit}
    assert len(wrong) == (2 if fault == "exchanged" else 1)
    assert (math.inf in {off for off, _ in found.values()}) == (fault == "one missing")
    words = [sys.executable, checker.__file__, str(case.source), str(tmp_path / "out")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout.count("DIFFERENT") == len(wrong)
    loraforge.convert(case.source, to="diffusers", out=tmp_path / "right")
    assert subprocess.run([*words[:3], str(tmp_path / "right")], capture_output=True).returncode == 0
