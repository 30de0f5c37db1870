"""The TOML file of what was learned: segments, their rows, and both layouts; or one layout of a known architecture."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any

from loraforge.learning.templates import Entry, slots
from loraforge.names.layout import WEIGHT_AND_BIAS, Architecture

SPELLINGS = [
    {"A": ".lora_A.weight", "B": ".lora_B.weight"},
    {"A": ".lora_down.weight", "B": ".lora_up.weight", "alpha": ".alpha"},
]
_PREFIXES = ["diffusion_model.", "transformer.", ""]


@dataclass(frozen=True, slots=True)
class Part:
    """The n-th segment that a template of B stacks, as a part of a module of A."""

    entry: Entry
    n: int

    @property
    def segment(self) -> str:
        return self.entry.segments[self.n]

    @property
    def where(self) -> str:
        count = len(self.entry.pieces)
        return self.entry.b.text + (f" [{self.n + 1}/{count}]" if count > 1 else "")


def stacks(entries: Iterable[Entry]) -> dict[str, list[Part]]:
    """Template of A -> its parts from the first row on."""
    table = defaultdict[str, list[Part]](list)
    for entry in entries:
        for n, template in enumerate(entry.a):
            table[template.text].append(Part(entry, n))
    return {text: sorted(parts, key=lambda part: part.entry.pieces[part.n].start) for text, parts in table.items()}


def named(entries: Iterable[Entry]) -> Iterator[Entry]:
    """The entries with a name for each segment: the shortest end of B's path that no other has."""
    used = set[str]()
    for entry in entries:
        every = (_numbered(stem, len(entry.pieces)) for stem in _stems(entry.b.text))
        stack = next(stack for stack in every if not used & {*stack})
        used |= {*stack}
        yield entry.named(stack)


def _stems(path: str) -> Iterator[str]:
    tokens = [re.sub(r"\W+", "_", token).lower() for token in path.split(".") if not token.startswith("{")]
    words = [token for token in tokens if not token.isdecimal()]
    stems = ["_".join(some[-k:]) for some in (words, tokens) for k in range(1, len(some) + 1)]
    yield from (stem for stem in stems if re.fullmatch(r"[a-z][a-z0-9_]*", stem))
    n = 1
    while n := n + 1:
        yield f"module_{'_'.join(tokens)}_{n}"


def _numbered(stem: str, count: int) -> tuple[str, ...]:
    return (stem,) if count == 1 else tuple(f"{stem}_{n + 1}" for n in range(count))


def new_architecture(
    name: str, entries: Sequence[Entry], layouts: tuple[str, str], dropped: Sequence[Mapping[str, str]]
) -> dict[str, Any]:
    """The tables of an architecture of two layouts, A's and B's."""
    of_a = _segments(entries)
    rows = {piece.segment: piece.count for entry in entries for piece in entry.pieces}
    ratios = _ratios(rows, [*(entry.segments for entry in entries), *of_a.values()])
    odd = {s: sorted(e.parameters) for e in entries if e.parameters - {*WEIGHT_AND_BIAS} for s in e.segments}
    fixed = [s for entry in entries if not entry.modules[0].matrix for s in entry.segments]
    return {
        "architecture": name,
        "title": name,
        "segments": [*rows],
        **({"rows": ratios} if ratios else {}),
        **({"parameters": odd} if odd else {}),
        **({"unadapted": {"norm or table": fixed}} if fixed else {}),
        "layouts": {
            layouts[0]: _layout(of_a, dropped[0]),
            layouts[1]: _layout({entry.b.text: [*entry.segments] for entry in entries}, dropped[1]),
        },
        **_format(name, next((layout for layout in layouts if layout != "diffusers"), layouts[0])),
    }


def new_layout(arch: Architecture, entries: Sequence[Entry], layout: str, dropped: Mapping[str, str]) -> dict[str, Any]:
    """The tables that add A's layout to an architecture; what was not seen in the files is absent there."""
    modules = _segments(entries)
    lacking = [s for s in arch.segments if not any(s in stack for stack in modules.values())]
    table = _layout(modules, dropped)
    table |= {"lora_only": True} if any(s in arch.unadapted for s in lacking) else {}
    absent = [s for s in lacking if s not in arch.unadapted]
    table |= {"absent": absent} if absent else {}
    return {"architecture": arch.name, "layouts": {layout: table}, **_format(arch.name, layout)}


def _segments(entries: Iterable[Entry]) -> dict[str, list[str]]:
    return {text: [part.segment for part in parts] for text, parts in stacks(entries).items()}


def _layout(modules: Mapping[str, Sequence[str]], dropped: Mapping[str, str]) -> dict[str, Any]:
    """`dropped`: key -> reason. Keys that differ in numbers alone become one template."""
    groups = defaultdict[tuple[str, ...], list[str]](list)
    for key in dropped:
        groups[slots(key)[0]].append(key)
    templates = {_with_holes(keys): dropped[keys[0]] for keys in groups.values()}
    return {"modules": dict(modules), **({"dropped": templates} if templates else {})}


def _with_holes(keys: Sequence[str]) -> str:
    columns, holes = list(zip(*(key.split(".") for key in keys), strict=True)), iter("ijklmnop")
    return ".".join(column[0] if len(set(column)) == 1 else f"{{{next(holes)}}}" for column in columns)


def _ratios(rows: Mapping[str, int], every: Iterable[Sequence[str]]) -> dict[str, int]:
    """Segment -> its rows in units that all segments stacked with it share, where that is not one unit."""
    groups = {segment: {segment} for segment in rows}
    for stack in every:
        whole = set[str]().union(*(groups[segment] for segment in stack))
        groups |= dict.fromkeys(whole, whole)
    units = {segment: gcd(*(rows[other] for other in groups[segment])) for segment in rows}
    return {segment: rows[segment] // units[segment] for segment in rows if rows[segment] != units[segment]}


def _format(name: str, layout: str) -> dict[str, Any]:
    form = f"{name}-{layout}".replace("_", "-")
    summary = f"{name} adapters in the names of layout {layout}"
    return {
        "format": {
            "name": form, "summary": summary, "layouts": {name: layout}, "prefixes": _PREFIXES, "spellings": SPELLINGS,
        }
    }  # fmt: skip


def as_toml(tables: Mapping[str, Any], comment: Iterable[str]) -> str:
    """The text of the file: values first, then a `[table]` for each mapping of mappings or of many entries."""
    lines = [*(f"# {line}".rstrip() for line in comment), *_table(tables, ())]
    return "\n".join(lines) + "\n"


def _table(table: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[str]:
    inner = {
        key: value
        for key, value in table.items()
        if isinstance(value, dict) and path[:1] in ((), ("layouts",)) and len(path) < 3
    }
    if path and (len(inner) < len(table) or not table):
        yield from ("", f"[{'.'.join(map(_key, path))}]")
    yield from (f"{_key(key)} = {_value(value)}" for key, value in table.items() if key not in inner)
    for key, value in inner.items():
        yield from _table(value, (*path, key))


def _key(text: str) -> str:
    return text if re.fullmatch(r"[A-Za-z0-9_-]+", text) else json.dumps(text)


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(key)} = {_value(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(_value, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
