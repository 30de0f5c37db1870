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
from loraforge.tensorfile import RELEASE_EVERY
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
        want, got = _applied(one), _applied(other)
        if want.shape != got.shape:
            raise VerificationError(f"{path}: {want.shape[0]} rows on one side, {got.shape[0]} on the other.")
        error = np.sqrt(np.square(got - want).mean(axis=1))
        if not error.any():  # as it is where only powers of two were moved
            return Comparison(path, 0.0, holds=True)
        size = _size(one)
        allowed = EXACT * size
        if path in rounded:
            allowed = ROUNDED * max(eps(factor.dtype) for w in other for factor in (w.A, w.B)) * size
            if (error > allowed).any():
                allowed += _grain(other)
        worst = float((error / np.where(size > 0, size, 1.0)).max())
        return Comparison(path, worst, bool((error <= allowed).all()))

    pairs = ((theirs[place][0], part, theirs[place][1]) for place, (_, part) in mine.items())
    out = []
    with in_order(judge, pairs) as comparisons:
        for comparison in comparisons:
            out.append(comparison)
            if len(out) % RELEASE_EVERY == 0:
                release()
    return out


def _applied(delta: Delta) -> Array:
    """[rows, PROBES]: the update applied to the probes."""
    return np.concatenate([w.scaling * (widen(w.B) @ (widen(w.A) @ random_columns(w.A.shape[1]))) for w in delta])


def _size(delta: Delta) -> Array:
    """Per row: how large the update would be if its components did not cancel."""
    return np.concatenate([abs(w.scaling) * np.sqrt(_squares(w.B) @ _squares(w.A).sum(axis=1)) for w in delta])


def _grain(delta: Delta) -> Array:
    """Per row: what one smallest subnormal per entry of A and B is worth."""

    def of(w: LoraWeight) -> Array:
        from_a: Array = subnormal(w.A.dtype) * np.sqrt(w.A.shape[1] * _squares(w.B).sum(axis=1))
        return abs(w.scaling) * (from_a + subnormal(w.B.dtype) * float(np.linalg.norm(widen(w.A))))

    return np.concatenate([of(w) for w in delta])


def _squares(factor: Array) -> Array:
    wide = widen(factor)
    return np.square(wide, out=wide)
