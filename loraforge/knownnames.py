"""Programs that know the names in a file which no format here reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from loraforge.runtimes import Outcome, Outlook, Runtime, is_factor, runtimes, stops

if TYPE_CHECKING:
    from loraforge.tensorfile import TensorFile


def by_names(file: TensorFile) -> tuple[Outlook, ...]:
    """Programs that apply modules of a file we cannot read, as names and shapes tell it; at what scale is not told."""
    found = []
    for program in (entry.of(file) for entry in runtimes().values()):
        outcomes = {key: program.outcome(key) for key in file.tensors}
        ranks = {key: info.shape[0] for key, info in file.tensors.items() if is_factor(key) and info.shape}
        ranks = {key: rank for key, rank in ranks.items() if "lora_A" in key or "down" in key}
        if next(stops(program, file, outcomes, ranks), "") or _misshapen(program, file, outcomes):
            continue
        pairs = Counter(program.module(key) for key, found in outcomes.items() if found == "applied" and is_factor(key))
        every = {program.module(key) or key.split(".lora")[0] for key in file.tensors if is_factor(key)}
        whole = [path for path, count in pairs.items() if count == 2]
        if whole and not (program.whole and len(whole) < len(every)):
            told = (program.name, program.title, "", len(whole), len(every), (), (), (), program.instead)
            found.append(Outlook(*told, "", program.program, program.run))
    return tuple(found)


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
