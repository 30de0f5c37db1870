"""Tensor files: names and shapes first, tensors on demand as views of memory maps."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from loraforge.algebra.dtypes import BYTES, FLOATS, numpy_type
from loraforge.algebra.lora import Array
from loraforge.files.mapped import FileMap
from loraforge.numbered import Kinds, by_words

KEY = "loraforge"
"""The key of our entry on a file's origin (schemas/provenance.schema.json; of base weights, fused.schema.json)."""

Chunk = bytes | bytearray | memoryview
"""A piece of a tensor's raw little-endian bytes."""


class TensorInfo(NamedTuple):
    """Where a tensor lies in its file."""

    dtype: str
    """Its name in safetensors: F16, BF16, F32, ..."""
    shape: tuple[int, ...]
    offset: int
    """Position of element 0 in the file, in bytes."""
    strides: tuple[int, ...] | None = None
    """In elements; None if the tensor is contiguous."""
    map: int = 0
    """Index of its file in `TensorFile.maps`."""

    @property
    def repeats(self) -> bool:
        """Whether some elements share memory, as in an expanded tensor."""
        if self.strides is None:
            return False
        used = sorted((stride, n) for n, stride in zip(self.shape, self.strides, strict=False) if n > 1)
        reach = accumulate(((n - 1) * stride for stride, n in used), initial=1)
        return any(stride < most for (stride, _), most in zip(used, reach, strict=False))

    @property
    def nbytes(self) -> int:
        return BYTES[self.dtype] * math.prod(self.shape)


@dataclass(slots=True)
class TensorFile:
    """Named tensors in one file or in several. Indexing gives a read-only view; nothing is read before that."""

    path: Path
    """The file; for several files, the path that one file with all tensors would have."""
    kind: str
    """`safetensors` or `torch`."""
    size: int
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The metadata of the header; for a torch file, our own entry if its outermost dictionary has one."""
    tops: tuple[str, ...] = ()
    """Keys of the outermost dictionary of a torch file."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """The integers in it, like `mp_world_size`."""
    wrappers: tuple[str, ...] = ()
    """The keys that lead from there to the tensors (`module`)."""
    opaque: Mapping[str, str] = field(default_factory=dict)
    """Keys of values that are not plain tensors -> the name of their type."""
    globals: tuple[str, ...] = ()
    """Dotted names in its pickle. None of them was imported."""
    dropped: tuple[str, ...] = ()
    """Keys that `--drop` left out of `tensors`."""
    within: int = 0
    """Number of tensors in the model that these were taken out of; 0 if the file has only these."""
    maps: tuple[FileMap, ...] = ()
    """The files with the tensors; the one at `path` if none is given."""
    whole: Mapping[str, TensorInfo] = field(default_factory=dict)
    """All of its tensors, also those that were left out of `tensors` since."""
    sums: dict[str, int] = field(default_factory=dict)
    """Key -> CRC-32, of tensors that were compared with what a header says of them."""
    _kinds: Kinds = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.maps, self.whole = self.maps or (FileMap(self.path),), self.whole or self.tensors

    @property
    def kinds(self) -> Kinds:
        """Its keys by their words."""
        self._kinds = self._kinds or by_words(self.tensors)
        return self._kinds

    @property
    def absent(self) -> int:
        """Bytes of tensors that were not fetched from the Hub."""
        return sum(part.absent for part in self.maps)

    @property
    def spread(self) -> bool:
        """Whether the tensors are in other files than `path`."""
        return [part.path.name for part in self.maps] != [self.path.name]

    def raw(self, key: str) -> memoryview:
        """The bytes of a contiguous tensor. Raises FileError if they were not fetched."""
        info = self.tensors[key]
        return memoryview(self.maps[info.map].memory())[info.offset : info.offset + info.nbytes]

    def __getitem__(self, key: str) -> Array:
        return next(self.views((key,)))

    def views(self, keys: Iterable[str]) -> Iterator[Array]:
        """The tensors with these keys. Each file is compared once with what it was when its header was read."""
        memory = cache(lambda part: self.maps[part].memory())
        for info in map(self.tensors.__getitem__, keys):
            dtype = numpy_type(info.dtype)
            if self.maps[info.map].absent:  # shapes without numbers: a computation gives NaN, which every check refuses
                none = np.asarray(math.nan if info.dtype in FLOATS else 0).astype(dtype)
                yield np.broadcast_to(none, info.shape)
            else:
                strides = info.strides and [stride * dtype.itemsize for stride in info.strides]
                yield np.ndarray(info.shape, dtype, memory(info.map), info.offset, strides)

    def scatter(self) -> None:
        """Tell the system that reads will be far apart, so that it does not read ahead."""
        for memory in (part.memory() for part in self.maps):
            if hasattr(memory, "madvise"):
                memory.madvise(mmap.MADV_RANDOM)

    def release(self, key: str | None = None) -> None:
        """Release the pages read so far, or those of one tensor. Views stay valid; a later access reads again."""
        info = self.tensors[key] if key is not None else None
        if info is None:
            for part in self.maps:
                part.release()
        elif info.strides is None and info.nbytes:
            start = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
            self.maps[info.map].release(start, info.offset + info.nbytes - start)


RELEASE_EVERY = 16
"""Tensors or modules after which a loop releases the pages it has read."""

HEADER_LIMIT = 100_000_000
"""The most bytes of header that the safetensors library accepts."""
