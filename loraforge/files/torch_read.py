"""Checkpoints of torch.save: a zip of raw storages and one pickle, read without torch and without running it."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraforge.algebra.dtypes import BYTES
from loraforge.errors import FileError
from loraforge.files.pickles import MOST_BYTES, Global, HostileError, Opaque, load
from loraforge.files.tensorfile import KEY, TensorFile, TensorInfo
from loraforge.text import command

WRAPPERS = ("module", "model", "state_dict")
"""Keys under which trainers put the state dict: SAT and DeepSpeed, older SAT, Lightning."""

_STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "ComplexFloatStorage": "C64", "UntypedStorage": "U8",
}  # fmt: skip
_DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    offset: int
    nbytes: int


def read_torch(path: Path) -> TensorFile:
    """Open a torch.save archive. Tensors become views of the file; everything else is data or a name.

    Raises HostileError for a pickle that calls for code or for an archive that lies, FileError for a
    damaged or unsupported one. Nothing in the file is executed or imported.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
            records = _records(archive, path)
            spans = _spans(records, stream, size, path)
            text = {name: _text(name, archive, records[name], path) for name in _MOST if name in records}
    except (
        zipfile.BadZipFile,
        NotImplementedError,  # of zipfile, for a compression or a version it does not know
        EOFError,
        RuntimeError,
        ValueError,
        OverflowError,
        OSError,
    ) as error:
        raise FileError(
            f"{path} is a damaged torch archive ({error}). Copy or download it again.", command("ls", "-l", path)
        ) from error
    if "data.pkl" not in text:
        raise FileError(
            f"{path} is a zip archive, but not one torch.save wrote: it has no data.pkl.", command("unzip", "-l", path)
        )
    if text.get("byteorder", b"little").strip() != b"little":
        raise FileError(
            f"{path} was written on a big-endian machine. Load and save it there with torch, little-endian."
        )
    storages = {}
    for name, (start, end) in spans.items():
        if name.startswith("data/"):
            storages[name.removeprefix("data/")] = (start, end - start)
    tree, names = load(text["data.pkl"], str(path), _calls(str(path)), _persistent(storages, str(path)))
    tops = tuple(key for key in tree if isinstance(key, str)) if isinstance(tree, dict) else ()
    counts = {key: tree[key] for key in tops if type(tree[key]) is int} if isinstance(tree, dict) else {}
    ours = tree.get(KEY) if isinstance(tree, dict) else None
    wrappers: list[str] = []
    while isinstance(tree, dict) and (
        inner := next((key for key in WRAPPERS if isinstance(tree.get(key), dict)), None)
    ):
        wrappers.append(inner)
        tree = tree[inner]
        if len(wrappers) > len(WRAPPERS):
            raise HostileError(f"{path}: its state dict is wrapped more than {len(WRAPPERS)} times.")
    items = {key: value for key, value in tree.items() if isinstance(key, str)} if isinstance(tree, dict) else {}
    tensors = {key: value for key, value in items.items() if isinstance(value, TensorInfo)}
    opaque = {
        key: value.name if isinstance(value, Opaque) else type(value).__name__
        for key, value in items.items()
        if not isinstance(value, TensorInfo)
    }
    metadata = {KEY: ours} if isinstance(ours, str) else {}
    return TensorFile(path, "torch", size, tensors, metadata, tops, counts, tuple(wrappers), opaque, names)


_MOST = {"data.pkl": MOST_BYTES, "byteorder": 16}
"""The records that are read whole -> the most bytes they may have."""


