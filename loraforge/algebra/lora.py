"""The row algebra of low-rank updates: numbers only, no names and no files."""

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
    """The update `scaling * B @ A` of some consecutive output rows."""

    A: Array
    """[rank, in]"""
    B: Array
    """[rows, rank]"""
    scaling: float
    """alpha / rank (rsLoRA: alpha / sqrt(rank)). Never alpha itself, whose meaning depends on the rank."""
    magnitude: Array | None = None
    """[rows]: DoRA's norm of each row of base weight + update. None for plain LoRA."""
    kernel: tuple[int, ...] = ()
    """The kernel of a convolution: (height, width), or (frames, height, width) in 3D; () for a linear module.

    The A of a convolution is [rank, in * product of the kernel] here.
    """

    @property
    def rows(self) -> int:
        return int(self.B.shape[0])

    @property
    def rank(self) -> int:
        return int(self.B.shape[1])

    def base_shape(self, rows: int) -> tuple[int, ...]:
        """Shape of `rows` rows of the base weight that is updated."""
        return rows, self.A.shape[1] // math.prod(self.kernel), *self.kernel

    def take(self, start: int, stop: int) -> LoraWeight:
        magnitude = None if self.magnitude is None else self.magnitude[start:stop]
        return replace(self, B=self.B[start:stop], magnitude=magnitude)


CEILING = 0.01
"""The largest relative error of a module's update that counts as rounding; with more it is another adapter.

bfloat16, the coarsest type, costs 0.2 to 0.4 %.
"""

Delta = tuple[LoraWeight, ...]
"""The update of one module: row blocks, stacked on dim 0."""


def rows(delta: Delta) -> int:
    return sum(w.rows for w in delta)


def zero(count: int, like: LoraWeight) -> Delta:
    """An update of `count` rows that changes nothing: rank 0."""
    return (LoraWeight(like.A[:0], np.zeros((count, 0), like.B.dtype), like.scaling, kernel=like.kernel),)


def is_zero(delta: Delta) -> bool:
    """Whether the update is zero because A, B or the scaling is. Never for DoRA, which also sets the rows' norms."""
    return all(w.magnitude is None and not (w.scaling and w.A.any() and w.B.any()) for w in delta)


def pad(w: LoraWeight, rank: int) -> LoraWeight:
    """The same update at a larger rank: the added components are zero. Exact."""
    more = rank - w.rank
    if not more:
        return w
    A = np.concatenate([w.A, np.zeros((more, w.A.shape[1]), w.A.dtype)])
    return replace(w, A=A, B=np.concatenate([w.B, np.zeros((w.rows, more), w.B.dtype)], axis=1))


def fuse(deltas: Sequence[Delta]) -> Delta:
    """Stack the rows of several modules, without arithmetic and without a larger rank."""
    return tuple(w for delta in deltas for w in delta)


def split(delta: Delta, sizes: Sequence[int]) -> list[Delta]:
    """Cut the rows into parts of `sizes` rows. A block that is cut loses the components that its rows do not use.

    Raises ConversionError if the sizes do not add up to the number of rows.
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
    """Drop components that are exactly zero (undoes a block diagonal); if all are, nothing is dropped."""
    keep = w.B.astype(bool).any(axis=0) & w.A.astype(bool).any(axis=1)
    return w if keep.all() or not keep.any() else replace(w, A=w.A[keep], B=w.B[:, keep])


def collapse(delta: Delta) -> LoraWeight:
    """One (A, B) for the whole module: of the same rank if all blocks share A, else of the sum of the ranks. Exact.

    Raises ConversionError if the blocks have different scalings (fold them first), or if only some rows have
    DoRA: the magnitudes of the others are the norms of base rows, which are not known here.
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
        text = "the row blocks of one module have different scalings, and there is one place to store it"
        raise ConversionError(text)
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


PROBES = 8
"""Number of random vectors on which two updates are compared. A wrong update does not pass by chance."""


@cache
def random_columns(width: int) -> Array:
    """Standard normal numbers [width, PROBES], the same in every run."""
    return np.random.default_rng(0x10BA).standard_normal((width, PROBES))
