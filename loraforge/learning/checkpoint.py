"""One side of a pair: a checkpoint with its prefix taken off, and a sample of each of its rows as one number."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from loraforge.algebra.dtypes import FACTORS, numpy_type
from loraforge.errors import FileError, names_in
from loraforge.files.opening import open_tensors, tensor_files
from loraforge.files.shards import opened
from loraforge.files.tensorfile import TensorFile, TensorInfo
from loraforge.text import listed

if TYPE_CHECKING:
    from loraforge.algebra.lora import Array
    from loraforge.base.route import Piece

_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "net.")
"""What the names of a transformer begin with in some files. With the first, other components may stand beside it."""
_FACTOR = re.compile(r"(?:diffusion_model\.|transformer\.)?(.+)\.lora(?:_B|_up|\.up)\.weight")
"""The factor of an adapter whose rows are those of the weight that it adds to; the module path is in the group."""
_LORA = re.compile(r"\.(lora|alpha)")
"""What every tensor of an adapter has in its name."""
NARROW = ("BF16", "F16", "F32", "F64")
"""Element types, that of the fewest digits first: both sides are rounded to the first of them that one side has."""
_SAMPLE = 32
"""Elements of a row that tell it from others before all of it is compared."""
_PIECE = 1 << 23
"""Bytes compared at once."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of one side. Of an adapter, each factor B stands for the weight that it adds to."""

    path: Path
    file: TensorFile
    names: dict[str, str]
    """Key without prefix -> its name in the file."""
    modules: dict[str, list[str]]
    """Module path -> its keys, the matrices first."""
    dropped: dict[str, str]
    """Key -> the reason that was given for leaving it out."""
    others: list[str]
    """What stands beside the transformer, or beside the adapter: the first words of the names."""

    def info(self, key: str) -> TensorInfo:
        return self.file.tensors[self.names[key]]

    def is_matrix(self, key: str) -> bool:
        return len(self.info(key).shape) > 1

    def holds_numbers(self, key: str) -> bool:
        return self.info(key).dtype in FACTORS and 0 not in self.info(key).shape

    def length(self, key: str) -> int:
        """Rows of a matrix, elements of a vector."""
        return (*self.info(key).shape, 1)[0]

    def rows(self, key: str) -> Array:
        return self.file[self.names[key]].reshape(self.length(key), -1)

    def hashes(self, key: str, dtype: str) -> Array:
        """A number per row, uint64 [rows], that equal rows share; a vector counts as one row. Rounds to `dtype`."""
        rows, shape = self.rows(key) if self.is_matrix(key) else self.rows(key).T, self.info(key).shape
        columns = np.unique(np.linspace(0, rows.shape[1] - 1, _SAMPLE).astype(np.int64))
        sample = _bits(rows[:, columns], dtype)
        weights = np.random.default_rng(crc32(repr(shape[1:] or [*shape]).encode()))
        product = sample.astype(np.uint64) * weights.integers(1, 1 << 63, sample.shape[1], dtype=np.uint64)
        product ^= product >> np.uint64(29)
        self.file.release(self.names[key])
        hashes: Array = product.sum(1, dtype=np.uint64) + weights.integers(1 << 63, dtype=np.uint64)
        return hashes


def open_checkpoint(path: Path, drop: Sequence[tuple[str, str]] = ()) -> Checkpoint:
    """Open a file, an index of shards, or a folder that holds one of them. `drop`: patterns of keys, and the reasons.

    Raises FileError if there is no such file, if a folder holds several, and if the weights are quantised.
    """
    files = tensor_files(path) if path.is_dir() else [path]
    files = [file for file in files if ".safetensors" in file.name.lower()] or files
    if len(files) != 1:
        text = f"{path} holds {listed([file.name for file in files], 5) or 'no tensor file'}: give the file."
        raise FileError(text)
    file, _ = opened(files[0], open_tensors)
    if odd := sorted(key for key, info in file.tensors.items() if "8" in info.dtype and len(info.shape) > 1):
        text = f"{path} is quantised ({listed(odd, 3)}): rounded rows cannot be compared. Give bf16, fp16 or fp32."
        raise FileError(text, names_in(files[0]))
    names = {f"{match[1]}.weight": key for key in file.tensors if (match := _FACTOR.fullmatch(key))}
    prefixes = [p for p in _PREFIXES if all(key.startswith(p) for key in file.tensors)]
    prefixes += [p for p in _PREFIXES[:1] if any(key.startswith(p) for key in file.tensors)]
    prefix = (*prefixes, "")[0]
    strange = [key for key in file.tensors if (not _LORA.search(key) if names else not key.startswith(prefix))]
    others = {key.partition(".")[0] for key in strange}
    names = names or {key.removeprefix(prefix): key for key in file.tensors if key.startswith(prefix)}
    dropped = {key: why for key in names for pattern, why in drop if fnmatchcase(key, pattern)}
    table = defaultdict[str, list[str]](list)
    for key in sorted(names.keys() - dropped, key=lambda key: (-len(file.tensors[names[key]].shape), key)):
        table[key.rpartition(".")[0]].append(key)
    modules = dict(sorted(table.items()))
    names = {key: names[key] for keys in modules.values() for key in keys}
    return Checkpoint(path, file, names, modules, dropped, sorted(others))


def equal(a: Checkpoint, pieces: Iterable[Piece], b: Checkpoint, key: str) -> bool:
    """Whether these rows of A, stacked, are a tensor of B, in each bit of the narrower of their types."""
    first, whole = 0, b.rows(key)
    for piece in pieces:
        left = a.rows(piece.key)[piece.start : piece.stop]
        right = whole[first : first + len(left)]
        dtype = min(a.info(piece.key).dtype, b.info(key).dtype, key=NARROW.index)
        step = max(1, _PIECE // max(1, left[:1].nbytes))
        spans = (slice(n, n + step) for n in range(0, len(left), step))
        if left.shape != right.shape or not all((_bits(left[n], dtype) == _bits(right[n], dtype)).all() for n in spans):
            return False
        a.file.release(a.names[piece.key])
        first += len(left)
    b.file.release(b.names[key])
    return first == len(whole)


def _bits(numbers: Array, dtype: str) -> Array:
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(numbers.astype(numpy_type(dtype), copy=False))
    return rounded.view(f"u{rounded.itemsize}")
