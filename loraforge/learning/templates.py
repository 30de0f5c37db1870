"""From tensors to modules, and from modules that differ in block numbers alone to one template."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import chain
from typing import NamedTuple

from loraforge.learning.checkpoint import Checkpoint
from loraforge.learning.matching import Runs
from loraforge.names.layout import Template

Left = defaultdict[str, list[str]]
"""Why -> the modules of B that are left out for it."""
_MOST_RUNS = 256
"""More than that are rows that were shuffled, which no list of segments is to repeat."""
_NUMBER = re.compile(r"(?<![^.])(?:0|[1-9][0-9]{0,5})(?![^.])")


class Entry(NamedTuple):
    """A module of B, or the template of several, and what its weight stacks of A."""

    b: str
    a: tuple[str, ...]
    spans: tuple[tuple[int, int, int], ...]
    """Rows of each of A: from where, to where, and of how many."""
    names: tuple[tuple[str, str], ...]
    """Of each parameter, in B and in A."""
    matrix: bool
    modules: tuple[Entry, ...] = ()
    segments: tuple[str, ...] = ()
    literal: bool = False
    """Whether it has a block number that no template explains."""

    def shares(self) -> list[tuple[Fraction, Fraction]]:
        return [(Fraction(start, rows), Fraction(stop, rows)) for start, stop, rows in self.spans]


def modules_of(runs: Runs, a: Checkpoint, b: Checkpoint, left_out: Left) -> list[Entry]:
    """The modules of B whose parameters are cut alike, and are all that the modules of A have."""
    modules = list[Entry]()
    for path, keys in b.modules.items():
        stacks = [(key, runs.get(key, ())) for key in keys]
        names = {(key.rpartition(".")[2], run.key.rpartition(".")[2]) for key, stack in stacks for run in stack}
        common = tuple(sorted(names)), any(key == f"{path}.weight" and b.is_matrix(key) for key in keys)
        cuts = list[Entry]()
        for _, stack in stacks:
            spans = tuple((run.start, run.stop, a.length(run.key)) for run in stack)
            cuts.append(Entry(path, tuple(run.key.rpartition(".")[0] for run in stack), spans, *common))
        if not all(cut.a for cut in cuts):
            left_out["equal numbers stand in several places"].append(path or ", ".join(keys))
        elif len(cuts[0].a) > _MOST_RUNS:
            left_out["its rows are shuffled one by one"].append(path)
        elif any((cut.a, cut.shares()) != (cuts[0].a, cuts[0].shares()) for cut in cuts) or len(names) > len(keys):
            left_out["its parameters are of several modules"].append(path or ", ".join(keys))
        else:
            modules.append(cuts[0])
    return _whole(modules, left_out)


def _whole(modules: list[Entry], left_out: Left) -> list[Entry]:
    """Less what shares a module of A with rows that are left out, or that are in B twice."""
    spans, broken = defaultdict[str, list[tuple[Fraction, Fraction]]](list), dict[str, str]()
    for module in modules:
        for path, share in zip(module.a, module.shares(), strict=True):
            spans[path].append(share)
    for path, shares in spans.items():
        starts, stops = zip(*sorted(shares), strict=True)
        if (0, *stops) != (*starts, 1):
            twice = sum(stops) - sum(starts) > 1
            broken[path] = "parameters of one module go to several" if twice else "its other rows are left out"
    for module in modules:
        for path in [path for path in module.a if path in broken][:1]:
            left_out[broken[path]].append(module.b or ", ".join(b for b, _ in module.names))
    return _whole([module for module in modules if not broken.keys() & {*module.a}], left_out) if broken else modules


def slots(path: str, slot: str = "#") -> tuple[str, list[str]]:
    """A path with `slot` for its numbers, and the numbers."""
    return _NUMBER.sub(slot, path), _NUMBER.findall(path)


def filled(pattern: str, numbers: Iterable[str]) -> str:
    """The path with these numbers."""
    rest = iter(numbers)
    return re.sub("#", lambda _: next(rest), pattern)


def entries(modules: Iterable[Entry], paths: Sequence[str]) -> list[Entry]:
    """Templates for every module, as few as there are; what no template explains is one by itself.

    A number becomes `{i}` if it counts 0, 1, 2, ... over the modules of one pattern, and each path of A has it too;
    that of the highest block becomes `{last}` if this block alone is built so. `paths`: all modules of both sides.
    """
    groups = defaultdict[str, list[Entry]](list)
    for module in modules:
        patterns = [slots(path)[0] for path in (module.b, *module.a)]
        sizes = [Fraction(stop - start, module.spans[0][2]) for start, stop, _ in module.spans]
        odd = [pair for pair in module.names if pair[0] != pair[1]]
        groups[repr((patterns, module.shares(), sizes, odd, module.matrix))].append(module)
    every, last = list(chain(*map(_generalised, groups.values()))), dict[str, int]()
    for start in sorted({f"{Template(t).container}." for entry in every for t in (entry.b, *entry.a) if "{" in t}):
        numbers = [path.removeprefix(start).partition(".")[0] for path in paths if path.startswith(start)]
        last[start] = max(int(number) for number in numbers if number.isdecimal())
    every = [_ending(entry, last) for entry in every]
    while clashing := [entry for entry in every if "{" in entry.b and any(_clash(entry, other) for other in every)]:
        every = [entry for entry in every if entry not in clashing]
        every += [module._replace(modules=(module,), literal=True) for entry in clashing for module in entry.modules]
    return every


def _generalised(modules: Sequence[Entry]) -> Iterator[Entry]:
    table = [[slots(path) for path in (module.b, *module.a)] for module in modules]
    patterns = [pattern for pattern, _ in table[0]]
    columns = [list(zip(*(numbers for _, numbers in side), strict=True)) for side in zip(*table, strict=True)]
    # layers in a row, `mlp.0` and `mlp.1`, are no blocks; a table of each block, `blocks.0`, is no layer
    is_list = modules[0].matrix and all(pattern.endswith("#") for pattern in patterns)
    for n, column in enumerate(columns[0]):
        values = sorted({*map(int, column)})
        if len(values) > 1 and (values != [*range(len(values))] or (is_list and n + 1 == len(columns[0]))):
            for value in values:
                yield from _generalised([m for m, x in zip(modules, column, strict=True) if int(x) == value])
            return
    varying = [column for column in columns[0] if len({*column}) > 1]
    holes = dict(zip(varying, ("{i}", "{j}", "{k}", "{l}"), strict=False))
    if len(holes) == len(varying) and all(sorted(c for c in s if len({*c}) > 1) == sorted(varying) for s in columns):
        b, *a = (filled(p, (holes.get(c, c[0]) for c in side)) for p, side in zip(patterns, columns, strict=True))
        yield modules[0]._replace(b=b, a=tuple(a), modules=tuple(modules))
    else:  # a number that is computed from others
        yield from (module._replace(modules=(module,), literal=True) for module in modules)


def _ending(entry: Entry, last: Mapping[str, int]) -> Entry:
    """With `{last}` for the number of the last block, if the entry is of one module that is in this block."""
    paths = [(path, start) for path in (entry.b, *entry.a) for start in last if path.startswith(start)]
    inside = [(start, *path.removeprefix(start).partition(".")) for path, start in paths if slots(path)[1]]
    inside = [parts for parts in inside if parts[1].isdecimal()]
    ends = {number for start, number, *_ in inside if number == str(last[start])}
    if len(entry.modules) == len(ends) == 1 and len(inside) == 1 + len(entry.a) and ends == {n for _, n, *_ in inside}:
        b, *a = (f"{start}{{last}}{dot}{rest}" for start, _, dot, rest in inside)
        return entry._replace(b=b, a=tuple(a))
    return entry._replace(literal=entry.literal or bool(inside))


def _clash(one: Entry, other: Entry) -> bool:
    """Whether one path could be of both entries, on one of the sides."""
    pairs = [(one.b, other.b)] * (one is not other) + [(x, y) for x in one.a for y in other.a if x != y]
    return any(x.overlaps(y) and not x.ends(y) and not y.ends(x) for x, y in (map(Template, pair) for pair in pairs))
