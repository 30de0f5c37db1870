"""Numbers only: the row algebra of low-rank updates. Knows no names and no files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from loraforge.dtypes import eps
from loraforge.errors import ConversionError
from loraforge.half import halves_times, peak, rounded, shifted, widen

Array = npt.NDArray[Any]
"""A factor: float16, bfloat16 (ml_dtypes), float32 or float64."""


@dataclass(frozen=True, slots=True)
class LoraWeight:
    """The update `scaling * B @ A` of a run of output rows."""

    A: Array
    """[rank, in]"""
    B: Array
    """[rows, rank]"""
    scaling: float
    """alpha / rank (rsLoRA: alpha / sqrt(rank)). Never alpha: that changes meaning with the rank."""
    magnitude: Array | None = None
    """[rows]: DoRA's length of each row of base weight + update. None for plain LoRA."""
    kernel: tuple[int, ...] = ()
    """A convolution's kernel, (height, width), after the frames in 3D. Its A is [rank, in * their product] here.

    () for a linear module.
    """

    @property
    def rows(self) -> int:
        return int(self.B.shape[0])

    @property
    def rank(self) -> int:
        return int(self.B.shape[1])

    def base_shape(self, rows: int) -> tuple[int, ...]:
        """Shape of `rows` rows of the base weight that this updates."""
        return rows, self.A.shape[1] // math.prod(self.kernel), *self.kernel

    def take(self, start: int, stop: int) -> LoraWeight:
        magnitude = None if self.magnitude is None else self.magnitude[start:stop]
        return replace(self, B=self.B[start:stop], magnitude=magnitude)


CEILING = 0.01
"""The share of a module's update that rounding may cost. More than that is another adapter, not a rounded one.

bfloat16, the coarsest type there is, costs 0.2 to 0.4 %.
"""

Delta = tuple[LoraWeight, ...]
"""The update of one module: row blocks, stacked on dim 0."""


def rows(delta: Delta) -> int:
    return sum(w.rows for w in delta)


def zero(count: int, like: LoraWeight) -> Delta:
    """No update of `count` rows: rank 0."""
    return (LoraWeight(like.A[:0], np.zeros((count, 0), like.B.dtype), like.scaling, kernel=like.kernel),)


def is_zero(delta: Delta) -> bool:
    """Whether the update is zero because a factor is. DoRA is not: it also sets the length of the base rows."""
    return all(w.magnitude is None and not (w.scaling and w.A.any() and w.B.any()) for w in delta)


def pad(w: LoraWeight, rank: int) -> LoraWeight:
    """The same update at a larger rank, by components that are zero. Exact."""
    more = rank - w.rank
    if not more:
        return w
    A = np.concatenate([w.A, np.zeros((more, w.A.shape[1]), w.A.dtype)])
    return replace(w, A=A, B=np.concatenate([w.B, np.zeros((w.rows, more), w.B.dtype)], axis=1))


def fuse(deltas: Sequence[Delta]) -> Delta:
    """Stack the rows of several modules. No arithmetic, no growth of the rank."""
    return tuple(w for delta in deltas for w in delta)


def split(delta: Delta, sizes: Sequence[int]) -> list[Delta]:
    """Cut the rows into runs of `sizes`. A block that is really cut loses the components it no longer uses.

    Raises ConversionError when the sizes do not add up to the rows.
    """
    if sum(sizes) != rows(delta):
        raise ConversionError(f"{rows(delta)} rows cannot be split as {list(sizes)}")
    parts: list[Delta] = []
    queue = [(w, False) for w in delta]  # a block, and whether it has been cut
    for size in sizes:
        part: list[LoraWeight] = []
        while size:
            w, cut = queue.pop(0)
            count = min(size, w.rows)
            if count < w.rows:
                queue.insert(0, (w.take(count, w.rows), True))
                w, cut = w.take(0, count), True
            part.append(prune(w) if cut else w)
            size -= count
        parts.append(tuple(part))
    return parts


def prune(w: LoraWeight) -> LoraWeight:
    """Drop components that are exactly zero (undoes a block diagonal); keep at least one."""
    keep = w.B.astype(bool).any(axis=0) & w.A.astype(bool).any(axis=1)
    return w if keep.all() or not keep.any() else replace(w, A=w.A[keep], B=w.B[:, keep])


def collapse(delta: Delta) -> LoraWeight:
    """One (A, B) for the whole module: rank r where every block shares A, else the sum of the ranks. Exact.

    Raises ConversionError when the blocks have different scalings (fold them first), or when DoRA is on
    some rows only: the magnitude of the others is the length of base rows, which are not at hand.
    """
    if len(delta) == 1:
        return delta[0]
    live = [w for w in delta if w.rank] or [delta[0]]
    first = live[0]
    lengths = [w.magnitude for w in delta if w.magnitude is not None]
    if lengths and len(lengths) < len(delta):
        raise ConversionError("DoRA adapts some of its rows only, and the magnitudes of the others are not known")
    magnitude = np.concatenate(lengths) if lengths else None
    if any(w.scaling != first.scaling for w in live):
        raise ConversionError(
            "the row blocks of one module have different scalings, and there is one place to store it"
        )
    if all(np.array_equal(w.A, first.A) for w in delta):
        return replace(first, B=np.concatenate([w.B for w in delta]), magnitude=magnitude)
    dtype = np.result_type(*(factor.dtype for w in live for factor in (w.A, w.B)))
    B = np.zeros((rows(delta), sum(w.rank for w in delta)), dtype)
    row = column = 0
    for w in delta:  # block diagonal
        B[row : row + w.rows, column : column + w.rank] = w.B
        row, column = row + w.rows, column + w.rank
    A = np.concatenate([w.A.astype(dtype, copy=False) for w in delta])
    return replace(first, A=A, B=B, magnitude=magnitude)


