"""The TOML file of what was learned: segments, their rows, and both layouts; or one layout of a known architecture."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import gcd
from typing import Any

from loraforge.learning.templates import Entry, filled, slots
from loraforge.names.layout import WEIGHT_AND_BIAS, Architecture

Tables = dict[str, Any]
Dropped = Mapping[str, str]
"""Key -> why nothing is lost without it."""


def stacks(entries: Iterable[Entry]) -> dict[str, list[tuple[Entry, int]]]:
    """Template of A -> what it stacks from the first row on: an entry, and which of its parts."""
    table = defaultdict[str, list[tuple[Entry, int]]](list)
    for entry, n in ((one, n) for one in entries for n in range(len(one.a))):
        table[entry.a[n]].append((entry, n))
    return {text: sorted(parts, key=lambda part: part[0].spans[part[1]]) for text, parts in table.items()}


def named(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries with a name for each segment: the shortest end of B's path that no other has."""
    used = set[str]()
    for entry in entries:
        path = ".".join([entry.b, *sorted({b for b, _ in entry.names} - {*WEIGHT_AND_BIAS})[:1]])
        tokens = [re.sub(r"\W+", "_", token).strip("_").lower() for token in path.replace("{i}.", "").split(".")]
        words = [token for token in tokens if token and not token.isdecimal()]
        stems = ["_".join(some[-k:]) for some in (words, tokens) for k in range(1, len(some) + 1)]
        stems += [f"module_{'_'.join(tokens)}_{n}" for n in range(2, len(used) + 3)]
        ends = [f"_{n + 1}" for n in range(len(entry.a))] if len(entry.a) > 1 else [""]
        stem = next(stem for stem in stems if re.match("[a-z]", stem) and not used & {stem + end for end in ends})
        used |= {stem + end for end in ends}
        yield entry._replace(segments=tuple(stem + end for end in ends))


def new_architecture(name: str, entries: Sequence[Entry], layouts: Sequence[str], dropped: Sequence[Dropped]) -> Tables:
    """The tables of an architecture of two layouts, A's and B's."""
    rows = {s: stop - start for e in entries for s, (start, stop, _) in zip(e.segments, e.spans, strict=True)}
    of_a, of_b = _segments(entries), {entry.b: [*entry.segments] for entry in entries}
    usual = {(name, name) for name in WEIGHT_AND_BIAS}
    odd = {s: [*zip(*e.names, strict=True)] for e in entries for s in e.segments if not {*e.names} <= usual}
    return _given(
        architecture=name,
        title=name,
        segments=[*rows],
        rows=_ratios(rows, [*of_b.values(), *of_a.values()]),
        parameters={segment: names[0] for segment, names in odd.items()},
        unadapted=_given(**{"norm or table": [s for e in entries if not e.matrix for s in e.segments]}),
        layouts={
            layouts[0]: _layout(of_a, dropped[0], {s: n[1] for s, n in odd.items() if n[0] != n[1]}),
            layouts[1]: _layout(of_b, dropped[1], {}),
        },
    )


def new_layout(arch: Architecture, known: str, entries: Sequence[Entry], layout: str, dropped: Dropped) -> Tables:
    """The tables that add A's layout to an architecture that has B's; what was not seen in the files is absent."""
    names = dict[str, list[str]]()
    for entry, segment in ((one, segment) for one in entries for segment in one.segments):
        of_b = zip(arch.named((segment,)), arch.named((segment,), known), strict=True)
        names[segment] = [dict(entry.names).get(b, name) for name, b in of_b]
    lacking = [segment for segment in arch.segments if segment not in names]
    table = _given(
        lora_only=any(segment in arch.unadapted for segment in lacking),
        absent=[segment for segment in lacking if segment not in arch.unadapted],
    )
    renamed = {segment: of_a for segment, of_a in names.items() if of_a != [*arch.named((segment,))]}
    return {"architecture": arch.name, "layouts": {layout: table | _layout(_segments(entries), dropped, renamed)}}


def _segments(entries: Iterable[Entry]) -> dict[str, list[str]]:
    return {text: [entry.segments[n] for entry, n in parts] for text, parts in stacks(entries).items()}


def _layout(modules: Mapping[str, Any], dropped: Dropped, names: Mapping[str, Any]) -> Tables:
    """Dropped keys that differ in numbers alone become one template."""
    groups, templates = defaultdict[str, list[str]](list), dict[str, str]()
    for key in dropped:
        groups[slots(key)[0]].append(key)
    for pattern, keys in groups.items():
        columns, holes = zip(*(slots(key)[1] for key in keys), strict=True), iter("ijklmnop")
        numbers = [column[0] if len({*column}) == 1 else f"{{{next(holes)}}}" for column in columns]
        templates[filled(pattern, numbers)] = dropped[keys[0]]
    return _given(modules=modules, parameters=names, dropped=templates)


def _given(**tables: Any) -> Tables:
    """Those that are not empty."""
    return {name: table for name, table in tables.items() if table}


def _ratios(rows: Mapping[str, int], every: Iterable[Sequence[str]]) -> dict[str, int]:
    """Segment -> its rows in units that all segments stacked with it share, where that is not one unit."""
    groups = {segment: {segment} for segment in rows}
    for stack in every:
        whole = set[str]().union(*(groups[segment] for segment in stack))
        groups |= dict.fromkeys(whole, whole)
    units = {segment: gcd(*(rows[other] for other in groups[segment])) for segment in rows}
    return {segment: rows[segment] // units[segment] for segment in rows if rows[segment] != units[segment]}


def as_toml(tables: Mapping[str, Any], path: str = "") -> str:
    """The text of the tables: values first, then a `[table]` for each mapping."""
    inner = {key: value for key, value in tables.items() if isinstance(value, Mapping)}
    bare = {key: key if re.fullmatch(r"[\w-]+", key, re.ASCII) else json.dumps(key) for key in tables}
    values = {key: json.dumps(value, ensure_ascii=False) for key, value in tables.items() if key not in inner}
    lines = [f"\n[{path}]"] if path and values else []
    lines += [f"{bare[key]} = {value}" for key, value in values.items()]
    return "\n".join([*lines, *(as_toml(table, f"{path}.{bare[key]}".strip(".")) for key, table in inner.items())])
