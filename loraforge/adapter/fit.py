"""Makes each module storable in a format: exactly, or with a measured error."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from loraforge.adapter.adapter import Kind, Step, Storage
from loraforge.algebra.dtypes import numpy_type
from loraforge.algebra.folding import fold
from loraforge.algebra.half import rounded, widen
from loraforge.algebra.lora import CEILING, Delta, LoraWeight, collapse, pad
from loraforge.errors import ConversionError, Try, leaving_out
from loraforge.text import command, listed


@dataclass(frozen=True, slots=True)
class Policy:
    """How the numbers are to be stored."""

    scaling: float | None
    """The scale that every reader of the target applies; the rest goes into A and B. None keeps each module's own."""
    dtype: str | None = None
    """Element type of every factor; None keeps those of the source."""
    rank: int | None = None
    """The rank of all modules; None if each keeps its own."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One target module before its numbers are computed: its row blocks, and the source modules they come from."""

    path: str
    delta: Delta
    sources: tuple[str, ...]
    rank: int
    """The largest rank among the source modules."""
    policy: Policy
    lost: float = 0.0
    """Relative error of the update so far: blocks of different scalings are folded before they are merged."""

    def types(self, w: LoraWeight) -> tuple[Any, Any]:
        """The element types of the stored A and B."""
        if self.policy.dtype is None:
            return w.A.dtype.type, w.B.dtype.type
        return (numpy_type(self.policy.dtype).type,) * 2

    def outline(self) -> Delta:
        """Weights of the final shapes, types and scalings, all zero and without memory: what a file header needs."""
        return tuple(map(self._outline, self.delta))

    def _outline(self, w: LoraWeight) -> LoraWeight:
        (a_type, b_type), rank = self.types(w), self.policy.rank or w.rank
        return LoraWeight(
            np.broadcast_to(np.zeros((), a_type), (rank, w.A.shape[1])),
            np.broadcast_to(np.zeros((), b_type), (w.rows, rank)),
            w.scaling if self.policy.scaling is None else self.policy.scaling,
            None if w.magnitude is None else np.broadcast_to(np.zeros((), self.length(w)), (w.rows,)),
            w.kernel,
        )

    def length(self, w: LoraWeight) -> Any:
        """The type of the stored magnitudes."""
        return w.magnitude.dtype.type if w.magnitude is not None and self.policy.dtype is None else self.types(w)[1]


def plan(
    relaid: Mapping[str, tuple[Delta, tuple[str, ...]]],
    storage: Storage,
    policy: Policy,
    segments: Callable[[str], tuple[str, ...]],
    to: str,
    ranks: Mapping[str, int],
) -> list[Plan]:
    """Plan every module with the number of (A, B) pairs that the format stores. Computes only where pairs are merged.

    `segments` returns the segments of a target module; `to` is the name of the format; `ranks` are those of
    the source modules, for the report.
    Raises ConversionError that lists the modules that do not fit.
    """
    plans, problems = [], defaultdict[str, list[str]](list)
    for path, (delta, sources) in relaid.items():
        if storage.segments is not None and not storage.segments.issuperset(segments(path)):
            problems[f"its LoRA adapts only {', '.join(sorted(storage.segments))}, not"] += sources
            continue
        if not storage.magnitude and any(w.magnitude is not None for w in delta):
            problems["it has no place for the magnitudes (DoRA) of"] += sources
            continue
        rank = max(ranks[source] for source in sources)
        plan = Plan(path, delta, sources, rank, policy)
        if not storage.parts and len(delta) > 1:
            if policy.scaling is not None and len({w.scaling for w in delta}) > 1:
                folded = [_folded(w, plan) for w in delta]
                plan = replace(plan, delta=tuple(w for w, _ in folded), lost=max(lost for _, lost in folded))
            try:
                plan = replace(plan, delta=(collapse(plan.delta),))
            except ConversionError as error:
                problems[f"it stores one A and B per module ({error.message}), in"] += sources
        plans.append(plan)
    if problems:
        text = "; ".join(f"{what} {listed(paths)}" for what, paths in problems.items())
        remedy = leaving_out(chain(*problems.values())) if plans else Try(command("loraforge", "formats"))
        raise ConversionError(f"{to} cannot hold all of it: {text}.", remedy)
    return plans


def _folded(w: LoraWeight, plan: Plan) -> tuple[LoraWeight, float]:
    """The pair with the scaling and the types of the stored one, and the relative error of its update."""
    keep = w.scaling if plan.policy.scaling is None else plan.policy.scaling
    # dividing the scalings rounds once, and gives exactly 1 if both are equal
    w, lost = fold(replace(w, scaling=w.scaling / keep if keep != w.scaling else 1.0), *plan.types(w))
    return replace(w, scaling=keep), lost


def padded(plans: list[Plan]) -> list[Plan]:
    """The same plans at the largest rank of all: added components that are zero change no update."""
    rank = max(w.rank for plan in plans for w in plan.delta)
    return [replace(plan, policy=replace(plan.policy, rank=rank)) for plan in plans]


def carry_out(plan: Plan) -> tuple[Delta, Step]:
    """The numbers of one module as they are stored, and how they were made.

    Does not raise if the error exceeds CEILING or a number overflows: `too_lossy` lists such modules.
    """
    policy, fitted, error = plan.policy, [], plan.lost
    for w in plan.delta:
        a_type, b_type = plan.types(w)
        keep = w.scaling if policy.scaling is None else policy.scaling
        if not w.rank:
            w = replace(w, A=w.A.astype(a_type), B=w.B.astype(b_type), scaling=keep)
        elif keep != w.scaling or (a_type, b_type) != (w.A.dtype.type, w.B.dtype.type):
            w, loss = _folded(w, plan)
            error = max(error, loss)
        if w.magnitude is not None and (kind := plan.length(w)) is not w.magnitude.dtype.type:
            length = widen(w.magnitude)
            with np.errstate(over="ignore"):  # an overflow gives an infinite error
                stored = rounded(length, kind).astype(kind)
            lost = np.abs(widen(stored) - length)
            error = max(error, float(np.max(lost / np.where(length == 0, 1.0, np.abs(length)), initial=0.0)))
            w = replace(w, magnitude=stored)
        fitted.append(pad(w, policy.rank or w.rank))
    rank = max(w.rank for w in fitted)
    outcome: Kind = "rounded" if error else "rank" if rank != plan.rank else "exact"
    return tuple(fitted), Step(plan.path, plan.sources, outcome, (plan.rank, rank), error)


def too_lossy(steps: Sequence[Step]) -> dict[str, float]:
    """The modules whose error exceeds CEILING, with that error; it is infinite if a number overflows."""
    return {step.module: step.error for step in steps if not step.error <= CEILING}


def refusal(lossy: Mapping[str, float], modules: int, kinds: str, *remedies: Try) -> ConversionError:
    """The error about the `lossy` ones of so many `modules`, which were to be stored in the types `kinds`."""
    over = [path for path, lost in lossy.items() if not np.isfinite(lost)]
    lost = sorted((path for path in lossy if path not in over), key=lambda path: -lossy[path])
    parts = [f"the numbers of {listed(over, 5)} overflow"] if over else []
    if lost:
        shares = listed([f"{path} ({lossy[path]:.1%})" for path in lost], 5)
        parts.append(f"rounding takes more than {CEILING:.0%} of the update of {shares}")
    text = f"{len(lossy)} of {modules} modules do not fit into {kinds}: {'; '.join(parts)}."
    return ConversionError(text if remedies else f"{text} No other --dtype holds them.", *remedies)
