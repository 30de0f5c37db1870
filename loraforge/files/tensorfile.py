"""Tensor files: names and shapes first, tensors on demand as views of memory maps."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from loraforge.algebra.dtypes import BYTES, FACTORS, numpy_type
from loraforge.algebra.lora import Array
from loraforge.errors import FileError, adding
from loraforge.text import megabytes

KEY = "loraforge"
"""Our own entry, of the file's origin (schemas/provenance.schema.json; of base weights, fused.schema.json)."""

Chunk = bytes | bytearray | memoryview
"""A piece of a tensor's raw little-endian bytes."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies in its file."""

    dtype: str
    """As safetensors names it: F16, BF16, F32, ..."""
    shape: tuple[int, ...]
    offset: int
    """Byte of the file at which element 0 lies."""
    strides: tuple[int, ...] | None = None
    """In elements; None where the tensor is contiguous."""
    map: int = 0
    """Which of the maps of its TensorFile it lies in."""

    @property
    def repeats(self) -> bool:
        """Whether the tensor shows some of its numbers more than once, as an expanded one does."""
        used = sorted((stride, n) for n, stride in zip(self.shape, self.strides or (), strict=False) if n > 1)
        reach = 1
        for stride, n in used:
            if stride < reach:
                return True
            reach += (n - 1) * stride
        return False

    @property
    def nbytes(self) -> int:
        return BYTES[self.dtype] * math.prod(self.shape)


@dataclass(slots=True)
class FileMap:
    """One file on the disk, as memory from the first time that is asked for."""

    path: Path
    absent: int = 0
    """Bytes of tensors that were not fetched from the Hub: only the header was."""
    _map: mmap.mmap | None = None

    def memory(self) -> mmap.mmap:
        """The whole file. Raises FileError if only its header was fetched."""
        if self.absent:
            text = f"{self.path}: that stands in its tensors ({megabytes(self.absent)}); only its header was fetched."
            raise FileError(text, adding("--fetch", why="get them, into the cache of the Hub"))
        if self._map is None:
            with self.path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map

    def release(self, *span: int) -> None:
        """Give the pages read so far back to the system: all, or those of a span (first byte, length)."""
        if self._map is not None and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED, *span)


@dataclass(slots=True)
class TensorFile:
    """Named tensors in one file or in several. Indexing gives a read-only view; nothing is read before that."""

    path: Path
    """The file; of several files, what one with all of it would be called: what lies beside it counts for it."""
    kind: str
    """`safetensors` or `torch`."""
    size: int
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)
    """The header's string table; of a torch file, our own entry where its outermost dictionary has one."""
    tops: tuple[str, ...] = ()
    """Keys of the outermost dictionary of a torch file."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """The whole numbers in it, as `mp_world_size`."""
    wrappers: tuple[str, ...] = ()
    """The keys that lead from there to the tensors (`module`)."""
    opaque: Mapping[str, str] = field(default_factory=dict)
    """Keys that hold something else than a plain tensor -> the dotted name of what it is."""
    globals: tuple[str, ...] = ()
    """Dotted names a pickle mentions. None of them was imported."""
    dropped: tuple[str, ...] = ()
    """Keys that are left out of `tensors`, as `--drop` says."""
    within: int = 0
    """How many tensors the model has that these were taken out of; 0 if they lie by themselves."""
    maps: tuple[FileMap, ...] = ()
    """The files the tensors lie in; the one at `path` if none is given."""

    def __post_init__(self) -> None:
        self.maps = self.maps or (FileMap(self.path),)

    @property
    def absent(self) -> int:
        """Bytes of tensors that were not fetched from the Hub."""
        return sum(part.absent for part in self.maps)

    @property
    def spread(self) -> bool:
        """Whether `path` stands for other files."""
        return [part.path.name for part in self.maps] != [self.path.name]

    def raw(self, key: str) -> memoryview:
        """The bytes of a contiguous tensor. Raises FileError if they were not fetched."""
        info = self.tensors[key]
        return memoryview(self.maps[info.map].memory())[info.offset : info.offset + info.nbytes]

    def __getitem__(self, key: str) -> Array:
        info = self.tensors[key]
        part, dtype = self.maps[info.map], numpy_type(info.dtype)
        if part.absent:  # what has a shape and no numbers: whoever counts with them gets NaN, which every check refuses
            return np.broadcast_to(np.asarray(math.nan if info.dtype in FACTORS else 0).astype(dtype), info.shape)
        strides = None if info.strides is None else [stride * dtype.itemsize for stride in info.strides]
        return np.ndarray(info.shape, dtype, part.memory(), info.offset, strides)

    def scatter(self) -> None:
        """Tell the system that what is read lies far apart, so that it does not read on from there."""
        for memory in (part.memory() for part in self.maps):
            if hasattr(memory, "madvise"):
                memory.madvise(mmap.MADV_RANDOM)

    def release(self, key: str | None = None) -> None:
        """Give the pages read so far, or those of one tensor, back to the system.

        Views stay valid; a later access reads again.
        """
        info = self.tensors[key] if key is not None else None
        if info is None:
            for part in self.maps:
                part.release()
        elif info.strides is None and info.nbytes:
            start = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
            self.maps[info.map].release(start, info.offset + info.nbytes - start)


RELEASE_EVERY = 16
"""Tensors or modules after which a loop lets go of the pages it has read."""

HEADER_LIMIT = 100_000_000
"""Bytes of header the safetensors library accepts."""
