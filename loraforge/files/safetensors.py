"""Reads safetensors files, and writes them with their tensors in any order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from safetensors import SafetensorError, safe_open

from loraforge.algebra.dtypes import BYTES, name_of
from loraforge.algebra.lora import Array
from loraforge.errors import FileError
from loraforge.files.tensorfile import HEADER_LIMIT, Chunk, TensorFile, TensorInfo
from loraforge.foreign import reading

Entry = tuple[str, tuple[int, ...]]
"""Element type as safetensors names it, and shape."""
Header = Mapping[str, Entry]
Content = Array | Iterable[Chunk]
"""A tensor: an array, or pieces of its raw bytes."""


def begins_safetensors(head: bytes) -> bool:
    """Whether a file begins with the length of a header, and the header as JSON."""
    return 0 < int.from_bytes(head[:8], "little") <= HEADER_LIMIT and head[8:9] in (b"{", b" ")


def read_safetensors(path: Path) -> TensorFile:
    """Open a safetensors file. The safetensors library checks the header first.

    Raises FileError if the header is not JSON, repeats a key, or does not describe the file.
    """
    with reading(path, "a safetensors file", then="Download or save it again."):
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            text = stream.read(length if length <= min(HEADER_LIMIT, size) else 0)
        try:
            with safe_open(path, framework="numpy"):
                pass
        except SafetensorError as error:
            if odd := _not_a_text(text):
                what = f"{path}: its header entry {odd[0]:.80} is {odd[1]!r:.40}, and safetensors allows texts alone"
                whole = "Its tensors may be whole: whoever wrote it can write the entry as a text."
                raise FileError(f"{what}: no loader opens the file. {whole}") from error
            raise
        tensors, metadata = _read_header(text, 8 + length)
        if other := [key for key, info in tensors.items() if info.dtype not in BYTES]:
            what = f"{path}: {other[0]} has element type {tensors[other[0]].dtype}"
            raise FileError(f"{what}, which no adapter is stored in.")
        return TensorFile(path, "safetensors", size, tensors, metadata)


def _not_a_text(header: bytes) -> tuple[str, object] | None:
    """The first entry of the metadata that is no text; None if there is none, or no such header."""
    with suppress(Exception):
        return next((key, value) for key, value in json.loads(header)["__metadata__"].items() if type(value) is not str)
    return None


def _read_header(text: bytes, start: int) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    """The tensors, whose bytes begin at `start`, and the metadata. Raises ValueError if the header repeats a key.

    A string has two quotes that are not its own, and an entry has five strings: a text with no more repeats nothing.
    """

    def entry(table: dict[str, Any]) -> TensorInfo | dict[str, Any]:
        if type(table.get("data_offsets")) is not list:  # the header itself, or its metadata, whatever names are in it
            return table
        return TensorInfo(table["dtype"], tuple(table["shape"]), start + table["data_offsets"][0])

    header = json.loads(text, object_hook=entry)
    strings = 5 * len(header) - 4 * ("__metadata__" in header)
    metadata: dict[str, str] = header.pop("__metadata__", None) or {}  # the library lets null pass
    strings += 2 * len(metadata)
    own = "".join((*header, *metadata, *metadata.values())).count('"')
    if b"\\u" in text or text.count(b'"') != 2 * strings + own:  # an escape may hide a quote
        json.loads(text, object_pairs_hook=_no_repeats)
    return header, metadata


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("its header repeats a key")
    return table


def write_safetensors(
    path: Path, header: Header, tensors: Iterable[tuple[str, Content]], metadata: Mapping[str, str]
) -> dict[str, int]:
    """Write a safetensors file: the header, then the tensors in any order. Returns the CRC-32 of each tensor's bytes.

    The file depends on the arguments alone: keys are in `file_order`, and the header is padded to 8 bytes. Raises
    ValueError if a tensor is missing or differs from its entry in the header.
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


def replace_entry(path: Path, key: str, text: str) -> None:
    """Write another text of the same length to an entry of a written file's header, if it is one that has the entry."""
    with path.open("rb+") as stream:
        if not begins_safetensors(stream.read(9)):
            return
        stream.seek(0)
        length = int.from_bytes(stream.read(8), "little")
        table = json.loads(stream.read(length))
        if key in table.get("__metadata__", {}):
            table["__metadata__"][key] = text
            if len(content := _as_text(table).ljust(length)) != length:
                raise ValueError(f"{path}: {key} is not as long as it was")
            stream.seek(8)
            stream.write(content)


def _as_text(table: Mapping[str, Any]) -> bytes:
    return json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()


def safetensors_header(header: Header, metadata: Mapping[str, str]) -> tuple[bytes, dict[str, int]]:
    """The bytes before the tensors, and the position in the file at which each tensor begins."""
    table: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    offsets, end = dict[str, int](), 0
    for key in file_order(header):
        dtype, shape = header[key]
        start, end = end, end + TensorInfo(dtype, shape, 0).nbytes
        offsets[key] = start
        table[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = _as_text(table)
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    return len(text).to_bytes(8, "little") + text, {key: start + offset for key, offset in offsets.items()}


def file_order(header: Header) -> list[str]:
    """The keys in the order of their tensors: wide element types first, so that all are aligned, then by name."""
    return sorted(header, key=lambda key: (-BYTES[header[key][0]], key))


def chunks_of(key: str, entry: Entry, tensor: Content) -> Iterator[Chunk]:
    """The bytes of a tensor in row-major order. Raises ValueError if its type, shape or size is not that of `entry`."""
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
