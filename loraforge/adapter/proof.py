"""Proof that two adapters make the same update: compared on random vectors (Freivalds), row by row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from loraforge.adapter.adapter import Adapter
from loraforge.adapter.differences import segments
from loraforge.adapter.relayout import Place
from loraforge.algebra.dtypes import eps, subnormal
from loraforge.algebra.half import widen
from loraforge.algebra.lora import CEILING, Array, Delta, LoraWeight, is_zero, random_columns
from loraforge.errors import VerificationError
from loraforge.files.tensorfile import RELEASE_EVERY, TensorFile
from loraforge.threads import in_order

Placed = dict[tuple[str, Place], tuple[str, Delta]]

EXACT = 1e-6
"""The largest error of a row in a module that is stored exactly, as a share of the row's size."""

ROUNDED = 4
"""The same for a module that was rounded once, in units of the element type's eps."""


class Comparison(NamedTuple):
    """One segment of the base model, as both adapters update it."""

    module: str
    """Path of its module in the second adapter."""
    error: float
    """The error of the worst row, as a share of that row's size."""
    rows: int
    off: int
    """Number of rows whose error is larger than allowed."""
    strength: float
    """The factor between the first update and the second, by least squares; nan if the first is zero."""
    scaled: float
    """The worst row's error after the first update is multiplied by `strength`."""
    allowed: float = EXACT
    """The error that is allowed in a row, as a share of its size, without that of the smallest subnormals."""
    loss: float = 0.0
    """Norm of the difference of the two updates, as a share of the first; infinite if the first is zero."""
    rounding: bool = True
    """Whether rounding explains the error of every row. If rows are `off` even so, rounding cost more than CEILING."""

    @property
    def holds(self) -> bool:
        return not self.off


def pair_up(source: Adapter, result: Adapter) -> tuple[list[tuple[str, Delta, Delta]], tuple[list[str], list[str]]]:
    """The segments in both adapters, each with its path in the second; and what only the first or the second changes.

    A segment whose update is exactly zero changes nothing and needs no partner.
    """
    mine, theirs = segments(source), segments(replace(result, architecture=source.architecture, last=source.last))
    pairs = [(theirs[place][0], part, theirs[place][1]) for place, (_, part) in mine.items() if place in theirs]

    def alone(one: Placed, other: Placed) -> list[str]:
        return sorted({path for place, (path, delta) in one.items() if place not in other and not is_zero(delta)})

    return pairs, (alone(mine, theirs), alone(theirs, mine))


def compare(
    pairs: Iterable[tuple[str, Delta, Delta]],
    is_rounded: Callable[[str], bool] = lambda _: False,
    *files: TensorFile | None,
) -> list[Comparison]:
    """Compare updates segment by segment; the layouts may differ.

    For probes x of independent standard normal entries, `s B (A x)` is computed in float64 on both sides.
    The error of a row is the root mean square of the difference over the probes. Its size is
    `|s| sqrt(sum_k B_ik^2 |A_k|^2)`, which does not shrink if components cancel. A row may have an error
    of EXACT of its size; in a module that `is_rounded`, of ROUNDED eps of the coarser element type plus one
    smallest subnormal per entry. In any case the error of the whole segment is at most CEILING of its update.
    DoRA's magnitudes are compared as numbers, with the same bounds. The memory of `files` is released now and then.

    Raises VerificationError if the numbers of rows differ, or if only one side has DoRA.
    """

    def judge(item: tuple[str, Delta, Delta]) -> Comparison:
        path, one, other = item
        _comparable(path, one, other)
        expected, actual = _applied(one), _applied(other)
        if expected.shape != actual.shape:
            raise VerificationError(f"{path}: {expected.shape[0]} rows on one side, {actual.shape[0]} on the other.")
        error = np.sqrt(np.square(actual - expected).mean(axis=1))
        lengths = _lengths(path, one, other)
        if not error.any() and lengths is None:  # so it is if only powers of two were moved
            return Comparison(path, 0.0, len(error), 0, 1.0 if expected.any() else np.nan, 0.0)
        size = _size(one)
        share = EXACT
        if is_rounded(path):
            share = max(EXACT, ROUNDED * max(eps(factor.dtype) for w in (*one, *other) for factor in (w.A, w.B)))
        allowed = share * size
        if share > EXACT and (error > allowed).any():
            allowed += np.maximum(_grain(one), _grain(other))
        off = ~(error <= allowed)  # written so that NaN counts as off
        worst = error / np.where(size > 0, size, 1.0)
        if lengths is not None:
            off, worst = off | ~(lengths <= share), np.maximum(worst, lengths)
        rounding, norms = not off.any(), np.sqrt(np.square(expected).mean(axis=1))
        difference, norm = float(np.linalg.norm(error)), float(np.linalg.norm(norms))
        if difference > max(CEILING * norm, _NOISE * float(np.linalg.norm(size))):
            off |= error > CEILING * norms
        strength = float(np.vdot(expected, actual) / np.vdot(expected, expected)) if expected.any() else np.nan
        rest = np.sqrt(np.square(actual - strength * expected).mean(axis=1)) if expected.any() else error
        scaled = rest / np.where(size > 0, size * abs(strength), 1.0) if expected.any() and strength else worst
        scaled = scaled if lengths is None else np.maximum(scaled, lengths)
        loss = difference / norm if norm else np.inf if difference else 0.0
        return Comparison(
            path, float(worst.max()), len(off), int(off.sum()), strength, float(scaled.max()), share, loss, rounding
        )

    out = []
    with in_order(judge, pairs) as comparisons:
        for comparison in comparisons:
            out.append(comparison)
            if len(out) % RELEASE_EVERY == 0:
                for file in filter(None, files):
                    file.release()
    return out


