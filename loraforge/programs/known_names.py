"""Predicts which programs apply a file that no format of ours can read, by the names in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from loraforge.files.tensorfile import TensorFile
from loraforge.programs.outlook import Outlook, Stop, stops
from loraforge.programs.table import Outcome, Runtime, is_down, is_factor, runtimes


def by_names(file: TensorFile) -> tuple[Outlook, ...]:
    """What each program applies of a file we cannot read, predicted from names and shapes; the scales are not known.

    One row for each program; empty if none of them applies a module.
    """
    modules = {key.split(".lora")[0] for key in file.tensors if is_factor(key)}
    ranks = {key: info.shape[0] for key, info in file.tensors.items() if is_down(key) and info.shape}
    rows = []
    for program in (entry.of(file) for entry in runtimes().values()):
        outcomes = {key: program.outcome(key) for key in file.tensors}
        factors = [key for key, outcome in outcomes.items() if outcome == "applied" and is_factor(key)]
        applied = sum(count == 2 for count in Counter(map(program.module, factors)).values())
        raising = next(stops(program, file, outcomes, ranks), Stop("")).at
        if raising or _misshapen(program, file, outcomes) or (program.whole and applied < len(modules)):
            applied = 0
        lost = Counter(key.split(".")[0] for key, outcome in outcomes.items() if outcome in ("ignored", "warned"))
        kinds = tuple(f"{kind} x{count}" for kind, count in lost.items())[:4]
        rows.append(Outlook(
            program.name, program.title, raising, applied, len(modules), ratios=(), scalings=(), lost=kinds,
            instead=program.instead, program=program.program, run=program.run,
        ))  # fmt: skip
    return tuple(rows) if any(row.applied for row in rows) else ()


def _misshapen(program: Runtime, file: TensorFile, outcomes: Mapping[str, Outcome]) -> bool:
    """Whether two factors that the program would apply cannot be multiplied: empty, or of different ranks."""
    ranks: dict[str, set[int]] = {}
    for key, outcome in outcomes.items():
        shape = file.tensors[key].shape
        if outcome == "applied" and is_factor(key):
            rank = 0 if len(shape) < 2 or 0 in shape else shape[0 if is_down(key) else 1]
            ranks.setdefault(program.module(key), set()).add(rank)
    return any(0 in both or len(both) > 1 for both in ranks.values())
