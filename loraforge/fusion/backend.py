"""How updates are added to base weights. A backend is a few lines: see with_numpy.py, and CONTRIBUTING.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from loraforge.algebra.lora import Array, LoraWeight


@dataclass(frozen=True, slots=True)
class Term:
    """One adapter's update of a run of rows, at a strength."""

    weight: LoraWeight
    strength: float

    @property
    def scaling(self) -> float:
        """The factor of B @ A. With DoRA it is inside the norm, as in PEFT."""
        return self.weight.scaling * self.strength


@dataclass(frozen=True, slots=True)
class Sums:
    """Measures an update D of weights W after W + D is rounded, over any number of entries. Sums can be added."""

    entries: int = 0
    unchanged: int = 0
    """Entries that are the same number before and after."""
    base: float = 0.0
    """Sum of the squares of W."""
    ideal: float = 0.0
    """Sum of the squares of D, before rounding."""
    applied: float = 0.0
    """Sum of the squares of the update that the rounded weights contain."""
    product: float = 0.0
    """Sum of the products of the two."""
    lost: float = 0.0
    """Sum of the squares of their difference."""

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(getattr(self, name) + getattr(other, name) for name in Sums.__slots__))


class FusionBackend(Protocol):
    """Adds updates on a device. Implementations import large libraries inside their methods."""

    name: str
    """The value of `--backend`."""
    summary: str
    """One phrase for `loraforge plugins list` and error messages."""

    def devices(self) -> tuple[str, ...]:
        """The devices it can use here, the fastest first; empty if it cannot run. Must be fast."""

    def fuse(self, weight: Array, terms: Sequence[Term], dtype: Any, device: str) -> tuple[Array, Sums]:
        """Add the updates to `weight` [rows, in] and round once, to numpy's `dtype`.

        D is summed over the terms in float32 (float64 where `weight` is), before W is added, so that opposite terms
        cancel. A term without magnitude adds `scaling * B @ A`; one with (DoRA) adds
        `magnitude / |V| * V - W` with `V = W + scaling * B @ A` and `|V|` the length of its rows.
        """
