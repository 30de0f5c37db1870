"""Magnitudes and convolutions that are not what their module needs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hostile.builders import HIDDEN, RANK, checkpoint, numbers, tensor
from hostile.peft_builders import (
    A4,
    B4,
    CONV,
    LENGTHS,
    MANY,
    MODULE,
    NAMES,
    ROOT,
    A,
    B,
    Tensors,
    all_named,
    cases,
    config,
    lora,
    peft,
)
from hostile.pickles import call, pickled

VECTOR = f"{ROOT}{MODULE}.lora_magnitude_vector"


def spoiled(value: float) -> np.ndarray:
    lengths = LENGTHS.copy()
    lengths[5] = value
    return lengths


MAGNITUDES = {
    "NaN": (spoiled(np.nan), "NaN"),
    "infinity": (spoiled(np.inf), "infinity"),
    "NaN in float16": (spoiled(np.nan).astype("float16"), "NaN"),
    "one too few": (LENGTHS[1:], "one per row"),
    "one too many": (np.append(LENGTHS, LENGTHS[:1]), "one per row"),
    "a column": (LENGTHS.reshape(-1, 1), "one per row"),
    "as of a convolution": (LENGTHS.reshape(1, -1, 1, 1), "one per row"),
    "no dimension": (numbers(), "one per row"),
    "none": (numbers(0), "one per row"),
    "whole numbers": (LENGTHS.astype("int64"), "I64"),
}


@pytest.mark.parametrize(("lengths", "fragment"), **cases(MAGNITUDES))
@pytest.mark.parametrize("target", ["diffusers", "peft"])
def test_magnitudes(tmp_path: Path, refused, target: str, lengths: np.ndarray, fragment: str):
    folder = peft(tmp_path / "x", lora() | {VECTOR: lengths}, config(use_dora=True))
    refused([folder, "--to", target], fragment, "lora_magnitude_vector")


@pytest.mark.parametrize("use_dora", [False, None, 0])
def test_magnitudes_without_use_dora(tmp_path: Path, refused, use_dora: Any):
    refused(peft(tmp_path / "x", lora() | {VECTOR: LENGTHS}, config(use_dora=use_dora)), "use_dora", "magnitudes")


@pytest.mark.parametrize("use_dora", [True, "false", 1])
def test_use_dora_without_magnitudes(tmp_path: Path, refused, use_dora: Any):
    refused(peft(tmp_path / "x", said=config(use_dora=use_dora)), "use_dora", "magnitudes")


def test_magnitudes_have_no_place_in_sat(tmp_path: Path, refused):
    folder = peft(tmp_path / "x", lora() | {VECTOR: LENGTHS}, config(use_dora=True))
    refused([folder, "--to", "sat", "--lora-only"], "DoRA")


def repeated(stride: int) -> bytes:
    """A torch file whose magnitudes are one number, shown for every row; healthy where the stride is 1."""
    one = tensor("0", HIDDEN, (HIDDEN,), (stride,))
    return checkpoint(dict(lora()) | {VECTOR: one}, {"data/0": LENGTHS.tobytes()})


def test_magnitudes_that_are_one_number(tmp_path: Path, refused, cli, out: Path):
    folder = peft(tmp_path / "x", said=config(use_dora=True))
    (folder / NAMES[0]).unlink()
    (folder / "adapter_model.bin").write_bytes(repeated(0))
    refused(folder, "lora_magnitude_vector")
    (folder / "adapter_model.bin").write_bytes(repeated(1))
    assert cli("convert", folder, "--to", "diffusers", "-o", out).exit_code == 0


def test_magnitudes_that_are_one_number_are_told(tmp_path: Path, refused):
    folder = peft(tmp_path / "x", said=config(use_dora=True))
    (folder / NAMES[0]).unlink()
    (folder / "adapter_model.bin").write_bytes(repeated(0))
    refused(folder, "repeat")


def test_magnitudes_that_overflow(tmp_path: Path, refused_alone):
    folder = peft(tmp_path / "x", lora() | {VECTOR: LENGTHS * 1e6}, config(use_dora=True))
    refused_alone([folder, "--dtype", "fp16"], "overflow")


def test_a_magnitude_of_0_among_others(tmp_path: Path, cli, out: Path):
    lengths = np.arange(HIDDEN, dtype="float32") / 3
    folder = peft(tmp_path / "x", lora() | {VECTOR: lengths}, config(use_dora=True))
    result = cli("convert", folder, "--to", "diffusers", "-o", out, "--dtype", "fp16")
    assert (result.exit_code, "Warning" in result.stderr) == (0, False), result.output


# convolutions


def pair(module: str, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    return {f"{ROOT}{module}.lora_A.weight": a, f"{ROOT}{module}.lora_B.weight": b}


CONVS = {
    "B is not 1x1": (pair(CONV, A4, numbers(HIDDEN, RANK, 2, 2)), "not those of one module"),
    "B is 1x2": (pair(CONV, A4, numbers(HIDDEN, RANK, 1, 2)), "not those of one module"),
    "B is flat": (pair(CONV, A4, B), "not those of one module"),
    "A is flat": (pair(CONV, A, B4), "not those of one module"),
    "three dimensions": (pair(CONV, numbers(RANK, 2, 2), numbers(HIDDEN, RANK, 1)), "shape"),
    "five dimensions": (pair(CONV, numbers(RANK, 2, 1, 2, 2), numbers(HIDDEN, RANK, 1, 1, 1)), "shape"),
    "rank 0": (pair(CONV, numbers(0, 2, 2, 2), numbers(HIDDEN, 0, 1, 1)), "shape"),
    "a kernel of no width": (pair(CONV, numbers(RANK, 2, 0, 2), B4), "shape"),
    "no channels": (pair(CONV, numbers(RANK, 0, 2, 2), B4), "shape"),
    "ranks unlike": (pair(CONV, numbers(RANK + 1, 2, 2, 2), B4), "rank"),
    "whole numbers": (pair(CONV, A4.astype("int64"), B4), "I64"),
    "NaN": (pair(CONV, A4 * np.nan, B4), "NaN"),
    "magnitudes of a linear layer": (
        pair(CONV, A4, B4) | {f"{ROOT}{CONV}.lora_magnitude_vector": LENGTHS},
        "lora_magnitude_vector",
    ),
    "in a linear layer": (pair(MODULE, A4, B4), "to_q"),
    "in a modulation": (pair("transformer_blocks.0.norm1.linear", A4, numbers(2 * HIDDEN, RANK, 1, 1)), "norm1"),
}


@pytest.mark.parametrize(("tensors", "fragment"), **cases(CONVS))
def test_a_convolution(tmp_path: Path, refused, tensors: Tensors, fragment: str):
    said = config(use_dora=any("magnitude" in key for key in tensors), target_modules="all-linear")
    refused(peft(tmp_path / "x", tensors, said), fragment)


FLAT = {
    "rank 0": pair(MODULE, numbers(0, HIDDEN), numbers(HIDDEN, 0)),
    "three dimensions": pair(MODULE, numbers(RANK, HIDDEN, 1), numbers(HIDDEN, RANK, 1)),
    "A without B": {f"{ROOT}{MODULE}.lora_A.weight": A},
    "A and B exchanged": pair(MODULE, numbers(HIDDEN, 3), numbers(4, HIDDEN + 1)),
    "whole numbers": pair(MODULE, A.astype("int64"), B),
}


@pytest.mark.parametrize("tensors", **cases(FLAT))
def test_a_linear_layer(tmp_path: Path, refused, tensors: Tensors):
    refused(peft(tmp_path / "x", tensors), "to_q")


def test_a_torch_file_that_names_a_function(tmp_path: Path, refused_alone):
    folder = peft(tmp_path / "x")
    (folder / NAMES[0]).unlink()
    (folder / "adapter_model.bin").write_bytes(checkpoint(pickled({"x": call("os.mkdir", "executed")})))
    refused_alone(folder)
    assert not Path("executed").exists()


def test_folders_as_they_should_be_convert(tmp_path: Path, cli, out: Path):
    """What the cases above spoil is healthy."""
    patterns = {"rank_pattern": {"to_q": RANK}, "alpha_pattern": {r"^transformer_blocks\.0\.attn1\.to_q": 3}}
    healthy = {
        "plain": peft(tmp_path / "plain"),
        "patterns": peft(tmp_path / "patterns", said=config(**patterns)),
        "regular": peft(tmp_path / "regular", said=config(target_modules=r".*\.to_[qkv]")),
        "named": peft(tmp_path / "named", all_named(ROOT, "default")),
        "dora": peft(tmp_path / "dora", lora() | {VECTOR: LENGTHS}, config(use_dora=True)),
        "conv": peft(tmp_path / "conv", pair(CONV, A4, B4)),
        "many": peft(tmp_path / "many", MANY, config(target_modules=["to_q", "to_k", "to_v"])),
    }
    for name, folder in healthy.items():
        result = cli("convert", folder, "--to", "diffusers", "-o", out / name)
        assert result.exit_code == 0, result.output
