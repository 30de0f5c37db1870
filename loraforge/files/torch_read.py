"""Reads checkpoints of torch.save, a zip of raw storages and one pickle, without torch and without running code."""

from __future__ import annotations

import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraforge.algebra.dtypes import BYTES, NAMES
from loraforge.errors import FileError
from loraforge.files.pickles import MOST_BYTES, Global, HostileError, Opaque, load
from loraforge.files.tensorfile import KEY, TensorFile, TensorInfo
from loraforge.foreign import reading
from loraforge.text import command, megabytes

WRAPPERS = ("module", "model", "state_dict")
"""Keys under which trainers put the state dict: SAT and DeepSpeed, older SAT, Lightning."""

STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "ComplexFloatStorage": "C64", "UntypedStorage": "U8",
}  # fmt: skip
"""torch's storage classes -> element types."""
_DTYPES = NAMES | {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}


MOST_ALIASED = 10
"""How many times the bytes of its file tensors may have together: those that are tied share a storage, like T5's."""
_MOST = {"data.pkl": MOST_BYTES, "byteorder": 16}
"""The records that are read into memory -> the most bytes they may have."""


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str
    offset: int
    nbytes: int


def read_torch(path: Path) -> TensorFile:
    """Open a torch.save archive. Tensors become views of the file; every other object becomes data or a name.

    Nothing in the file is executed or imported. Raises HostileError if the pickle calls for code or the archive
    does not match its own table, FileError if the file is damaged or not supported.
    """
    with reading(path, "a torch archive", then="It is damaged: copy or download it again."):
        return _opened(path, path.stat().st_size)


def _opened(path: Path, size: int) -> TensorFile:
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        records = _records(archive, path)
        spans = _spans(records, stream, size, path)
        content = {name: _content(name, archive, records[name], path) for name in _MOST if name in records}
    if "data.pkl" not in content:
        text = f"{path} is a zip archive, but not one torch.save wrote: it has no data.pkl."
        raise FileError(text, command("unzip", "-l", path))
    if content.get("byteorder", b"little").strip() != b"little":
        text = f"{path} was written on a big-endian machine. Load and save it there with torch, little-endian."
        raise FileError(text)
    storages = {name[5:]: (start, end - start) for name, (start, end) in spans.items() if name.startswith("data/")}
    tree, names = load(content["data.pkl"], str(path), _calls(str(path)), _persistent(storages, str(path)))
    top = state_dict = _with_text_keys(tree)
    wrappers: list[str] = []
    while inner := next((key for key in WRAPPERS if isinstance(state_dict.get(key), dict)), None):
        wrappers.append(inner)
        state_dict = _with_text_keys(state_dict[inner])
        if len(wrappers) > len(WRAPPERS):
            raise HostileError(f"{path}: its state dict is wrapped more than {len(WRAPPERS)} times.")
    tensors = {key: value for key, value in state_dict.items() if isinstance(value, TensorInfo)}
    if (total := sum(info.nbytes for info in tensors.values())) > MOST_ALIASED * size:
        text = f"its tensors share their numbers: they would be {megabytes(total)} apart, and the file is"
        raise HostileError(f"{path}: {text} {megabytes(size)}. Up to {MOST_ALIASED} times as much is read.")
    others = {key: value for key, value in state_dict.items() if key not in tensors}
    opaque = {key: v.name if isinstance(v, Opaque) else type(v).__name__ for key, v in others.items()}
    metadata = {KEY: top[KEY]} if isinstance(top.get(KEY), str) else {}
    counts = {key: value for key, value in top.items() if type(value) is int}
    return TensorFile(path, "torch", size, tensors, metadata, tuple(top), counts, tuple(wrappers), opaque, names)


def _with_text_keys(tree: Any) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if isinstance(key, str)} if isinstance(tree, dict) else {}


def _content(name: str, archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Path) -> bytes:
    if info.file_size > _MOST[name]:
        raise HostileError(f"{path}: its {name} has {info.file_size:,} bytes; none needs more than {_MOST[name]:,}.")
    return archive.read(info)


def _records(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The archive's records by name, without the folder torch puts them in."""
    records: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        whole = info.filename
        if whole.startswith("/") or "\\" in whole or ".." in whole.split("/") or ":" in whole:
            raise HostileError(f"{path}: its archive has a record named {whole!r}, a path that leads out of it.")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            text = f"{path}: its record {whole} is compressed or encrypted; torch.save stores plainly. Unpack it."
            raise FileError(text, command("unzip", "-l", path))
        name = whole.partition("/")[2] or whole
        if name in records:
            raise HostileError(f"{path}: its archive has two records named {name!r}.")
        records[name] = info
    return records


def _spans(records: Mapping[str, zipfile.ZipInfo], stream: Any, size: int, path: Path) -> dict[str, tuple[int, int]]:
    """Start and end of each record's data in bytes. Raises HostileError if records overlap or leave the file."""
    spans: dict[str, tuple[int, int]] = {}
    for name, info in records.items():
        stream.seek(info.header_offset)
        header = stream.read(30)
        if len(header) != 30 or header[:4] != b"PK\x03\x04":
            raise HostileError(f"{path}: its record {name} is not where the archive says.")
        start = info.header_offset + 30 + sum(struct.unpack("<2H", header[26:]))  # behind a name and an extra field
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
            case ("storage", Global(name=name), str(key), str(), int(count)) if name.rpartition(".")[2] in STORAGES:
                kind = STORAGES[name.rpartition(".")[2]]
                if key not in storages:
                    raise FileError(f"{where}: storage {key} is missing from the archive.")
                offset, nbytes = storages[key]
                if count * BYTES[kind] > nbytes or count < 0:
                    text = f"storage {key} claims {count} elements of {kind}; the archive has {nbytes} bytes"
                    raise HostileError(f"{where}: {text}.")
                return _Storage(kind, offset, nbytes)
        raise HostileError(f"{where}: its pickle has a persistent id that is no torch storage.")

    return resolve


def _calls(where: str) -> dict[str, Callable[..., Any]]:
    """The functions that a state_dict may call -> those called in their place. Any other call gives an Opaque."""

    def tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any, dtype: str | None = None) -> Any:
        if not isinstance(storage, _Storage):
            return Opaque("torch.Tensor")
        kind = dtype or storage.dtype
        if not (isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= 8):
            raise HostileError(f"{where}: a tensor has a shape and strides that do not go together.")
        if not all(type(n) is int and 0 <= n < 1 << 48 for n in (offset, *shape, *strides)):
            raise HostileError(f"{where}: a tensor has a shape, stride or offset that is no such number.")
        last = offset + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        if 0 not in shape and (last + 1) * BYTES[kind] > storage.nbytes:
            raise HostileError(f"{where}: a tensor of shape {list(shape)} reaches past the end of its storage.")
        dense = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        contiguous = all(n == 1 or a == b for n, a, b in zip(shape, strides, dense, strict=True))
        start = storage.offset + offset * BYTES[kind]
        return TensorInfo(kind, shape, start, None if contiguous or 0 in shape else strides)

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
        # the pairs, as protocol 0 writes them; only text keys, which are safe to hash
        "collections.OrderedDict": lambda pairs=(): {key: value for key, value in pairs if isinstance(key, str)},
    }
