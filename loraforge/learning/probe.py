"""`layouts probe`: a checkpoint of the same names and shapes whose rows all differ, for converters to be run on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import ml_dtypes
import numpy as np

from loraforge.algebra.dtypes import FACTORS, numpy_type
from loraforge.files.destination import destination, replacing
from loraforge.files.safetensors import write_safetensors
from loraforge.files.tensorfile import Chunk, TensorFile
from loraforge.learning.checkpoint import open_checkpoint

_PIECE = 1 << 22
"""Numbers made at once."""


def probe(source: Path, out: Path, *, force: bool = False) -> int:
    """Write the probe of a checkpoint as safetensors, and return its number of tensors. Same source, same bytes.

    Its numbers are bfloat16 between 2**-10 and 2**6, so that no element type rounds them. What is no weight (a counter,
    a mask) stays as it is. Raises OutputError if `out` cannot be written, or exists, unless `force`.
    """
    file = open_checkpoint(source).file
    place = destination(out, "probe", ["probe.safetensors"], [source], force=force)
    header = {key: (info.dtype, info.shape) for key, info in file.tensors.items()}
    with replacing(place, sum(info.nbytes for info in file.tensors.values()), force=force) as folder:
        tensors = ((key, _numbers(file, key)) for key in header)
        write_safetensors(folder / place.names[0], header, tensors, {"format": "pt"})
    return len(header)


def _numbers(file: TensorFile, key: str) -> Iterator[Chunk]:
    info = file.tensors[key]
    if info.dtype not in FACTORS:
        yield file.raw(key)
        return
    random = np.random.default_rng(crc32(key.encode()))
    count = int(np.prod(info.shape, dtype=np.int64))
    for start in range(0, count, _PIECE):
        bits = random.integers(0, 1 << 16, min(_PIECE, count - start), np.uint16)
        bits = (bits & 0x87FF) + np.uint16((127 - 10) << 7)  # sign, four bits of the exponent, seven of the fraction
        yield bits.view(ml_dtypes.bfloat16).astype(numpy_type(info.dtype)).view(np.uint8).data
