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


_LEAN = 2.2
"""How many times as much as the other a factor must lose before another share is tried. A step of one halves what
one loses to the smallest numbers and doubles the other's: it pays from a ratio of 2 on. A little more, so that for
losses in the ratio of two powers of two it is not the last bit of a sum, which is the processor's, that decides."""


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
