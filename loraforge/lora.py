"""Numbers only: the row algebra of low-rank updates. Knows no names and no files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from loraforge.errors import ConversionError
from loraforge.half import halves_times, rounded, shifted, widen

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
    norm: 0.0 only where every entry is exact, or the update is zero before and after.

    The power of two in the scaling is shared between A and B, cut towards zero, so that folding by s
    and then by 1/s gives the same bits; the rest (sign, odd factor) goes to B, one rounding. In float16,
    where small entries lose bits, several shares are tried, and the one with the smallest measured
    error is kept.
    """
    mantissa, exponent = math.frexp(w.scaling)
    mantissa, exponent = mantissa * 2, exponent - 1 if mantissa else 0
    share = int(exponent / 2)
    if mantissa == 1 and (w.A.dtype, w.B.dtype) == (a_type, b_type):
        B = shifted(w.B, exponent - share)
        A = None if B is None else shifted(w.A, share)
        if A is not None and B is not None:
            return replace(w, A=A, B=B, scaling=1.0), 0.0
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows comes out as an infinite error
        attempt = _Attempt(w, mantissa, exponent, a_type, b_type)
        if np.float16 in (a_type, b_type):
            share = attempt.best_share()
        return attempt.weight(share), attempt.error(attempt(share))


class _Attempt:
    """Stores one weight with a share of the power of two in A, and measures what that costs."""

    def __init__(self, w: LoraWeight, mantissa: float, exponent: int, a_type: Any, b_type: Any) -> None:
        self.w, self.mantissa, self.exponent, self.types = w, mantissa, exponent, (a_type, b_type)
        self.wide: Any = np.float32 if self._halves(w.A, a_type) and self._halves(w.B, b_type) else np.float64
        self.A, self.B = widen(w.A, self.wide), widen(w.B, self.wide)
        self.probes = random_columns(self.A.shape[1]).astype(self.wide, copy=False)
        self.size = float(np.linalg.norm(self.B @ (self.A @ self.probes))) * abs(w.scaling)
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

    def _stored(self, factor: Array, kind: Any, times: float) -> tuple[Array, Array]:
        """A factor as it is stored, in the wide type, and what rounding it lost."""
        if self._halves(factor, kind):
            _, values, lost = halves_times(times)
            bits = factor.view(np.uint16)
            return values.take(bits), lost.take(bits)
        product = widen(factor) * times
        kept = rounded(product, kind)
        return kept, kept - product

    def __call__(self, share: int) -> tuple[Array, Array] | None:
        """What rounding A and rounding B does to the probes; None where every entry is exact."""
        if share not in self.cached:
            down, up = self._times(share)
            A, lost_a = self._stored(self.w.A, self.types[0], down)
            _, lost_b = self._stored(self.w.B, self.types[1], up)
            exact = abs(self.mantissa) in (0.0, 1.0) and not (lost_a.any() or lost_b.any())
            # each a product with a small factor, never the difference of two nearly equal products
            lost = None if exact else (self.B @ (lost_a @ self.probes) * up, lost_b @ (A @ self.probes))
            self.cached[share] = lost
        return self.cached[share]

    def error(self, lost: tuple[Array, Array] | None) -> float:
        """Relative error of the update; never 0.0 where an entry that matters is not exact."""
        if lost is None or not self.size:
            return 0.0
        drift = float(np.linalg.norm(lost[0] + lost[1]))
        return max(drift / self.size, math.ulp(0.0)) if math.isfinite(drift) else math.inf

    def best_share(self) -> int:
        """The share that loses least: from where A and B come out equally large, while one of them loses the more.

        A step of one halves what one factor loses to float16's smallest numbers and doubles the other's:
        it pays where the first is more than twice the second.
        """
        lowest, highest = sorted((0, self.exponent))
        sizes = float(np.linalg.norm(self.A)), float(np.linalg.norm(self.B))
        level = (math.log2(sizes[1] / sizes[0]) + self.exponent) / 2 if all(sizes) else 0
        share, best, direction = min(max(round(level), lowest), highest), math.inf, 0
        while True:
            lost = self(share)
            error = self.error(lost)
            if lost is None or error >= best:
                return share if error < best else share - direction
            from_a, from_b = (float(np.linalg.norm(x)) for x in lost)
            step = (from_a > 2 * from_b) - (from_b > 2 * from_a)
            if step == 0 or step == -direction or not lowest <= share + step <= highest:
                return share
            share, best, direction = share + step, error, step


PROBES = 8
"""Random vectors an update is tried on. A wrong update passes none of them by chance."""


@cache
def random_columns(width: int) -> Array:
    """[width, PROBES] standard normal numbers, the same in every run."""
    return np.random.default_rng(0x10BA).standard_normal((width, PROBES))
