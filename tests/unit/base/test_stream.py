"""Pieces of base weights, from files whose tensors need not be contiguous."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from loraforge.base.stream import Engine, NewTensor, Part, Shard, write_base
from loraforge.errors import ConversionError
from loraforge.files.opening import open_tensors
from loraforge.fusion.with_numpy import NumpyBackend


def written(values: torch.Tensor, start: int, stop: int, dtype: str, folder: Path) -> np.ndarray:
    """Rows of a tensor of a checkpoint, as they come out of a written file."""
    torch.save({"module": {"x": values}}, folder / "x.pt")
    source, _ = open_tensors(folder / "x.pt")
    part = Part(source, "x", start, stop)
    shard = Shard("safetensors", (NewTensor("y", dtype, (stop - start, values.shape[1]), (part,)),), {})
    write_base(folder / "y.safetensors", shard, Engine(NumpyBackend(), "cpu"), lambda _: None)
    return load_file(folder / "y.safetensors")["y"]


@pytest.mark.parametrize("dtype", ["F32", "F16"])
@pytest.mark.parametrize("transposed", [False, True])
def test_rows_come_out_as_they_are(transposed: bool, dtype: str, tmp_path: Path) -> None:
    values = torch.arange(12.0).reshape(4, 3)
    values = values.t() if transposed else values
    assert written(values, 1, 3, dtype, tmp_path).tolist() == values[1:3].tolist()


@pytest.mark.parametrize("transposed", [False, True])
def test_nan_is_refused(transposed: bool, tmp_path: Path) -> None:
    values = torch.full((3, 3), torch.nan)
    with pytest.raises(ConversionError, match="x of the base model contains NaN"):
        written(values.t() if transposed else values, 0, 3, "F32", tmp_path)
