"""Real key names at real depth: all 30 and 42 layers, one layer, a subset, every rank."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.oracle import updates
from helpers.sat import PREFIX, lora_tensors, write_run
from safetensors import safe_open

import loraforge


def wanted(tensors: dict[str, torch.Tensor], scaling: float) -> dict[str, np.ndarray]:
    """What SAT computes, written without the code under test: lora2.py's forward, one weight at a time."""
    names = {
        ("query_key_value", "0"): "to_q",
        ("query_key_value", "1"): "to_k",
        ("query_key_value", "2"): "to_v",
        ("dense", "0"): "to_out.0",
    }
    out = {}
    for key, b in tensors.items():
        if ".matrix_B." in key:
            _, layer, _, module, _, part = key.removeprefix(f"{PREFIX}transformer.").split(".")
            a = tensors[key.replace("matrix_B", "matrix_A")]
            out[f"transformer_blocks.{layer}.attn1.{names[module, part]}"] = (b.double() @ a.double() * scaling).numpy()
    return out


@pytest.mark.parametrize(
    ("layers", "tensors"),
    [(range(30), 240), (range(42), 336), ([7], 8), ([0, 1, 10, 11, 41], 40)],
    ids=["2b", "5b", "one", "some"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_layers(layers, tensors: int, dtype: torch.dtype, tmp_path: Path) -> None:
    source = lora_tensors(layers, hidden=64, rank=4, dtype=dtype)
    assert len(source) == tensors
    report = loraforge.convert(
        write_run(tmp_path, source, lora={"r": 4}), to="diffusers", out=tmp_path / "out.safetensors"
    )
    with safe_open(tmp_path / "out.safetensors", framework="numpy") as file:
        assert len(file.keys()) == tensors
    want = wanted(source, 0.25)
    tolerance = {torch.float32: 0, torch.bfloat16: 0, torch.float16: 1e-3}[dtype]
    if dtype is torch.bfloat16:
        pytest.importorskip("ml_dtypes")
    got = updates(tmp_path / "out.safetensors")
    assert got.keys() == want.keys()
    for path in want:
        assert np.linalg.norm(got[path] - want[path]) <= tolerance * np.linalg.norm(want[path])
    assert report.worst_error is not None
    assert report.worst_error <= max(tolerance, 1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3, 5, 16, 96, 128, 255, 256])
def test_ranks(rank: int, tmp_path: Path) -> None:
    source = lora_tensors([0], hidden=64, rank=rank)
    report = loraforge.convert(
        write_run(tmp_path, source, lora={"r": rank}), to="diffusers", out=tmp_path / "out.safetensors"
    )
    assert report.scalings == (1 / rank,)
    power_of_two = rank & (rank - 1) == 0
    assert {step.kind for step in report.steps} == {"exact" if power_of_two else "rounded"}
    for path, want in wanted(source, 1 / rank).items():
        error = np.linalg.norm(updates(tmp_path / "out.safetensors")[path] - want) / np.linalg.norm(want)
        assert error <= (0 if power_of_two else 1e-7)
