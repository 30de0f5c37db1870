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
from loraforge.half import narrow, widen

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

    @property
    def rows(self) -> int:
        return int(self.B.shape[0])

    @property
    def rank(self) -> int:
        return int(self.B.shape[1])

    def take(self, start: int, stop: int) -> LoraWeight:
        return replace(self, B=self.B[start:stop])


Delta = tuple[LoraWeight, ...]
"""The update of one module: row blocks, stacked on dim 0."""


def rows(delta: Delta) -> int:
    return sum(w.rows for w in delta)


def zero(count: int, like: LoraWeight) -> Delta:
    """No update of `count` rows: rank 0."""
    return (LoraWeight(like.A[:0], np.zeros((count, 0), like.B.dtype), like.scaling),)


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

    Raises ConversionError when the blocks have different scalings: fold them first.
    """
    if len(delta) == 1:
        return delta[0]
    live = [w for w in delta if w.rank] or [delta[0]]
    first = live[0]
    if any(w.scaling != first.scaling for w in live):
        raise ConversionError(
            "the row blocks of one module have different scalings, and there is one place to store it"
        )
    if all(np.array_equal(w.A, first.A) for w in delta):
        return LoraWeight(first.A, np.concatenate([w.B for w in delta]), first.scaling)
    dtype = np.result_type(*(factor.dtype for w in live for factor in (w.A, w.B)))
    B = np.zeros((rows(delta), sum(w.rank for w in delta)), dtype)
    row = column = 0
    for w in delta:  # block diagonal
        B[row : row + w.rows, column : column + w.rank] = w.B
        row, column = row + w.rows, column + w.rank
    return LoraWeight(np.concatenate([w.A.astype(dtype, copy=False) for w in delta]), B, first.scaling)


def fold(w: LoraWeight, a_type: Any, b_type: Any) -> tuple[LoraWeight, float]:
    """Move the scaling into A and B and store them as `a_type` and `b_type`.

    Returns the weight, now of scaling 1.0, and the relative error of its update in the Frobenius
    norm: 0.0 only where every entry is exact, or the update is zero before and after.

    The power of two in the scaling is shared between A and B, cut towards zero, so that folding by s
    and then by 1/s gives the same bits; the rest (sign, odd factor) goes to B, one rounding. Where that
    is not exact in float16, whose small entries lose bits, other shares are tried, and the one with the
    smallest measured error is kept.
    """
    A, B = widen(w.A), widen(w.B)
    mantissa, exponent = math.frexp(w.scaling)
    mantissa, exponent = mantissa * 2, exponent - 1 if mantissa else 0
    probes = random_columns(A.shape[1])
    update = B @ (A @ probes) * w.scaling
    size = float(np.linalg.norm(update))

    def attempt(share: int) -> tuple[float, LoraWeight]:
        down, up = A * math.ldexp(1.0, share), B * math.ldexp(mantissa, exponent - share)
        folded = LoraWeight(narrow(down, a_type), narrow(up, b_type), 1.0)
        A64, B64 = widen(folded.A), widen(folded.B)
        if not (np.isfinite(A64).all() and np.isfinite(B64).all()):
            return math.inf, folded
        if abs(mantissa) in (0.0, 1.0) and np.array_equal(A64, down) and np.array_equal(B64, up):
            return 0.0, folded
        drift = float(np.linalg.norm(B64 @ (A64 @ probes) - update))
        return (max(drift / size, math.ulp(0.0)) if size else 0.0), folded

    error, folded = attempt(int(exponent / 2))
    if error and np.float16 in (a_type, b_type):
        # the loss is least where A and B come out equally large; from there, downhill
        lowest, highest = sorted((0, exponent))
        level = (math.log2(np.linalg.norm(B) / np.linalg.norm(A)) + exponent) / 2 if A.any() and B.any() else 0
        share = min(max(round(level), lowest), highest)
        tried = {share: attempt(share)}
        for direction in (1, -1):
            while lowest <= share + direction <= highest:
                tried[share + direction] = attempt(share + direction)
                if tried[share + direction][0] >= tried[share][0]:
                    break
                share += direction
        error, folded = min([(error, folded), *tried.values()], key=lambda result: result[0])
    return folded, error


PROBES = 8
"""Random vectors an update is tried on. A wrong update passes none of them by chance."""


@cache
def random_columns(width: int) -> Array:
    """[width, PROBES] standard normal numbers, the same in every run."""
    return np.random.default_rng(0x10BA).standard_normal((width, PROBES))
