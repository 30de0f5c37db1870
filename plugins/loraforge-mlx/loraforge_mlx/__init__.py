"""FLUX adapters of MLX's own trainer for loraforge: transposed factors, so that a table of names cannot say it all.

Its layer computes `y = W x + scale * (x @ lora_a) @ lora_b` with lora_a [inputs, rank] and lora_b [rank, outputs].
The scale is 1.0, which no option changes and no file records. Its loader takes the layers to adapt from the header: all
linear layers of the last `lora_blocks` blocks, or of all blocks for -1. What is in the file of other layers is dropped.

Sources: ml-explore/mlx-examples flux/dreambooth.py save_adapters (names, header, file names), flux/flux/lora.py
LoRALinear (shapes, scale), flux/flux/flux.py linear_to_lora_layers, flux/txt2image.py load_adapter; all as of
2025-03-24, commit c52cc74. MLX 0.32.4 loads no F64 from a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from importlib.resources import files
from typing import Any

import numpy as np

from loraforge import hookimpl
from loraforge.adapter.adapter import Adapter
from loraforge.algebra.lora import Array, Delta
from loraforge.errors import ConversionError, adding
from loraforge.files.tensorfile import TensorFile, TensorInfo
from loraforge.format.data import DataFormat, DataWriter
from loraforge.format.protocol import Target
from loraforge.scale.rule import Choice

TABLE = {
    "name": "mlx",
    "summary": "MLX's FLUX trainer (mlx-examples): final_adapters.safetensors, factors transposed",
    "layouts": {"flux": "mlx"},
    "spellings": [{"A": ".lora_a", "B": ".lora_b"}],
    "file": "final_adapters.safetensors",
    "load": "python txt2image.py --model dev --adapter '{path}' 'a prompt'   # of mlx-examples/flux",
    "not_with": "pipe.load_lora_weights, which knows no lora_a: it warns and loads nothing. Convert --to diffusers",
}


class MlxWriter(DataWriter):
    """Writes what the trainer writes; the scale is folded in."""

    def encode(self, path: str, delta: Delta) -> Iterator[tuple[str, Array]]:
        for key, factor in super().encode(path, delta):
            yield key, factor.T

    def header(self, target: Target) -> dict[str, str]:
        """All blocks: a layer without tensors keeps the lora_b of zeros that it is made with.

        Raises ConversionError for float64, which MLX does not load.
        """
        if any(w.B.dtype == np.float64 for delta in target.outlines.values() for w in delta):
            raise ConversionError("MLX loads no float64 from a file.", adding("--dtype", "fp32"))
        return {"lora_rank": str(max(target.ranks.values())), "lora_blocks": "-1"}


class MlxFormat(DataFormat):
    """Reads and writes the adapters of mlx-examples/flux."""

    def __init__(self) -> None:
        super().__init__(TABLE)
        self.writer = partial(MlxWriter, self)

    def read(self, file: TensorFile, choice: Choice) -> Adapter:
        return super().read(turned(file), choice)


def turned(file: TensorFile) -> TensorFile:
    """The same file with its factors as the core has them, [rank, inputs] and [rows, rank]. Nothing is copied."""

    def turn(key: str, info: TensorInfo) -> TensorInfo:
        if len(info.shape) != 2 or not key.endswith((".lora_a", ".lora_b")):  # what is wrong with it is told later
            return info
        strides = info.strides or (info.shape[1], 1)
        return info._replace(shape=info.shape[::-1], strides=strides[::-1])

    return replace(file, tensors={key: turn(key, info) for key, info in file.tensors.items()})


@hookimpl
def loraforge_formats() -> Iterable[Any]:
    """The one format."""
    return [MlxFormat()]


@hookimpl
def loraforge_architectures() -> Iterable[Any]:
    """FLUX's names in MLX."""
    return [files(__name__) / "mlx.toml"]
