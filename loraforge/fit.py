"""Makes each module storable in a format, exactly, or says by how much it is not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from loraforge.adapter import Kind, Step, Storage
from loraforge.dtypes import numpy_type
from loraforge.errors import ConversionError, command
from loraforge.lora import Delta, LoraWeight, collapse, fold


@dataclass(frozen=True, slots=True)
class Policy:
    """How the numbers are to be stored."""

    folded: bool
    """The scaling goes into A and B; else it stays beside them."""
    dtype: str | None = None
    """Element type of every factor; None keeps the source's."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One target module before its numbers are computed: its blocks, and where they come from."""

    path: str
    delta: Delta
    sources: tuple[str, ...]
    rank: int
    """The largest rank among the source blocks."""
    policy: Policy

    def types(self, w: LoraWeight) -> tuple[Any, Any]:
        if self.policy.dtype is None:
            return w.A.dtype.type, w.B.dtype.type
        return (numpy_type(self.policy.dtype).type,) * 2

    def outline(self) -> Delta:
        """Weights of the final shape, type and scaling that hold no numbers: what a file header needs."""
        return tuple(
            LoraWeight(
                np.broadcast_to(np.zeros((), a_type), w.A.shape),
                np.broadcast_to(np.zeros((), b_type), w.B.shape),
                1.0 if self.policy.folded else w.scaling,
            )
            for w in self.delta
            for a_type, b_type in [self.types(w)]
        )


def plan(relaid: Mapping[str, tuple[Delta, tuple[str, ...]]], storage: Storage, policy: Policy) -> list[Plan]:
    """Give every module the number of (A, B) pairs the format stores. Touches numbers only where pairs must merge.

    Raises ConversionError that lists the modules which do not fit.
    """
    plans, problems = [], []
    for path, (delta, sources) in relaid.items():
        rank = max(w.rank for w in delta)
        if not storage.parts and len(delta) > 1:
            if policy.folded and len({w.scaling for w in delta}) > 1:
                delta = tuple(fold(w, w.A.dtype.type, w.B.dtype.type)[0] for w in delta)
            try:
                delta = (collapse(delta),)
            except ConversionError as error:
                problems.append(f"{path}: {error.message}")
        plans.append(Plan(path, delta, sources, rank, policy))
    if problems:
        raise ConversionError("; ".join(problems), command("loraforge", "formats"))
    return plans


def carry_out(plan: Plan) -> tuple[Delta, Step]:
    """The numbers of one module as they will be stored, and what they went through."""
    fitted, error = [], 0.0
    for w in plan.delta:
        a_type, b_type = plan.types(w)
        if plan.policy.folded:
            w, loss = fold(w, a_type, b_type)
        elif (a_type, b_type) != (w.A.dtype.type, w.B.dtype.type):
            cast, loss = fold(replace(w, scaling=1.0), a_type, b_type)
            w = replace(cast, scaling=w.scaling)
        else:
            loss = 0.0
        fitted.append(w)
        error = max(error, loss)
    if not np.isfinite(error):
        kind = np.dtype(plan.types(plan.delta[0])[1]).name
        remedy = "--dtype fp32" if kind == "float16" else "--scale-in metadata"
        raise ConversionError(f"{plan.path} does not fit into {kind}: its numbers overflow.", remedy)
    rank = max(w.rank for w in fitted)
    outcome: Kind = "rounded" if error else "rank" if rank != plan.rank else "exact"
    return tuple(fitted), Step(plan.path, plan.sources, outcome, (plan.rank, rank), error)