def fold(w: LoraWeight, a_type: Any, b_type: Any) -> tuple[LoraWeight, float]:
    """Move the scaling into A and B and store them as `a_type` and `b_type`.

    Returns the weight, now of scaling 1.0, and the relative error of its update in the Frobenius
    norm: 0.0 only where every entry is exact, or the update is zero before and after; infinite
    where a number overflows.

    The power of two in the scaling is shared between A and B, cut towards zero, so that folding by s
    and then by 1/s gives the same bits; the rest (sign, odd factor) goes to B, one rounding. Where that
    loses more than the type's own rounding, because numbers fall below the normal range of the type or
    above it, every other power of two between the two is open, and the one that loses least is taken.
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
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows comes out as an infinite error
        attempt = _Attempt(w, mantissa, exponent, a_type, b_type)
        halves = np.float16 in (a_type, b_type)
        unavoidable = 0.0 if same else max(eps(np.dtype(a_type)), eps(np.dtype(b_type))) / 2
        if (same and halves) or attempt.error(share) > unavoidable:
            share = attempt.best_share(share)
        return attempt.weight(share), attempt.error(share)


_LEAN = 2.2
"""How many times as much as the other a factor must lose before another share is tried. A step of one halves what
one loses to the smallest numbers and doubles the other's: it pays from a ratio of 2 on. A little more, so that for
losses in the ratio of two powers of two it is not the last bit of a sum, which is the processor's, that decides."""


class _Attempt:
    """Stores one weight with a share of the power of two in A, and measures what that costs."""

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
        """A and B as they are stored."""
        A, B = (
            halves_times(times)[0].take(factor.view(np.uint16))
            if self._halves(factor, kind)
            else rounded(widen(factor) * times, kind).astype(kind)
            for factor, kind, times in zip((self.w.A, self.w.B), self.types, self._times(share), strict=True)
        )
        return replace(self.w, A=A, B=B, scaling=1.0)

    def _rounding(self, factor: Array, kind: Any, times: float) -> Array:
        """What storing a factor adds to it, in the wide type."""
        if self._halves(factor, kind):
            return halves_times(times)[1].take(factor.view(np.uint16))
        product = widen(factor) * times
        return rounded(product, kind) - product

    def lost(self, share: int) -> tuple[Array, Array] | None:
        """What rounding A and rounding B does to the probes; None where every entry is exact."""
        if share not in self.cached:
            down, up = self._times(share)
            lost_a = self._rounding(self.w.A, self.types[0], down)
            lost_b = self._rounding(self.w.B, self.types[1], up)
            exact = abs(self.mantissa) in (0.0, 1.0) and not (lost_a.any() or lost_b.any())
            # each a product with a small factor, never the difference of two nearly equal products
            lost = lost_a @ self.probes
            from_a, from_b = self.B @ lost, lost_b @ (self.applied * self.wide(down) + lost)
            self.cached[share] = None if exact else (from_a.astype(np.float64) * up, from_b.astype(np.float64))
        return self.cached[share]

    def error(self, share: int) -> float:
        """Relative error of the update; never 0.0 where an entry that matters is not exact."""
        if (lost := self.lost(share)) is None:
            return 0.0
        drift = _norm(lost[0] + lost[1])
        if not self.size:  # no update, or one too small to be measured
            live = self.w.A.astype(bool).any(axis=1) & self.w.B.astype(bool).any(axis=0)
            return math.inf if drift or (self.w.scaling and live.any()) else 0.0
        return max(drift / self.size, math.ulp(0.0)) if math.isfinite(drift) else math.inf

    def best_share(self, usual: int) -> int:
        """Of all shares with which nothing overflows the one that loses least; `usual` where there is none.

        The more of the power of two A gets, the less A loses and the more B does: the two cross once. The search
        begins where A and B come out equally large.
        """
        top_a, top_b = (math.frexp(peak(factor))[1] for factor in (self.w.A, self.w.B))
        most_a, most_b = (_TOP[np.dtype(kind).name] for kind in self.types)
        whole = abs(self.mantissa) == 1
        low, high = self.exponent + (not whole) + top_b - most_b, most_a - top_a
        if whole and self.wide is np.float32:  # halves lose nothing by growing: no gain where both shrink, or both grow
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
        # to two digits: what comes after them is the processor's
        return min(self.cached, key=lambda tried: (float(f"{self.error(tried):.1e}"), abs(tried - usual)))


_TOP = {"float16": 15, "bfloat16": 127, "float32": 127, "float64": 1023}
"""Every number below 2 to this is one of the type, whatever rounding does."""


def _norm(x: Array) -> float:
    return float(np.linalg.norm(x))


PROBES = 8
"""Random vectors an update is tried on. A wrong update passes none of them by chance."""


@cache
def random_columns(width: int) -> Array:
    """[width, PROBES] standard normal numbers, the same in every run."""
    return np.random.default_rng(0x10BA).standard_normal((width, PROBES))
