"""How much of an update survives the rounding when it is fused into weights, as numbers that anybody can recompute."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from loraforge.fusion.backend import Sums

WARN = 0.25
"""Relative error of the applied update above which a note warns. A choice, not calibrated on real adapters."""
FAINT, LOUD = 1e-3, 1.0
"""Relative sizes of an update below which it hardly shows, and above which it drowns the base. Not calibrated."""


@dataclass(frozen=True, slots=True)
class Retention:
    """D: the update as trained. D': the update in the rounded weights. W: the base weights of the same rows."""

    module: str
    unchanged: float
    """Share of the entries that did not change."""
    relative_error: float
    """|D' - D| / |D|, Frobenius norms; 0 where D is zero."""
    cosine: float
    """Of D' and D; 1 where D is zero."""
    relative_size: float
    """|D| / |W|; infinite where W is zero."""


def retention(module: str, sums: Sums) -> Retention:
    """The figures of one module, or of several whose sums were added up."""
    if not sums.ideal:
        return Retention(module, sums.unchanged / max(sums.entries, 1), 0.0, 1.0, 0.0)
    cosine = sums.product / math.sqrt(sums.ideal * sums.applied) if sums.applied else 0.0
    error = math.sqrt(sums.lost / sums.ideal)
    size = math.sqrt(sums.ideal / sums.base) if sums.base else math.inf
    return Retention(module, sums.unchanged / sums.entries, error, min(cosine, 1.0), size)


def summary(measured: Mapping[str, Sums]) -> tuple[Retention, tuple[Retention, ...]]:
    """The whole model, and each module in order."""
    total = sum(measured.values(), Sums())
    return retention("all", total), tuple(retention(module, sums) for module, sums in measured.items())


def lines(total: Retention, modules: tuple[Retention, ...]) -> tuple[str, str]:
    """For a terminal: how much of the update rounding lost, and how large the update is."""
    worst = max(modules, key=lambda r: r.relative_error, default=total)
    lost = (
        f"{total.relative_error:.1%} of the update is lost (at worst {worst.relative_error:.1%}, {worst.module}); "
        f"cosine {total.cosine:.4f}; {total.unchanged:.1%} of the entries did not change"
    )
    sizes = [r.relative_size for r in modules] or [0.0]
    band = "faint" if total.relative_size < FAINT else "drowns the base" if total.relative_size > LOUD else "moderate"
    return lost, (
        f"|D|/|W| {total.relative_size:.2g}, by module {min(sizes):.2g} to {max(sizes):.2g}: {band} "
        f"(below {FAINT:g} faint, above {LOUD:g} too much: for orientation, not calibrated on real adapters)"
    )
