"""Builds small checkpoints byte by byte: torch archives and safetensors files that are healthy until told otherwise."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hostile.pickles import Raw, call, named, persistent, pickled

HIDDEN, RANK = 8, 4
LAYER = "model.diffusion_model.transformer.layers.0.attention."
QKV, DENSE = f"{LAYER}query_key_value", f"{LAYER}dense"
TO_Q = "transformer.transformer_blocks.0.attn1.to_q"
CHECKPOINT = "mp_rank_00_model_states.pt"
STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "float64": "DoubleStorage", "int64": "LongStorage"}
NAMES = {
    "float32": "F32", "float16": "F16", "float64": "F64", "int64": "I64", "bfloat16": "BF16", "uint8": "U8",
    "float8_e4m3fn": "F8_E4M3",
}  # fmt: skip


def numbers(*shape: int, dtype: str = "float32") -> np.ndarray:
    """Small numbers that differ from each other and are exact in every floating type."""
    return np.asarray((np.arange(np.prod(shape, dtype=int)).reshape(shape) % 7 - 3) / 4, dtype)


def factors(rank: int = RANK, width: int = HIDDEN, rows: int = HIDDEN) -> tuple[np.ndarray, np.ndarray]:
    """A and B."""
    return numbers(rank, width), numbers(rows, rank)


def sat_lora() -> dict[str, Any]:
    """The LoRA of one SAT layer: q, k and v in one module, and the dense one."""
    A, B = factors()
    parts = {f"{QKV}.matrix_{name}.{n}": factor for n in range(3) for name, factor in (("A", A), ("B", B))}
    return parts | {f"{DENSE}.matrix_A.0": A, f"{DENSE}.matrix_B.0": B}


def diffusers_lora() -> dict[str, Any]:
    A, B = factors()
    return {f"{TO_Q}.lora_A.weight": A, f"{TO_Q}.lora_B.weight": B}


# torch archives


def tensor(
    key: str = "0",
    count: int = 32,
    shape: Any = (4, 8),
    strides: Any = (8, 1),
    offset: Any = 0,
    storage: str = "torch.FloatStorage",
) -> Raw:
    """What torch.save writes for a tensor; the record `data/<key>` is not made here."""
    place = persistent(("storage", named(storage), key, "cpu", count))
    return call(
        "torch._utils._rebuild_tensor_v2", place, offset, shape, strides, False, call("collections.OrderedDict")
    )


def checkpoint(tree: Any, records: Mapping[str, bytes] | None = None, **changes: Any) -> bytes:
    """A torch archive of a tree whose numpy arrays become tensors with a storage each."""
    stored: dict[str, bytes] = {}

    def swap(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: swap(item) for key, item in value.items()}
        if not isinstance(value, np.ndarray):
            return value
        key = str(len(stored) + 100)  # low numbers are left to the test
        stored[f"data/{key}"] = value.tobytes()
        strides = tuple(step // value.itemsize for step in value.strides)
        return tensor(key, value.size, value.shape, strides, storage=f"torch.{STORAGES[value.dtype.name]}")

    code = tree if isinstance(tree, bytes) else pickled(swap(tree))
    return archive(
        {"data.pkl": code, "byteorder": b"little"} | stored | dict(records or {}) | {"version": b"3\n"}, **changes
    )


def archive(
    records: Mapping[str, bytes] | Sequence[tuple[str, bytes]], folder: str = "archive/", compression: int = 0
) -> bytes:
    """A zip as torch writes it: nothing compressed, everything in one folder."""
    out = io.BytesIO()
    items = records.items() if isinstance(records, Mapping) else records
    with zipfile.ZipFile(out, "w", compression) as zipped, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's, of names that come twice
        for name, data in items:
            zipped.writestr(zipfile.ZipInfo(folder + name), data, compression)
    return out.getvalue()


CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"


def patched(data: bytes, name: str, field: str, value: int, where: bytes = CENTRAL) -> bytes:
    """The archive with one field of a record's header changed: flags, method, sizes or offset."""
    start, size = {
        CENTRAL: {"flags": (8, 2), "method": (10, 2), "packed": (20, 4), "size": (24, 4), "offset": (42, 4)},
        LOCAL: {"packed": (18, 4), "size": (22, 4), "extra": (28, 2)},
    }[where][field]
    header = data.rindex(name.encode()) - 46 if where == CENTRAL else data.index(name.encode()) - 30
    assert data[header : header + 4] == where
    return data[: header + start] + value.to_bytes(size, "little") + data[header + start + size :]


def inflate(file: Path, name: str, size: int) -> None:
    """Give an empty record of an archive on disk `size` bytes, all of them a hole in the file."""
    data = file.read_bytes()
    start = data.index(name.encode()) + len(name)
    for field in ("packed", "size"):
        data = patched(patched(data, name, field, size, LOCAL), name, field, size)
    with zipfile.ZipFile(file) as zipped:
        for info in zipped.infolist():
            if info.header_offset >= start:
                data = patched(data, info.filename, "offset", info.header_offset + size)
    end = data.rindex(b"PK\x05\x06") + 16  # where the place of the directory is told
    directory = int.from_bytes(data[end : end + 4], "little") + size
    data = data[:end] + directory.to_bytes(4, "little") + data[end + 4 :]
    with file.open("wb") as stream:
        stream.write(data[:start])
        stream.seek(size, io.SEEK_CUR)
        stream.write(data[start:])


def sat(tensors: Mapping[str, Any] | None = None, **extra: Any) -> bytes:
    """A SAT checkpoint: the tensors given, or a healthy LoRA, under `module`, and whatever lies beside it."""
    return checkpoint({**extra, "module": dict(sat_lora() if tensors is None else tensors)})


def deepspeed(module: Mapping[str, Any], **extra: Any) -> bytes:
    """What DeepSpeed's save_checkpoint leaves beside the module."""
    beside = {"buffer_names": [], "optimizer": None, "param_shapes": [], "global_steps": 3, "ds_version": "0.16.0"}
    return checkpoint({"module": dict(module), **beside, **extra})


def run_folder(folder: Path, *iterations: str, latest: str | None = None, config: str | None = None) -> Path:
    """A SAT run folder with a healthy checkpoint per iteration."""
    for iteration in iterations:
        (folder / iteration).mkdir(parents=True)
        (folder / iteration / CHECKPOINT).write_bytes(sat())
    folder.mkdir(exist_ok=True)
    if latest is not None:
        (folder / "latest").write_text(latest)
    if config is not None:
        (folder / "training_config.yaml").write_text(config)
    return folder


# safetensors


def safetensors(tensors: Mapping[str, np.ndarray], metadata: Any = None) -> bytes:
    """A healthy safetensors file."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata is not None else {}
    data = b""
    for key, value in tensors.items():
        start, data = len(data), data + value.tobytes()
        header[key] = {"dtype": NAMES[value.dtype.name], "shape": list(value.shape), "data_offsets": [start, len(data)]}
    return framed(json.dumps(header).encode(), data)


def framed(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """Header length, header, data. `length` is what the file claims."""
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data
