"""Modules of B that differ in block numbers alone become one template, if the numbers in their names in A agree."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from loraforge.names.layout import Template

Slots = tuple[tuple[str, ...], tuple[int, ...]]
"""A module path with `#` for its numbers, and the numbers."""


_SLOT = "#"


def slots(path: str) -> Slots:
    tokens = path.split(".")
    numbers = [n for n, token in enumerate(tokens) if Template("{i}").match(token)]
    pattern = tuple(_SLOT if n in numbers else token for n, token in enumerate(tokens))
    return pattern, tuple(int(tokens[n]) for n in numbers)


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows `start` to `stop` of the `rows` of a module of A; `segment`: what it is called, if that is known."""

    path: str
    start: int
    stop: int
    rows: int
    segment: str = ""

    @property
    def count(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Module:
    """A module of B, and the pieces that its weight stacks."""

    path: str
    pieces: tuple[Piece, ...]
    parameters: frozenset[str]
    matrix: bool
    """Whether its weight is one; a norm's is a vector."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A template of B, a template of A for each piece of it, and the modules it stands for."""

    b: Template
    a: tuple[Template, ...]
    modules: tuple[Module, ...]
    odd: bool = False
    """Whether it has a number that no template explained."""

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return self.modules[0].pieces

    @property
    def segments(self) -> tuple[str, ...]:
        return tuple(piece.segment for piece in self.pieces)

    def named(self, segments: Iterable[str]) -> Entry:
        """The entry with these names of its segments."""
        pieces = tuple(replace(p, segment=name) for p, name in zip(self.pieces, segments, strict=True))
        return replace(self, modules=(replace(self.modules[0], pieces=pieces), *self.modules[1:]))

    @property
    def parameters(self) -> frozenset[str]:
        return frozenset[str]().union(*(module.parameters for module in self.modules))


def entries(modules: Iterable[Module]) -> Iterator[Entry]:
    """Every module in exactly one entry, as few as there are: what no template explains stands there by itself.

    A number becomes `{i}` if it counts 0, 1, 2, ... over the modules of one pattern, and each path of A has it too.
    """
    groups = defaultdict[object, list[Module]](list)
    for module in modules:
        shares = tuple((Fraction(p.start, p.rows), Fraction(p.stop, p.rows), p.segment) for p in module.pieces)
        ratios = tuple(Fraction(piece.count, module.pieces[0].count) for piece in module.pieces)
        patterns = tuple(slots(piece.path)[0] for piece in module.pieces)
        groups[slots(module.path)[0], patterns, shares, ratios, module.matrix].append(module)
    every = [entry for members in groups.values() for entry in _generalised(members)]
    while clashing := [entry for entry in every if entry.b.holes and _clashes(entry, every)]:
        rest = [entry for entry in every if entry not in clashing]
        every = [replace(entry, odd=entry.odd or _clashes(entry, clashing)) for entry in rest]
        every += [_literal(module) for entry in clashing for module in entry.modules]
    yield from every


def _generalised(modules: Sequence[Module]) -> Iterator[Entry]:
    table = [slots(module.path)[1] for module in modules]
    columns = [sorted(set(column)) for column in zip(*table, strict=True)]
    for n, values in enumerate(columns):
        if len(values) > 1 and values != [*range(len(values))]:  # `ff.0` and `ff.2` are no blocks
            for value in values:
                yield from _generalised([m for m, row in zip(modules, table, strict=True) if row[n] == value])
            return
    varying = [n for n, values in enumerate(columns) if len(values) > 1]
    names = {n: "{" + "ijklmnop"[k] + "}" for k, n in enumerate(varying)}
    b = Template(_filled(slots(modules[0].path), names))
    a = list[Template]()
    for k in range(len(modules[0].pieces)):
        others = [slots(module.pieces[k].path)[1] for module in modules]
        holes = dict[int, str]()
        for n, column in enumerate(zip(*others, strict=True)):
            equal = [v for v in varying if column == tuple(row[v] for row in table)]
            if len(set(column)) > 1 and not equal:  # arithmetic
                yield from map(_literal, modules)
                return
            holes |= {n: names[equal[0]]} if len(set(column)) > 1 else {}
        if sorted(holes.values()) != sorted(names.values()):
            yield from map(_literal, modules)
            return
        a.append(Template(_filled(slots(modules[0].pieces[k].path), holes)))
    yield Entry(b, tuple(a), tuple(modules))


def _filled(path: Slots, holes: dict[int, str]) -> str:
    numbers = iter(enumerate(path[1]))
    return ".".join(
        next((holes.get(n, str(x)) for n, x in numbers), "") if token == _SLOT else token for token in path[0]
    )


def _literal(module: Module) -> Entry:
    return Entry(Template(module.path), tuple(Template(piece.path) for piece in module.pieces), (module,), True)


def _clashes(entry: Entry, every: Iterable[Entry]) -> bool:
    """Whether one path could be of this template and of another, on one of the sides."""
    return any(
        (other is not entry and other.b.overlaps(entry.b))
        or any(x != y and x.overlaps(y) for x in entry.a for y in other.a)
        for other in every
    )
