"""float16 in and out at a steady speed: the same bits as numpy's `astype`, which takes 40 ns for every subnormal.

A scale of 1/128 folded into float16 makes millions of subnormals; with `astype` they are most of a conversion.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

_LARGEST, _NORMAL, _STEP = 65520.0, 2.0**-14, 2.0**-24


@cache
def _all_values() -> npt.NDArray[np.float64]:
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float64)


def widen(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Any factor as float64, exactly."""
    return _all_values().take(x.view(np.uint16)) if x.dtype == np.float16 else x.astype(np.float64)


def narrow(x: npt.NDArray[np.float64], dtype: Any) -> npt.NDArray[Any]:
    """float64 rounded to a factor's type, to nearest, ties to even; beyond the range it becomes infinite."""
    if dtype != np.float16:
        with np.errstate(over="ignore"):
            return x.astype(dtype)
    single = x.astype(np.float32)
    bits = single.view(np.uint32)
    magnitude = bits & np.uint32(0x7FFFFFFF)
    size = magnitude.view(np.float32)
    # normal numbers: drop 13 bits of the mantissa to nearest even, and move the exponent's origin
    rounded = (magnitude + ((magnitude >> 13) & np.uint32(1)) + np.uint32(0xFFF - (112 << 23) & 0xFFFFFFFF)) >> 13
    out = rounded.astype(np.uint16)
    # smaller ones are counted in steps of 2**-24; adding 2**23 makes the hardware do the rounding
    steps = size * np.float32(1 / _STEP) + np.float32(2.0**23)
    np.copyto(out, steps.view(np.uint32).astype(np.uint16), where=size < np.float32(_NORMAL))
    np.copyto(out, np.uint16(0x7C00), where=size >= np.float32(_LARGEST))
    out |= (bits >> 16).astype(np.uint16) & np.uint16(0x8000)
    return out.view(np.float16)
