"""Moves the scaling of an update into its A and B with the least rounding that the stored types allow."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from loraforge.algebra.dtypes import eps
from loraforge.algebra.half import halves_times, peak, rounded, shifted, widen
from loraforge.algebra.lora import Array, LoraWeight, random_columns

_LEAN = 2.2
"""The ratio of the errors of A and B above which another share is tried. A step of one halves one error and doubles
the other, so it pays from a ratio of 2 on. It is a little more than 2 because ratios of exactly 2 occur, and there
the last bit of a sum would decide, which differs between processors."""

_TOP = {"float16": 15, "bfloat16": 127, "float32": 127, "float64": 1023}
"""Type -> n: no number below 2**n overflows when it is rounded to the type."""


def fold(w: LoraWeight, a_type: Any, b_type: Any) -> tuple[LoraWeight, float]:
    """Move the scaling into A and B and store them as `a_type` and `b_type`.

    Returns the weight with scaling 1.0, and the relative error of its update in the Frobenius norm.
    The error is 0.0 only if every entry is exact, or if the update is zero before and after; it is
    infinite if a number overflows.

    A and B each get half of the power of two in the scaling, truncated towards zero, so that folding by s
    and then by 1/s gives the same bits. The rest (sign, odd factor) goes into B, which is rounded once. If
    that costs more than one rounding in the type, because numbers leave its normal range, the other ways to
    share the power of two are searched, and the one with the smallest error is taken.
    """
    mantissa, exponent = math.frexp(w.scaling)
    mantissa, exponent = mantissa * 2, exponent - 1 if mantissa else 0
    share = int(exponent / 2)
    same = mantissa == 1 and (w.A.dtype, w.B.dtype) == (a_type, b_type)
    if same:
        B = shifted(w.B, exponent - share)
        A = None if B is None else shifted(w.A, share)
        if A is not None and B is not None:
            return replace(w, A=A, B=B, scaling=1.0), 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # an overflow gives an infinite error
        attempt = _Attempt(w, mantissa, exponent, a_type, b_type)
        halves = np.float16 in (a_type, b_type)
        unavoidable = 0.0 if same else max(eps(np.dtype(a_type)), eps(np.dtype(b_type))) / 2
        if (same and halves) or attempt.error(share) > unavoidable:
            share = attempt.best_share(share)
        return attempt.weight(share), attempt.error(share)


class _Attempt:
    """Stores one weight with a part of the power of two (`share`, an exponent) in A, and measures the error."""

    def __init__(self, w: LoraWeight, mantissa: float, exponent: int, a_type: Any, b_type: Any) -> None:
        self.w, self.mantissa, self.exponent, self.types = w, mantissa, exponent, (a_type, b_type)
        self.wide: Any = np.float32 if self._halves(w.A, a_type) and self._halves(w.B, b_type) else np.float64
        self.A, self.B = widen(w.A, self.wide), widen(w.B, self.wide)
        self.probes = random_columns(self.A.shape[1]).astype(self.wide, copy=False)
        self.applied = self.A @ self.probes
        self.size = _norm(self.B @ self.applied) * abs(w.scaling)
        self.cached: dict[int, tuple[Array, Array] | None] = {}

    @staticmethod
    def _halves(factor: Array, kind: Any) -> bool:
        return factor.dtype == np.float16 and kind == np.float16

    def _times(self, share: int) -> tuple[float, float]:
        return math.ldexp(1.0, share), math.ldexp(self.mantissa, self.exponent - share)

    def weight(self, share: int) -> LoraWeight:
        """The weight with A and B as they are stored."""
        A, B = (
            halves_times(times)[0].take(factor.view(np.uint16))
            if self._halves(factor, kind)
            else rounded(widen(factor) * times, kind).astype(kind)
            for factor, kind, times in zip((self.w.A, self.w.B), self.types, self._times(share), strict=True)
        )
        return replace(self.w, A=A, B=B, scaling=1.0)

    def _rounding(self, factor: Array, kind: Any, times: float) -> Array:
        """Stored factor minus exact factor, in the wide type."""
        if self._halves(factor, kind):
            return halves_times(times)[1].take(factor.view(np.uint16))
        product = widen(factor) * times
        return rounded(product, kind) - product

    def lost(self, share: int) -> tuple[Array, Array] | None:
        """How rounding A and rounding B change the update's product with the probes; None if every entry is exact."""
        if share not in self.cached:
            down, up = self._times(share)
            lost_a = self._rounding(self.w.A, self.types[0], down)
            lost_b = self._rounding(self.w.B, self.types[1], up)
            exact = abs(self.mantissa) in (0.0, 1.0) and not (lost_a.any() or lost_b.any())
            # computed from the small rounding errors: a difference of two nearly equal products would lose digits
            lost = lost_a @ self.probes
            from_a, from_b = self.B @ lost, lost_b @ (self.applied * self.wide(down) + lost)
            self.cached[share] = None if exact else (from_a.astype(np.float64) * up, from_b.astype(np.float64))
        return self.cached[share]

    def error(self, share: int) -> float:
        """Relative error of the update; never 0.0 if an entry that changes the update is not exact."""
        if (lost := self.lost(share)) is None:
            return 0.0
        drift = _norm(lost[0] + lost[1])
        if not self.size:  # the update is zero, or too small to be measured
            live = self.w.A.astype(bool).any(axis=1) & self.w.B.astype(bool).any(axis=0)
            return math.inf if drift or (self.w.scaling and live.any()) else 0.0
        return max(drift / self.size, math.ulp(0.0)) if math.isfinite(drift) else math.inf

    def best_share(self, usual: int) -> int:
        """The share with the smallest error among those with which nothing overflows; `usual` if there is none.

        A larger share makes the error of A smaller and that of B larger, so the two curves cross once. The search
        begins at the share that makes A and B equally large.
        """
        top_a, top_b = (math.frexp(peak(factor))[1] for factor in (self.w.A, self.w.B))
        most_a, most_b = (_TOP[np.dtype(kind).name] for kind in self.types)
        whole = abs(self.mantissa) == 1
        low, high = self.exponent + (not whole) + top_b - most_b, most_a - top_a
        if whole and self.wide is np.float32:  # float16 is exact when it grows: nothing to gain if both shrink or grow
            low, high = max(low, min(0, self.exponent)), min(high, max(0, self.exponent))
        sizes = _norm(self.A), _norm(self.B)
        if low > high or not 0 < self.size < math.inf or math.inf in sizes:
            return usual
        share = math.floor((math.log2(sizes[1] / sizes[0]) + self.exponent) / 2 + 0.4)
        step, last, turned = 1, 0, False
        while low <= high:
            share = min(max(share, low), high)
            if (lost := self.lost(share)) is None:
                return share
            from_a, from_b = (_norm(x) for x in lost)
            lean = (from_a > _LEAN * from_b) - (from_b > _LEAN * from_a)
            if not lean:
                break
            low, high = (share + 1, high) if lean > 0 else (low, share - 1)
            turned = turned or lean == -last
            share, step, last = (low + high) // 2 if turned else share + lean * step, 2 * step, lean
        # compared to two digits: the digits after them differ between processors
        return min(self.cached, key=lambda tried: (float(f"{self.error(tried):.1e}"), abs(tried - usual)))


def _norm(x: Array) -> float:
    return float(np.linalg.norm(x))
