"""Programs that know the names in a file which no format here reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from loraforge.programs.outlook import Outlook, Stop, stops
from loraforge.programs.table import Outcome, Runtime, is_factor, runtimes

if TYPE_CHECKING:
    from loraforge.files.tensorfile import TensorFile


def by_names(file: TensorFile) -> tuple[Outlook, ...]:
    """What programs apply of a file we cannot read, as names and shapes tell it; at what scale is not told.

    One row for each program; none where not one of them applies a module.
    """
    every = {key.split(".lora")[0] for key in file.tensors if is_factor(key)}
    ranks = {key: info.shape[0] for key, info in file.tensors.items() if is_factor(key) and info.shape}
    ranks = {key: rank for key, rank in ranks.items() if "lora_A" in key or "down" in key}
    found = []
    for program in (entry.of(file) for entry in runtimes().values()):
        outcomes = {key: program.outcome(key) for key in file.tensors}
        pairs = Counter(program.module(key) for key, said in outcomes.items() if said == "applied" and is_factor(key))
        whole = sum(count == 2 for count in pairs.values())
        raising = next(stops(program, file, outcomes, ranks), Stop("")).at
        if raising or _misshapen(program, file, outcomes) or (program.whole and whole < len(every)):
            whole = 0
        lost = Counter(key.split(".")[0] for key, said in outcomes.items() if said in ("ignored", "warned"))
        passed = tuple(f"{kind} x{count}" for kind, count in lost.items())[:4]
        told = (program.name, program.title, raising, whole, len(every), (), (), passed, program.instead)
        found.append(Outlook(*told, "", program.program, program.run))
    return tuple(found) if any(row.applied for row in found) else ()


def _misshapen(program: Runtime, file: TensorFile, outcomes: Mapping[str, Outcome]) -> bool:
    """Whether a pair of factors it would apply cannot be multiplied: empty, or of two ranks."""
    sides: dict[str, set[int]] = {}
    for key, found in outcomes.items():
        shape = file.tensors[key].shape
        if found == "applied" and is_factor(key):
            first = "lora_A" in key or "down" in key
            rank = 0 if len(shape) < 2 or 0 in shape else shape[0 if first else 1]
            sides.setdefault(program.module(key), set()).add(rank)
    return any(0 in ranks or len(ranks) > 1 for ranks in sides.values())
