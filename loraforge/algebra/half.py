"""Numbers of 16 bits, quickly and to the same bits as numpy's `astype`.

numpy takes 40 ns for every subnormal of float16, and folding a scale of 1/128 into float16 makes
millions; and a power of two is an addition to the exponent, not a multiplication in a wider type.
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
"""Unsigned type of the same width, the bits of the exponent, and where they begin."""


@cache
def _every_half(dtype: type) -> Array:
    return np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(dtype)


def finite(x: Array) -> bool:
    """Whether a contiguous array holds numbers only: read as integers, NaN and the infinities are the largest."""
    return _largest(x) < LAYOUTS[x.dtype.name][1]


def peak(x: Array) -> float:
    """The largest magnitude in an array of numbers."""
    bits = np.array(_largest(np.ascontiguousarray(x)), LAYOUTS[x.dtype.name][0])
    return float(bits.view(x.dtype))


def _largest(x: Array) -> int:
    """The bits, without the sign, of what is the largest in a contiguous array when read as integers."""
    bits = x.reshape(-1).view(LAYOUTS[x.dtype.name][0])
    positive = int(bits.view(bits.dtype.name.removeprefix("u")).max(initial=0))
    return max(positive, int(bits.max(initial=0)) & ~(1 << 8 * bits.itemsize - 1))


def widen(x: Array, dtype: type = np.float64) -> Array:
    """Any factor as float64 (float16 also as float32), exactly."""
    return _every_half(dtype).take(x.view(np.uint16)) if x.dtype == np.float16 else x.astype(dtype)


def rounded(x: Array, dtype: Any) -> Array:
    """float64 numbers rounded to a factor's type, still as float64; beyond the range they become infinite.

    To nearest, ties to even.
    """
    if dtype != np.float16:
        return x.astype(dtype).astype(np.float64)
    # Below its normal range float16 has steps of 2**-24, and this anchor plus such a number has its last
    # bit there: the addition rounds.
    anchor = 1.5 * 2.0**28
    out = np.copysign((x + anchor) - anchor, x)
    large = np.abs(x) >= 2.0**-14
    out[large] = x[large].astype(np.float16)
    return out


@lru_cache(maxsize=64)
def halves_times(factor: float) -> tuple[Array, Array]:
    """For each of the 65,536 halves: its product with `factor` as a half, and what rounding added, as float32.

    A product of halves with one number is a look-up, whatever the number.
    """
    every = _every_half(np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        stored = (every * factor).astype(np.float16)
        return stored, (stored.astype(np.float64) - every * factor).astype(np.float32)


def shifted(x: Array, power: int) -> Array | None:
    """`x * 2**power`, exactly; None where a number is, or would be, outside the normal range."""
    unsigned, mask, start = LAYOUTS[x.dtype.name]
    bits = np.ascontiguousarray(x).view(unsigned)
    exponent = bits & unsigned(mask)
    if power == 0:
        return x
    some = exponent.max(initial=0)
    zero = exponent == 0
    if (bits[zero] << 1).any():  # subnormal already
        return None
    exponent[zero] = some
    if exponent.size and ((int(exponent.min()) >> start) + power < 1 or (int(some) >> start) + power >= mask >> start):
        return None
    moved = bits + unsigned((power << start) % (1 << 8 * x.dtype.itemsize))
    moved[zero] = bits[zero]
    return cast("Array", moved.view(x.dtype))
