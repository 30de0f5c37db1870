"""The built-in backend: numpy on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loraforge.algebra.half import widen
from loraforge.algebra.lora import Array
from loraforge.fusion.backend import Sums, Term

BLOCK = 1 << 16
"""Elements that are processed together, so that they stay in a core's cache."""


class NumpyBackend:
    """Needs nothing but the core."""

    name = "numpy"
    summary = "on the CPU, without torch"

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def fuse(self, weight: Array, terms: Sequence[Term], dtype: Any, device: str) -> tuple[Array, Sums]:
        del device  # always "cpu"
        wide: Any = np.float64 if weight.dtype == np.float64 else np.float32
        fused, total = np.empty(weight.shape, dtype), Sums()
        step = max(1, BLOCK // weight.shape[1])
        with np.errstate(over="ignore", invalid="ignore"):  # the caller checks the result for overflow
            products = [(widen(t.weight.B, wide) * wide(t.scaling)) @ widen(t.weight.A, wide) for t in terms]
            for run in (slice(row, row + step) for row in range(0, len(weight), step)):
                W = widen(weight[run], wide)
                updates = [
                    _lengthened(W, product[run], widen(term.weight.magnitude[run]))
                    if term.weight.magnitude is not None
                    else product[run]
                    for term, product in zip(terms, products, strict=True)
                ]
                D = updates[0] if len(updates) == 1 else np.sum(updates, axis=0)
                fused[run] = W + D
                applied = widen(fused[run], wide)
                unchanged = int(np.count_nonzero(applied == W))
                applied -= W
                base, ideal = _product(W, W), _product(D, D)
                kept, product = _product(applied, applied), _product(applied, D)
                applied -= D
                total += Sums(W.size, unchanged, base, ideal, kept, product, _product(applied, applied))
        return fused, total


def _lengthened(W: Array, update: Array, magnitude: Array) -> Array:
    """The update of DoRA: the rows of W + update with `magnitude` as their norms, minus W."""
    moved = W + update
    length = np.sqrt(np.einsum("ij,ij->i", moved, moved, dtype=np.float64))
    moved *= (magnitude / length).astype(W.dtype)[:, None]
    moved -= W
    return moved


def _product(x: Array, y: Array) -> float:
    """The sum of x * y: of each row in the type of x, over the rows in float64."""
    return float(np.einsum("ij,ij->i", x, y).astype(np.float64).sum())
