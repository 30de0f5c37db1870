"""Fast conversions of 16-bit numbers that give the same bits as numpy's `astype`.

numpy needs 40 ns for each subnormal float16, and folding a scale of 1/128 into float16 makes millions of
them. Multiplying by a power of two is an addition to the exponent; it needs no wider type.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import Any, cast

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

LAYOUTS = {
    "float16": (np.uint16, 0x7C00, 10),
    "bfloat16": (np.uint16, 0x7F80, 7),
    "float32": (np.uint32, 0x7F800000, 23),
    "float64": (np.uint64, 0x7FF0 << 48, 52),
}
"""Type -> the unsigned type of the same width, a mask of the exponent's bits, and the position of the lowest one."""


@cache
def _every_half(dtype: type) -> Array:
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(dtype)


def finite(x: Array) -> bool:
    """Whether a contiguous array has no NaN and no infinity: read as integers, those are the largest values."""
    return _largest(x) < LAYOUTS[x.dtype.name][1]


def peak(x: Array) -> float:
    """The largest magnitude in an array without NaN or infinity."""
    bits = np.array(_largest(np.ascontiguousarray(x)), LAYOUTS[x.dtype.name][0])
    return float(bits.view(x.dtype))


def _largest(x: Array) -> int:
    """The largest bit pattern in a contiguous array, read as an integer without the sign bit."""
    bits = x.reshape(-1).view(LAYOUTS[x.dtype.name][0])
    positive = int(bits.view(bits.dtype.name.removeprefix("u")).max(initial=0))
    return max(positive, int(bits.max(initial=0)) & ~(1 << 8 * bits.itemsize - 1))


def widen(x: Array, dtype: type = np.float64) -> Array:
    """A factor converted to float64 (a float16 factor also to float32), exactly."""
    return _every_half(dtype).take(x.view(np.uint16)) if x.dtype == np.float16 else x.astype(dtype)


def rounded(x: Array, dtype: Any) -> Array:
    """float64 numbers rounded to the type of a factor, returned as float64. Numbers that overflow become infinite.

    Rounds to nearest, ties to even.
    """
    if dtype != np.float16:
        return x.astype(dtype).astype(np.float64)
    # Below its normal range float16 has steps of 2**-24. That is also the last bit of this anchor in float64,
    # so that adding a number to the anchor rounds the number.
    anchor = 1.5 * 2.0**28
    out = np.copysign((x + anchor) - anchor, x)
    large = np.abs(x) >= 2.0**-14
    out[large] = x[large].astype(np.float16)
    return out


@lru_cache(maxsize=64)
def halves_times(factor: float) -> tuple[Array, Array]:
    """For each of the 65,536 float16 values: its product with `factor` in float16, and the rounding error in float32.

    With these tables, multiplying a float16 array by a number is a look-up.
    """
    every = _every_half(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        stored = (every * factor).astype(np.float16)
        return stored, (stored.astype(np.float64) - every * factor).astype(np.float32)


def shifted(x: Array, power: int) -> Array | None:
    """`x * 2**power`, exactly. None if a number is outside the normal range before or after."""
    unsigned, mask, start = LAYOUTS[x.dtype.name]
    bits = np.ascontiguousarray(x).view(unsigned)
    exponent = bits & unsigned(mask)
    if power == 0:
        return x
    top = exponent.max(initial=0)
    zero = exponent == 0
    if (bits[zero] << 1).any():  # a subnormal
        return None
    exponent[zero] = top  # zeros have no exponent: they must not count for the smallest one
    if exponent.size and ((int(exponent.min()) >> start) + power < 1 or (int(top) >> start) + power >= mask >> start):
        return None
    moved = bits + unsigned((power << start) % (1 << 8 * x.dtype.itemsize))
    moved[zero] = bits[zero]
    return cast("Array", moved.view(x.dtype))
