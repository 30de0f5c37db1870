"""Writes checkpoints that torch.load reads and maps, without torch and one tensor at a time."""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from loraforge.algebra.dtypes import BYTES
from loraforge.errors import ConversionError
from loraforge.files.safetensors import Content, Entry, Header, chunks_of
from loraforge.files.tensorfile import Chunk, TensorFile
from loraforge.files.torch_read import STORAGES, WRAPPERS

Plain = int | float | str | bool | None

_TYPES = {dtype: name for name, dtype in STORAGES.items() if name != "UntypedStorage"}
"""Element types for which torch has a storage class -> that class."""

_ALIGNMENT = 64
"""Every record's data begins at a multiple of this, as in torch.save, so that a mapped tensor is aligned."""


def write_torch(
    path: Path, header: Header, tensors: Iterable[tuple[str, Content]], *, extra: Mapping[str, Plain] = {}
) -> dict[str, int]:
    """Write `{"module": {key: tensor, ...}, **extra}` as torch.save lays it out.

    `tensors` must come in the order of `header`. Only one is held at a time. The file depends on the arguments alone,
    not on its name or the day. Returns the CRC-32 of each tensor's bytes.

    Raises ConversionError, before anything is written, if torch has no storage class for an element type; and
    ValueError if the tensors differ from the header, which leaves a file that torch.load refuses.
    """
    tree, given, sums = _pickled(header, extra), iter(tensors), dict[str, int]()
    with path.open("wb") as stream, zipfile.ZipFile(stream, "w") as archive:
        _put(archive, stream, "data.pkl", len(tree), [tree])
        # No .format_version: it would tell torch to compute where records lie from torch's own writer's habits.
        _put(archive, stream, "byteorder", 6, [b"little"])
        for number, (key, entry) in enumerate(header.items()):
            size = math.prod(entry[1]) * BYTES[entry[0]]
            sums[key] = _put(archive, stream, f"data/{number}", size, _content(key, entry, given))
        for key, _ in given:
            raise ValueError(f"{key} came, and was not announced")
        _put(archive, stream, "version", 2, [b"3\n"])  # torch.load insists on it: last, so that half a file is none
    return sums


def copy_chunks(file: TensorFile, key: str, size: int = 1 << 24) -> Iterator[bytes]:
    """A tensor's raw bytes in row-major order, in pieces of `size`; pages of the file are released once copied.

    A tensor that is not contiguous is held in memory whole.
    """
    info = file.tensors[key]
    if info.strides is None:
        content = file.raw(key)
    else:  # elements as so many bytes without a meaning: numpy need not know their type
        width, memory = BYTES[info.dtype], file.maps[info.map].memory()
        strides = [stride * width for stride in info.strides]
        content = memoryview(np.ndarray(info.shape, f"V{width}", memory, info.offset, strides).tobytes())
    for start in range(0, len(content), size):
        piece = bytes(content[start : start + size])
        file.release()
        yield piece


def _content(key: str, entry: Entry, given: Iterator[tuple[str, Content]]) -> Iterator[Chunk]:
    """The bytes of the next tensor. Raises ValueError if it is not the announced one.

    It takes the tensor itself, so that no variable of a caller keeps it alive while the next one is made.
    """
    name, tensor = next(given, (None, ()))
    if name != key:
        raise ValueError(f"{key} was announced, and {'nothing' if name is None else name} came")
    yield from chunks_of(key, entry, tensor)


def _put(archive: zipfile.ZipFile, stream: BinaryIO, name: str, size: int, chunks: Iterable[Chunk]) -> int:
    """Append a stored record and return its CRC-32; its header, which has that sum, is completed afterwards."""
    info = zipfile.ZipInfo(f"archive/{name}", (1980, 1, 1, 0, 0, 0))
    info.create_system = 3  # the same bytes on every system
    large = size > zipfile.ZIP64_LIMIT
    header = 30 + len(info.filename) + 4 + (20 if large else 0)  # without the padding itself; 64-bit sizes take 20
    padding = -(stream.tell() + header) % _ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding  # as torch pads
    with archive.open(info, "w", force_zip64=large) as record:
        for chunk in chunks:
            record.write(chunk)
    info.extra = b""  # the table at the end of the archive needs no padding
    return info.CRC


def _pickled(header: Header, extra: Mapping[str, Plain]) -> bytes:
    """The pickle, opcode by opcode: the stdlib's writer would import torch to name its functions."""
    if WRAPPERS[0] in extra:
        raise ValueError(f"{WRAPPERS[0]} is where the tensors go, and cannot be an extra value")
    parts = [pickle.PROTO, b"\x02", pickle.EMPTY_DICT, _plain(WRAPPERS[0]), _ORDERED_DICT]
    for number, (key, (dtype, shape)) in enumerate(header.items()):
        if dtype not in _TYPES:
            raise ConversionError(f"{key} has element type {dtype}, which a torch checkpoint cannot hold plainly.")
        parts += [_plain(key), *_tensor(number, dtype, tuple(map(int, shape))), pickle.SETITEM]
    parts.append(pickle.SETITEM)
    for key, value in extra.items():
        if type(value) not in (int, float, str, bool, type(None)):  # a subclass would be pickled by its name
            raise ValueError(f"{key} is a {type(value).__name__}, not a plain value")
        parts += [_plain(key), _plain(value), pickle.SETITEM]
    return b"".join([*parts, pickle.STOP])


def _tensor(number: int, dtype: str, shape: tuple[int, ...]) -> list[bytes]:
    """`_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, backward_hooks)`."""
    strides = tuple(math.prod(max(length, 1) for length in shape[axis + 1 :]) for axis in range(len(shape)))
    storage = [_plain("storage"), _named("torch", _TYPES[dtype])]
    storage += [_plain(value) for value in (str(number), "cpu", math.prod(shape))]
    return [
        _named("torch._utils", "_rebuild_tensor_v2"), pickle.MARK,
        pickle.MARK, *storage, pickle.TUPLE, pickle.BINPERSID,
        _plain(0), _plain(shape), _plain(strides), pickle.NEWFALSE, _ORDERED_DICT,
        pickle.TUPLE, pickle.REDUCE,
    ]  # fmt: skip


def _named(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


_ORDERED_DICT = _named("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE


def _plain(value: Plain | tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, 2)
    pickler.fast = True  # no memo, whose numbers would clash with the next value's
    pickler.dump(value)
    return buffer.getvalue()[2:-1]  # without PROTO and STOP
