"""One side of a pair: a checkpoint with its prefix taken off, and a sample of each of its rows as one number."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from loraforge.algebra.dtypes import FACTORS, numpy_type
from loraforge.errors import FileError
from loraforge.files.opening import open_tensors, tensor_files
from loraforge.files.shards import opened
from loraforge.files.tensorfile import TensorFile, TensorInfo
from loraforge.text import command, listed
from loraforge.threads import in_order

if TYPE_CHECKING:
    from loraforge.algebra.lora import Array
    from loraforge.base.route import Piece

PREFIXES = ("model.diffusion_model.", "diffusion_model.", "net.")
"""What the names of a transformer begin with in some files. With the first, other components may stand beside it."""
_NARROW = ("BF16", "F16", "F32", "F64")
"""Element types, that of the fewest digits first: both sides are rounded to the first of them that one side has."""
_SAMPLE = 32
"""Elements of a row that tell it from others before all of it is compared."""
_PIECE = 1 << 23
"""Bytes compared at once."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The tensors of one side by their names without the prefix, less those that are dropped."""

    path: Path
    file: TensorFile
    prefix: str
    keys: tuple[str, ...]
    modules: dict[str, list[str]]
    """Module path -> its keys."""
    dropped: dict[str, str]
    """Key -> the reason that was given for leaving it out."""
    others: tuple[str, ...]
    """The components beside the transformer."""

    def info(self, key: str) -> TensorInfo:
        return self.file.tensors[self.prefix + key]

    def length(self, key: str) -> int:
        """Rows of a matrix, elements of a vector."""
        return (*self.info(key).shape, 1)[0]

    def is_matrix(self, key: str) -> bool:
        return len(self.info(key).shape) > 1

    def holds_numbers(self, key: str) -> bool:
        return self.info(key).dtype in FACTORS and 0 not in self.info(key).shape

    def digest(self) -> str:
        """sha256 over names, element types and shapes, in order."""
        table = [[key, info.dtype, [*info.shape]] for key, info in sorted(self.file.tensors.items())]
        return hashlib.sha256(json.dumps(table).encode()).hexdigest()

    def hashes(self, key: str, dtype: str) -> Array:
        """A number per row, uint64 [rows], that equal rows share; a vector counts as one row. Rounds to `dtype`."""
        shape = self.info(key).shape
        rows = self.file[self.prefix + key].reshape(shape[0] if len(shape) > 1 else 1, -1)
        columns = np.unique(np.linspace(0, rows.shape[1] - 1, _SAMPLE).astype(np.int64))
        sample = _bits(rows[:, columns], dtype)
        weights = np.random.default_rng(crc32(repr(shape[1:] or [*shape]).encode()))
        product = sample.astype(np.uint64) * weights.integers(1, 1 << 63, sample.shape[1], dtype=np.uint64)
        product ^= product >> np.uint64(29)
        self.file.release(self.prefix + key)
        hashes: Array = product.sum(1, dtype=np.uint64) + weights.integers(1 << 63, dtype=np.uint64)
        return hashes


def open_checkpoint(path: Path, drop: Sequence[tuple[str, str]] = ()) -> Checkpoint:
    """Open a file, an index of shards, or a folder that holds one of them. `drop`: patterns of keys, and the reasons.

    Raises FileError if there is no such file, if a folder holds several, and if the weights are quantised.
    """
    files = tensor_files(path) if path.is_dir() else [path]
    if len(files) != 1:
        text = f"{path} holds {listed([file.name for file in files], 5) or 'no tensor file'}: give the file."
        raise FileError(text, command("ls", "-l", path))
    file, _ = opened(files[0], open_tensors)
    if odd := sorted(k for k, info in file.tensors.items() if info.dtype[1:] in _QUANTISED and len(info.shape) > 1):
        text = f"{path} is quantised ({listed(odd, 3)}): rounded rows cannot be compared. Give bf16, fp16 or fp32."
        raise FileError(text, command("loraforge", "inspect", "--skeleton", files[0]))
    prefixes = [p for p in PREFIXES if all(key.startswith(p) for key in file.tensors)]
    prefixes += [p for p in PREFIXES[:1] if any(key.startswith(p) for key in file.tensors)]
    prefix = (*prefixes, "")[0]
    every = sorted((key.removeprefix(prefix) for key in file.tensors if key.startswith(prefix)), key=_in_order)
    dropped = {key: why for key in every for pattern, why in drop if fnmatchcase(key, pattern)}
    keys, modules = tuple(key for key in every if key not in dropped), defaultdict[str, list[str]](list)
    for key in keys:
        modules[key.rpartition(".")[0]].append(key)
    others = sorted({key.partition(".")[0] for key in file.tensors if not key.startswith(prefix)})
    return Checkpoint(path, file, prefix, keys, modules, dropped, tuple(others))


_QUANTISED = ("8", "8_E4M3", "8_E5M2")


def _in_order(path: str) -> list[tuple[int, str]]:
    """A sort key that puts block 2 before block 10."""
    return [(int(token), "") if token.isdecimal() else (-1, token) for token in path.split(".")]


def hash_rows(a: Checkpoint, b: Checkpoint) -> tuple[dict[str, Array], dict[str, Array]]:
    """Key -> a number per row, of both sides, rounded to the narrowest element type that one of them has."""
    sides = [[key for key in side.keys if side.holds_numbers(key)] for side in (a, b)]
    types = {side.info(key).dtype for side, keys in zip((a, b), sides, strict=True) for key in keys}
    dtype = next((name for name in _NARROW if name in types), "F32")
    tables = []
    for side, keys in zip((a, b), sides, strict=True):
        with in_order(partial(side.hashes, dtype=dtype), keys) as results:
            tables.append(dict(zip(keys, results, strict=True)))
    return tables[0], tables[1]


def equal(a: Checkpoint, pieces: Iterable[Piece], b: Checkpoint, key: str) -> bool:
    """Whether these rows of A, stacked, begin a tensor of B, in each bit of the narrower of their types."""
    first = 0
    for piece in pieces:
        if not _same_rows(a, piece, b, key, first):
            return False
        first += piece.stop - piece.start
    return True


def _same_rows(a: Checkpoint, piece: Piece, b: Checkpoint, key: str, first: int) -> bool:
    left = a.file[a.prefix + piece.key].reshape(a.length(piece.key), -1)[piece.start : piece.stop]
    right = b.file[b.prefix + key].reshape(b.length(key), -1)[first : first + len(left)]
    dtype = min(a.info(piece.key).dtype, b.info(key).dtype, key=_NARROW.index)
    step = max(1, _PIECE // max(1, left[:1].nbytes))
    same = left.shape == right.shape and all(
        np.array_equal(_bits(left[n : n + step], dtype), _bits(right[n : n + step], dtype))
        for n in range(0, len(left), step)
    )
    a.file.release(a.prefix + piece.key)
    b.file.release(b.prefix + key)
    return same


def _bits(numbers: Array, dtype: str) -> Array:
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(numbers.astype(numpy_type(dtype), copy=False))
    return rounded.view(f"u{rounded.itemsize}")
