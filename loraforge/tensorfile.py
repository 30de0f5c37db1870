"""Tensor files: names and shapes first, tensors on demand as views of a memory map. Reads and writes safetensors."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from zlib import crc32

from loraforge.dtypes import BYTES, FACTORS, name_of, numpy_type
from loraforge.errors import FileError, Try, command

if TYPE_CHECKING:
    from loraforge.lora import Array


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
        size = BYTES[self.dtype]
        for length in self.shape:
            size *= length
        return size


@dataclass(slots=True)
class TensorFile:
    """One open tensor file. Indexing gives a read-only view; nothing is read before that."""

    path: Path
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
    absent: int = 0
    """Bytes of tensors that were not fetched from the Hub: only the header was."""
    _map: mmap.mmap | None = None

    def mapped(self) -> mmap.mmap:
        """The whole file as memory. Raises FileError where only its header was fetched."""
        if self.absent:
            text = f"{self.path}: that stands in its tensors ({megabytes(self.absent)}); only its header was fetched."
            raise FileError(text, Try("--fetch", "get them, into the cache of the Hub"))
        if self._map is None:
            with self.path.open("rb") as stream:
                self._map = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        return self._map

    def raw(self, key: str) -> memoryview:
        """The bytes of a contiguous tensor."""
        info = self.tensors[key]
        return memoryview(self.mapped())[info.offset : info.offset + info.nbytes]

    def __getitem__(self, key: str) -> Array:
        import numpy as np

        info = self.tensors[key]
        dtype = numpy_type(info.dtype)
        if self.absent:  # what has a shape and no numbers: whoever counts with them gets NaN, which every check refuses
            return np.broadcast_to(np.asarray(math.nan if info.dtype in FACTORS else 0).astype(dtype), info.shape)
        if info.strides is None:
            flat = np.frombuffer(self.mapped(), dtype, info.nbytes // dtype.itemsize, info.offset)
            return flat.reshape(info.shape)
        reach = 1 + sum((n - 1) * stride for n, stride in zip(info.shape, info.strides, strict=True))
        flat = np.frombuffer(self.mapped(), dtype, reach, info.offset)
        steps = [stride * dtype.itemsize for stride in info.strides]
        return np.lib.stride_tricks.as_strided(flat, info.shape, steps, writeable=False)

    def scatter(self) -> None:
        """Tell the system that what is read lies far apart, so that it does not read on from there."""
        if hasattr(self.mapped(), "madvise"):
            self.mapped().madvise(mmap.MADV_RANDOM)

    def hiding(self, **changes: Any) -> Self:
        """The same tensors, with other names, metadata or path to be seen."""
        if not self.absent:
            self.mapped()
        return replace(self, **changes)

    def release(self, key: str | None = None) -> None:
        """Give the pages read so far, or those of one tensor, back to the system.

        Views stay valid; a later access reads again.
        """
        if self._map is None or not hasattr(self._map, "madvise"):
            return
        if key is None:
            self._map.madvise(mmap.MADV_DONTNEED)
            return
        info = self.tensors[key]
        start = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
        if info.strides is None and info.nbytes:
            self._map.madvise(mmap.MADV_DONTNEED, start, info.offset + info.nbytes - start)


def megabytes(count: int) -> str:
    """A number of bytes, for a reader."""
    return f"{count / 1e6:,.0f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} kB"


RELEASE_EVERY = 16
"""Tensors or modules after which a loop lets go of the pages it has read."""

HEADER_LIMIT = 100_000_000
"""Bytes of header the safetensors library accepts."""


def read_safetensors(path: Path) -> TensorFile:
    """Open a safetensors file. The safetensors library checks the header before we believe a word of it.

    Raises FileError when the header lies, overlaps, repeats a key or is not JSON.
    """
    from safetensors import SafetensorError, safe_open

    remedy = command("loraforge", "inspect", path)
    try:
        with safe_open(path, framework="numpy"):
            pass
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length), object_pairs_hook=_no_repeats)
    except (SafetensorError, ValueError, RecursionError) as error:
        if odd := _no_texts(path):
            name, value = odd
            raise FileError(
                f"{path}: its header entry {name:.80} is {value!r:.40}, and safetensors allows texts alone: no loader "
                "opens the file. Its tensors may be whole: whoever wrote it can write the entry as a text.",
            ) from error
        raise FileError(
            f"{path} is not a healthy safetensors file: {error}. Download or save it again.", remedy
        ) from error
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for key, entry in header.items():
        if entry["dtype"] not in BYTES:
            raise FileError(f"{path}: {key} has element type {entry['dtype']}, which no adapter is stored in.", remedy)
        tensors[key] = TensorInfo(entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
    return TensorFile(path, "safetensors", path.stat().st_size, tensors, metadata)


def _no_texts(path: Path) -> tuple[str, object] | None:
    """The first entry of the metadata that is no text, in a header that is JSON all the same."""
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length)) if length <= min(HEADER_LIMIT, path.stat().st_size) else None
    except (OSError, ValueError, RecursionError):
        return None
    entries = header.get("__metadata__") if isinstance(header, dict) else None
    return (
        next(((k, v) for k, v in entries.items() if not isinstance(v, str)), None)
        if isinstance(entries, dict)
        else None
    )


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("its header repeats a key")
    return table


def write_safetensors(
    path: Path,
    header: Mapping[str, tuple[str, tuple[int, ...]]],
    tensors: Iterable[tuple[str, Array | Iterable[Chunk]]],
    metadata: Mapping[str, str],
) -> dict[str, int]:
    """Write a safetensors file: `header` (key -> dtype, shape) first, then the tensors in whatever order they come.

    Each comes as an array, or as pieces of its raw bytes. Returns the CRC-32 of each tensor's bytes. The file depends
    on the arguments alone: keys are in `file_order`, and the header is padded to 8 bytes. Raises ValueError when a
    tensor is missing or is not what the header announced.
    """
    text, offsets = safetensors_header(header, metadata)
    sums: dict[str, int] = {}
    with path.open("wb") as stream:
        stream.write(text)
        for key, tensor in tensors:
            stream.seek(offsets[key])
            checksum = 0
            for chunk in chunks_of(key, header[key], tensor):
                stream.write(chunk)
                checksum = crc32(chunk, checksum)
            sums[key] = checksum
    if missing := header.keys() - sums.keys():
        raise ValueError(f"tensors announced and not given: {sorted(missing)}")
    return sums


def safetensors_header(
    header: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """What stands before the tensors, and the byte at which each begins."""
    table: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offsets, end = dict[str, int](), 0
    for key in file_order(header):
        dtype, shape = header[key]
        start, end = end, end + TensorInfo(dtype, shape, 0).nbytes
        offsets[key] = start
        table[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {key: start + offset for key, offset in offsets.items()}


def file_order(header: Mapping[str, tuple[str, tuple[int, ...]]]) -> list[str]:
    """The keys as they lie in a file: wide element types first, so that every tensor is aligned, and by name."""
    return sorted(header, key=lambda key: (-BYTES[header[key][0]], key))


def chunks_of(key: str, entry: tuple[str, tuple[int, ...]], tensor: Array | Iterable[Chunk]) -> Iterator[Chunk]:
    """The bytes of a tensor in row-major order. Raises ValueError where it is not of the announced type and shape."""
    import numpy as np

    if isinstance(tensor, np.ndarray):
        if (name_of(tensor.dtype), tensor.shape) != (entry[0], tuple(entry[1])):
            raise ValueError(f"{key} is {tensor.dtype} {tensor.shape}, not {entry[0]} {entry[1]}")
        little = np.ascontiguousarray(tensor, tensor.dtype.newbyteorder("<"))
        tensor = [little.reshape(-1).view(np.uint8).data]
    size, done = TensorInfo(*entry, 0).nbytes, 0
    for chunk in tensor:
        done += memoryview(chunk).nbytes
        if done > size:
            break
        yield chunk
    if done != size:
        raise ValueError(f"{key} has {'more' if done > size else f'{done}'} bytes, not {size}")
