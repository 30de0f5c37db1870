"""The element types of tensor files, under their names in safetensors."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "C64": 8,
}  # fmt: skip
"""Bytes per element. A file may have tensors of any type; the A and B of an adapter have one of `FACTORS`."""

FACTORS = ("F16", "BF16", "F32", "F64")
"""The types that an A or a B may have."""

FLOATS = (*FACTORS, "F8_E4M3", "F8_E5M2")
"""The types that they may have in a file: those of 8 bits are widened to bfloat16, which has every number of theirs."""

NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "complex64": "C64", "bool": "BOOL",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8",
    "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
}  # fmt: skip
"""numpy's and torch's names -> ours."""

CHOICES = {"fp32": "F32", "bf16": "BF16", "fp16": "F16"}
"""The values of `--dtype`, except `keep`."""

LARGEST = 3.4028234663852886e38
"""The largest float32: updates are computed in that type."""


_TYPES: dict[str, np.dtype[Any]] = {
    "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16), "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64), "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}  # fmt: skip


def numpy_type(name: str) -> np.dtype[Any]:
    """The numpy type of one of `FLOATS`; those that numpy has not come from ml_dtypes."""
    return _TYPES[name]


def widened(array: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """The same numbers in bfloat16 if they are stored in 8 bits; otherwise the array itself."""
    return array.astype(ml_dtypes.bfloat16) if array.dtype.itemsize == 1 else array


def name_of(dtype: np.dtype[Any]) -> str:
    """The inverse of `numpy_type`; also for numpy's types that no factor has."""
    return NAMES[dtype.name]


def eps(dtype: np.dtype[Any]) -> float:
    """The gap between 1.0 and the next number of a floating type."""
    return {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float32": 2.0**-23, "float64": 2.0**-52}[dtype.name]


def subnormal(dtype: np.dtype[Any]) -> float:
    """The smallest positive number of a floating type: the most that an entry below the normal range can lose."""
    return {"float16": 2.0**-24, "bfloat16": 2.0**-133, "float32": 2.0**-149, "float64": 2.0**-1074}[dtype.name]
