"""Proof: two adapters make the same update, tried on random vectors (Freivalds) and judged row by row."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from loraforge.adapter import Adapter
from loraforge.dtypes import eps, subnormal
from loraforge.errors import VerificationError, listed
from loraforge.graph import to_segments
from loraforge.half import widen
from loraforge.layout import architecture
from loraforge.lora import Array, Delta, LoraWeight, random_columns
from loraforge.threads import in_order

EXACT = 1e-6
"""What a row may be off by where its module is stored exactly, as a share of the row's size."""

ROUNDED = 4
"""The same where it was rounded once, in units of the element type's eps."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """One segment of the base model, as both adapters update it."""

    module: str
    error: float
    """Of the worst row, as a share of that row's size."""
    holds: bool


def compare(
    source: Adapter, result: Adapter, rounded: Collection[str] = (), release: Callable[[], None] = lambda: None
) -> list[Comparison]:
    """Compare the updates segment by segment, wherever their rows sit in either layout.

    For x of independent standard normal entries, `s B (A x)` is computed in float64 on both sides. A
    row's error is the root mean square of the difference over the probes; its size is
    `|s| sqrt(sum_k B_ik^2 |A_k|^2)`, which does not shrink when components cancel. A row may be
    off by EXACT of its size, in the `rounded` modules of `result` by ROUNDED eps of the element type
    and one smallest subnormal per entry.

    Raises VerificationError when one side has rows the other has not.
    """
    arch = architecture(source.architecture)
    mine, theirs = to_segments(source.modules, arch, source.layout), to_segments(result.modules, arch, result.layout)
    if odd := mine.keys() ^ theirs.keys():
        names = sorted((mine.get(place) or theirs[place])[0] for place in odd)
        raise VerificationError(f"{len(odd)} segments are adapted on one side only: {listed(names)}.")

    def judge(item: tuple[str, Delta, Delta]) -> Comparison:
        path, one, other = item
        (want, size), (got, grain) = _probe(one, _size), _probe(other, _grain if path in rounded else _nothing)
        if want.shape != got.shape:
            raise VerificationError(f"{path}: {want.shape[0]} rows on one side, {got.shape[0]} on the other.")
        error = np.sqrt(np.square(got - want).mean(axis=1))
        allowed = ROUNDED * _unit(other) * size + grain if path in rounded else EXACT * size
        worst = float((error / np.where(size > 0, size, 1.0)).max())
        return Comparison(path, worst, bool((error <= allowed).all()))

    pairs = ((theirs[place][0], part, theirs[place][1]) for place, (_, part) in mine.items())
    out = []
    for comparison in in_order(judge, pairs):
        out.append(comparison)
        release()
    return out


Measure = Callable[[LoraWeight, Array, Array], Array]


def _probe(delta: Delta, measure: Measure) -> tuple[Array, Array]:
    """Per row: the update applied to the probes, and a measure of the squares of A and B."""
    applied, measured = [], []
    for w in delta:
        A, B = widen(w.A), widen(w.B)
        applied.append(w.scaling * (B @ (A @ random_columns(A.shape[1]))))
        measured.append(abs(w.scaling) * measure(w, A, B))
    return np.concatenate(applied), np.concatenate(measured)


def _size(_: LoraWeight, A: Array, B: Array) -> Array:
    """How large a row of the update would be if its components did not cancel."""
    lengths = np.square(A, out=A).sum(axis=1)
    size: Array = np.sqrt(np.square(B, out=B) @ lengths)
    return size


def _grain(w: LoraWeight, A: Array, B: Array) -> Array:
    """What one smallest subnormal per entry of A and B is worth to a row."""
    from_a: Array = subnormal(w.A.dtype) * np.sqrt(A.shape[1] * np.square(B, out=B).sum(axis=1))
    return from_a + subnormal(w.B.dtype) * float(np.linalg.norm(A))


def _nothing(_: LoraWeight, __: Array, B: Array) -> Array:
    return np.zeros(B.shape[0])


def _unit(delta: Delta) -> float:
    return max(eps(factor.dtype) for w in delta for factor in (w.A, w.B))
