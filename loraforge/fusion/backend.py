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
        """What B @ A is multiplied with. Under DoRA it stands inside the norm, as PEFT has it."""
        return self.weight.scaling * self.strength


@dataclass(frozen=True, slots=True)
class Sums:
    """What became of an update D of weights W when W + D was rounded, over any number of entries. They add up."""

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
    """Something that computes on a device. Implementations import what they need inside their methods."""

    name: str
    """What `--backend` takes."""
    summary: str
    """One phrase for `loraforge plugins list` and error messages."""

    def devices(self) -> tuple[str, ...]:
        """The devices it can use here, the fastest first; empty where it cannot run. Must not be slow."""

    def fuse(self, weight: Array, terms: Sequence[Term], dtype: Any, device: str) -> tuple[Array, Sums]:
        """Add the updates to `weight` [rows, in] and round once, to numpy's `dtype`.

        D is summed over the terms in float32 (float64 where `weight` is), before W is added, so that opposite terms
        cancel. A term without magnitude adds `scaling * B @ A`; one with (DoRA) adds
        `magnitude / |V| * V - W` with `V = W + scaling * B @ A` and `|V|` the length of its rows.
        """
