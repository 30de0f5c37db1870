"""Measures an adapter's numbers: zero factors, NaN or infinity, lost bits, and the size of the update."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from loraforge.adapter.adapter import Adapter
from loraforge.algebra.dtypes import subnormal
from loraforge.algebra.half import finite, widen
from loraforge.algebra.lora import CEILING, Array, Delta
from loraforge.files.tensorfile import RELEASE_EVERY, TensorFile
from loraforge.threads import in_order

SUBNORMAL = 0.1
"""Share of subnormal entries in a float16 factor above which a note says so: they hold fewer bits."""
_NORMAL = 2.0**-14
"""The smallest normal float16."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """What was measured in the tensors of an adapter."""

    dead: tuple[str, ...]
    """Modules whose A or B is zero: their update is zero."""
    broken: tuple[str, ...]
    """Modules with NaN or infinity."""
    subnormal: tuple[str, ...]
    """Modules with a float16 factor whose entries are subnormal in more than a tenth."""
    coarse: tuple[str, ...]
    """Modules with a float16 factor so small that rounding may have cost more than CEILING of it."""
    sizes: dict[str, float]
    """Module -> |D|, the Frobenius norm of its update at the scale it was read at."""
    dtypes: tuple[str, ...]


def numbers(adapter: Adapter, file: TensorFile | None = None) -> Numbers:
    """Look at every tensor once. Memory: a few modules, if `file` is the one that they are in."""
    marked, sizes, dtypes = defaultdict[str, list[str]](list), dict[str, float](), set[str]()
    with in_order(lambda item: (item[0], *_look(item[1])), adapter.modules.items()) as looks:
        for n, (path, marks, size, kinds) in enumerate(looks):
            dtypes |= kinds
            sizes[path] = size
            for mark in marks:
                marked[mark].append(path)
            if file and n % RELEASE_EVERY == 0:
                file.release()
    dead, broken, low, coarse = (tuple(marked[mark]) for mark in ("dead", "broken", "subnormal", "coarse"))
    return Numbers(dead, broken, low, coarse, sizes, tuple(sorted(dtypes)))


def _look(delta: Delta) -> tuple[set[str], float, set[str]]:
    """The fields of Numbers that list this module, the size of its update, and its element types."""
    factors = [np.ascontiguousarray(factor) for w in delta for factor in (w.A, w.B, w.magnitude) if factor is not None]
    dtypes = {factor.dtype.name for factor in factors}
    if not all(map(finite, factors)):
        return {"broken"}, math.nan, dtypes
    alive = any(w.magnitude is not None or (w.A.any() and w.B.any()) for w in delta)
    faint = [_faint(factor) for factor in factors if factor.dtype == np.float16]
    marks = {"dead": not alive, "subnormal": any(low for low, _ in faint), "coarse": alive and any(c for _, c in faint)}
    return {mark for mark, holds in marks.items() if holds}, math.hypot(*_norms(delta)), dtypes


def _faint(factor: Array) -> tuple[bool, bool]:
    """Whether many entries of a float16 factor are subnormal, and whether that may cost more than CEILING of it."""
    size = np.abs(widen(factor, np.float32))
    nonzero, low = np.count_nonzero(size), size < _NORMAL
    # such an entry may be off by half of the smallest number, 1 / sqrt(12) of it in the mean square
    lost, norm = subnormal(factor.dtype) * math.sqrt(np.count_nonzero(low) / 12), float(np.linalg.norm(size))
    return bool(nonzero and np.count_nonzero(size[low]) > SUBNORMAL * nonzero), norm > 0 and lost > CEILING * norm


def _norms(delta: Delta) -> Iterator[float]:
    """|s B A| of every block, from the two small Gram matrices: B A itself is never formed."""
    for w in delta:
        A, B = widen(w.A, np.float32), widen(w.B, np.float32)
        square = float(np.sum((B.T @ B).astype(np.float64) * (A @ A.T).astype(np.float64)))
        yield w.scaling * math.sqrt(max(square, 0.0))  # rounding may leave less than nothing of zero
