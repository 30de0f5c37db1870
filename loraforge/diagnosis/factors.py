"""What the numbers of an adapter say of it: zero factors, no numbers, lost bits, and how large the update is."""

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
"""Share of a float16 factor's entries below the normal range from which it is told: they hold fewer bits."""
_NORMAL = 2.0**-14
"""The smallest normal float16."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """What the tensors of an adapter say."""

    dead: tuple[str, ...]
    """Modules of which A or B is zero: their update is zero."""
    broken: tuple[str, ...]
    """Modules with NaN or infinity."""
    subnormal: tuple[str, ...]
    """Modules with a factor of which more than a tenth lies below the normal range of its type."""
    coarse: tuple[str, ...]
    """Modules with a float16 factor so small that its type may have rounded off more than CEILING of it."""
    sizes: dict[str, float]
    """Module -> |D|, the Frobenius norm of its update at the scale it was read at."""
    dtypes: tuple[str, ...]


def numbers(adapter: Adapter, file: TensorFile | None = None) -> Numbers:
    """Look at every tensor once. Memory: a few modules, where `file` is the one they lie in."""
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
    """The fields of Numbers that a module belongs in, the size of its update, and its element types."""
    factors = [np.ascontiguousarray(factor) for w in delta for factor in (w.A, w.B, w.magnitude) if factor is not None]
    dtypes = {factor.dtype.name for factor in factors}
    if not all(map(finite, factors)):
        return {"broken"}, math.nan, dtypes
    alive = any(w.magnitude is not None or (w.A.any() and w.B.any()) for w in delta)
    faint = [_faint(factor) for factor in factors if factor.dtype == np.float16]
    marks = {"dead": not alive, "subnormal": any(low for low, _ in faint), "coarse": alive and any(c for _, c in faint)}
    return {mark for mark, holds in marks.items() if holds}, math.sqrt(sum(_squares(delta))), dtypes


def _faint(factor: Array) -> tuple[bool, bool]:
    """Of a float16 factor: whether many entries have fewer bits, and whether that may be more than CEILING of it.

    An entry below the normal range may be off by half of the smallest number, 1 / sqrt(12) of it in the mean square.
    """
    size = np.abs(widen(factor, np.float32))
    there, low = np.count_nonzero(size), size < _NORMAL
    lost, norm = subnormal(factor.dtype) * math.sqrt(np.count_nonzero(low) / 12), float(np.linalg.norm(size))
    return bool(there and np.count_nonzero(size[low]) > SUBNORMAL * there), norm > 0 and lost > CEILING * norm


def _squares(delta: Delta) -> Iterator[float]:
    """|s B A|^2 of every block, from the two small Gram matrices: B A itself is never formed."""
    for w in delta:
        A, B = widen(w.A, np.float32), widen(w.B, np.float32)
        yield w.scaling**2 * float(np.sum((B.T @ B).astype(np.float64) * (A @ A.T).astype(np.float64)))
