"""`layouts probe`: a checkpoint of the same names and shapes whose rows all differ, for converters to be run on."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from pathlib import Path
from zlib import crc32

import ml_dtypes
import numpy as np

from loraforge.algebra.dtypes import FACTORS, numpy_type
from loraforge.files.destination import destination, replacing
from loraforge.files.safetensors import write_safetensors
from loraforge.files.tensorfile import Chunk, TensorInfo
from loraforge.learning.checkpoint import open_checkpoint

_PIECE = 1 << 22
"""Numbers made at once."""


def probe(source: Path, out: Path, *, adapter: bool = False, rank: int = 6, force: bool = False) -> int:
    """Write the probe of a checkpoint as safetensors, and return its number of tensors. Same source, same bytes.

    Its numbers are bfloat16 between 2**-10 and 2**6, so that no element type rounds them. What is no weight (a counter,
    a mask) stays as it is. With `adapter`: a LoRA of this rank on every matrix instead, behind `diffusion_model.`.
    Raises OutputError if `out` cannot be written, or exists, unless `force`.
    """
    side = open_checkpoint(source)
    header = {key: (info.dtype, info.shape) for key, info in side.file.tensors.items()}
    if adapter:
        weights = [(k, side.info(k)) for k in side.names if k.endswith(".weight") and side.is_matrix(k)]
        header = {}
        for stem, info in ((f"diffusion_model.{key.removesuffix('.weight')}.lora", info) for key, info in weights):
            header[f"{stem}_A.weight"] = info.dtype, (rank, *info.shape[1:])
            header[f"{stem}_B.weight"] = info.dtype, (info.shape[0], rank, *(1 for _ in info.shape[2:]))

    def numbers(key: str) -> Iterator[Chunk]:
        dtype, shape = header[key]
        random = np.random.default_rng(crc32(key.encode()))
        for start in range(0, prod(shape), _PIECE) if dtype in FACTORS else ():
            bits = random.integers(0, 1 << 16, min(_PIECE, prod(shape) - start), np.uint16)
            bits = (bits & 0x87FF) + np.uint16((127 - 10) << 7)  # sign, exponent's four low bits, fraction's seven
            yield bits.view(ml_dtypes.bfloat16).astype(numpy_type(dtype)).view(np.uint8).data
        if dtype not in FACTORS:
            yield side.file.raw(key)

    target = destination(out, "probe", ["probe.safetensors"], [source], force=force)
    with replacing(target, sum(TensorInfo(*entry, 0).nbytes for entry in header.values()), force=force) as folder:
        write_safetensors(folder / target.names[0], header, ((key, numbers(key)) for key in header), {"format": "pt"})
    return len(header)