def _text(name: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bytes:
    if info.file_size > _MOST[name]:
        raise HostileError(f"{path}: its {name} has {info.file_size:,} bytes; none needs more than {_MOST[name]:,}.")
    return archive.read(info)


def _records(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The archive's records by name, without the folder torch puts them in."""
    records: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        parts = info.filename.split("/")
        if info.filename.startswith("/") or "\\" in info.filename or ".." in parts or ":" in info.filename:
            raise HostileError(
                f"{path}: its archive has a record named {info.filename!r}, a path that leads out of it."
            )
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise FileError(
                f"{path}: its record {info.filename} is compressed or encrypted; torch.save stores plainly. Unpack it.",
                command("unzip", "-l", path),
            )
        name = info.filename.partition("/")[2] or info.filename
        if name in records:
            raise HostileError(f"{path}: its archive has two records named {name!r}.")
        records[name] = info
    return records


def _spans(records: Mapping[str, zipfile.ZipInfo], stream: Any, size: int, path: Path) -> dict[str, tuple[int, int]]:
    """First and last byte of each record's data; refuses records that overlap or leave the file."""
    spans: dict[str, tuple[int, int]] = {}
    for name, info in records.items():
        stream.seek(info.header_offset)
        header = stream.read(30)
        if len(header) != 30 or header[:4] != b"PK\x03\x04":
            raise HostileError(f"{path}: its record {name} is not where the archive says.")
        start = (
            info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        )
        if start + info.file_size > size or info.file_size != info.compress_size:
            raise HostileError(f"{path}: its record {name} claims {info.file_size} bytes, more than the file has.")
        spans[name] = start, start + info.file_size
    last = 0
    for name, (start, end) in sorted(spans.items(), key=lambda item: item[1]):
        if start < last:
            raise HostileError(f"{path}: its record {name} overlaps another.")
        last = max(last, end)
    return spans


def _persistent(storages: Mapping[str, tuple[int, int]], where: str) -> Callable[[Any], _Storage]:
    def resolve(identity: Any) -> _Storage:
        match identity:
            case ("storage", Global(name=name), str(key), str(), int(count)) if kind := _STORAGES.get(
                name.rpartition(".")[2]
            ):
                if key not in storages:
                    raise FileError(f"{where}: storage {key} is missing from the archive.")
                offset, nbytes = storages[key]
                if count * BYTES[kind] > nbytes or count < 0:
                    raise HostileError(
                        f"{where}: storage {key} claims {count} elements of {kind}; the archive has {nbytes} bytes."
                    )
                return _Storage(kind, offset, nbytes)
        raise HostileError(f"{where}: its pickle has a persistent id that is no torch storage.")

    return resolve


def _calls(where: str) -> dict[str, Callable[..., Any]]:
    """What a state dict may call, and what stands in for it. Anything else becomes an Opaque."""

    def tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any, dtype: str | None = None) -> Any:
        if not isinstance(storage, _Storage):
            return Opaque("torch.Tensor")
        kind = dtype or storage.dtype
        if not (isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= 8):
            raise HostileError(f"{where}: a tensor has a shape and strides that do not go together.")
        if not all(type(n) is int and 0 <= n < 1 << 48 for n in (offset, *shape, *strides)):
            raise HostileError(f"{where}: a tensor has a shape, stride or offset that is no such number.")
        reach = (
            offset + 1 + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if 0 not in shape else 0
        )
        if reach * BYTES[kind] > storage.nbytes:
            raise HostileError(f"{where}: a tensor of shape {list(shape)} reaches past the end of its storage.")
        dense, step = [], 1
        for length in reversed(shape):
            dense.append(step)
            step *= max(length, 1)
        contiguous = all(length <= 1 or a == b for length, a, b in zip(shape, strides, reversed(dense), strict=True))
        return TensorInfo(
            kind,
            tuple(shape),
            storage.offset + offset * BYTES[kind],
            None if contiguous or 0 in shape else tuple(strides),
        )

    def typed(storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any) -> Any:
        kind = _DTYPES.get(dtype.name.removeprefix("torch.")) if isinstance(dtype, Global) else None
        return tensor(storage, offset, shape, strides, dtype=kind) if kind else Opaque("torch.Tensor")

    return {
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_tensor_v3": typed,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
        "torch.Size": lambda shape=(): shape,
        "collections.OrderedDict": lambda pairs=(): dict(pairs) if not pairs else _pairs(pairs),
    }


def _pairs(pairs: Any) -> dict[str, Any]:
    """An OrderedDict given as a list of pairs, as protocol 0 writes it; only text keys, which are safe to hash."""
    return {key: value for key, value in pairs if isinstance(key, str)}