_NOISE = 1e-12
"""The rounding error of float64, as a share of the size: what may be left of an update whose components cancel."""

_RANGE = 1e-100, 1e100
"""Sizes of an update whose squares float64 can hold; only float64 factors and odd scalings can be outside."""


def _comparable(path: str, one: Delta, other: Delta) -> None:
    """Raises VerificationError if the two have different inputs, or numbers too large or small to be squared."""
    (a, k), (b, m) = ((delta[0].A.shape[1], delta[0].kernel) for delta in (one, other))
    if (a, k) != (b, m):
        texts = [f"{n} inputs{f' in a kernel {list(kernel)}' if kernel else ''}" for n, kernel in ((a, k), (b, m))]
        raise VerificationError(f"{path}: {texts[0]} on one side, {texts[1]} on the other.")
    for w in (*one, *other):
        ordinary = not w.scaling or 1e-30 < abs(w.scaling) < 1e30
        if not ordinary or "float64" in (w.A.dtype.name, w.B.dtype.name):
            peaks = [float(np.abs(widen(factor)).max(initial=0)) for factor in (w.A, w.B)]
            size = abs(w.scaling) * peaks[0] * peaks[1]
            if size and not all(_RANGE[0] < value < _RANGE[1] for value in (*peaks, size)):
                raise VerificationError(f"{path}: an update of {size:.0e} cannot be compared (1e-100 to 1e100 can).")


def _lengths(path: str, one: Delta, other: Delta) -> Array | None:
    """Per row: the relative difference of DoRA's magnitudes; None if neither side has any."""
    mine, theirs = ([w.magnitude for w in delta if w.magnitude is not None] for delta in (one, other))
    if not mine and not theirs:
        return None
    if len(mine) < len(one) or len(theirs) < len(other):
        raise VerificationError(f"{path} is a DoRA on one side only.")
    a, b = (np.concatenate([widen(length) for length in lengths]) for lengths in (mine, theirs))
    share: Array = np.abs(a - b) / np.maximum(np.abs(a), np.finfo(np.float64).tiny)
    return share


def _applied(delta: Delta) -> Array:
    """[rows, PROBES]: the update applied to the probes."""
    return np.concatenate([w.scaling * (widen(w.B) @ (widen(w.A) @ random_columns(w.A.shape[1]))) for w in delta])


def _size(delta: Delta) -> Array:
    """Per row: how large the update would be if its components did not cancel."""
    return np.concatenate([abs(w.scaling) * np.sqrt(_squares(w.B) @ _squares(w.A).sum(axis=1)) for w in delta])


def _grain(delta: Delta) -> Array:
    """Per row: the error that one smallest subnormal in every entry of A and B can make."""

    def of(w: LoraWeight) -> Array:
        from_a: Array = subnormal(w.A.dtype) * np.sqrt(w.A.shape[1] * _squares(w.B).sum(axis=1))
        return abs(w.scaling) * (from_a + subnormal(w.B.dtype) * float(np.linalg.norm(widen(w.A))))

    return np.concatenate([of(w) for w in delta])


def _squares(factor: Array) -> Array:
    wide = widen(factor)
    return np.square(wide, out=wide)
