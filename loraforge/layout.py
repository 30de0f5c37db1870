"""Names only: which module of a layout stacks which segments. Knows no numbers, imports no numpy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from loraforge.errors import LayoutError

Index = tuple[tuple[str, int], ...]
"""Block numbers by hole name, sorted: `(("i", 3),)`."""


@dataclass(frozen=True, slots=True)
class Template:
    """A module path in which a token `{name}` stands for one block number."""

    text: str

    def tokens(self, sep: str = ".") -> list[str]:
        return _tokens(self.text, sep)

    @property
    def holes(self) -> frozenset[str]:
        return frozenset(token for token in self.tokens() if _is_hole(token))

    def match(self, path: str, sep: str = ".") -> Index | None:
        """The block numbers that make this template `path`, or None. Token by token, no regex."""
        mine, theirs, index = self.tokens(sep), path.split(sep), {}
        if len(mine) != len(theirs):
            return None
        for want, got in zip(mine, theirs, strict=True):
            if _is_hole(want) and _is_number(got):
                index[want[1:-1]] = int(got)
            elif want != got:
                return None
        return tuple(sorted(index.items()))

    def fill(self, index: Index) -> str:
        return self.text.format(**dict(index))

    def overlaps(self, other: Template, sep: str = ".") -> bool:
        """Can one path match both? Exact, because a hole is always one whole token of digits."""
        mine, theirs = self.tokens(sep), other.tokens(sep)
        return len(mine) == len(theirs) and all(
            a == b or (_is_hole(a) and (_is_hole(b) or _is_number(b))) or (_is_hole(b) and _is_number(a))
            for a, b in zip(mine, theirs, strict=True)
        )


@cache
def _tokens(text: str, sep: str) -> list[str]:
    return text.replace(".", sep).split(sep)


def _is_hole(token: str) -> bool:
    return token.startswith("{") and token.endswith("}")


def _is_number(token: str) -> bool:
    """A block number as programs write it: no sign, no leading zero, at most six digits."""
    return token.isascii() and token.isdecimal() and len(token) <= 6 and str(int(token)) == token


@dataclass(frozen=True, slots=True)
class Layout:
    """How one framework names an architecture's modules: template -> segments stacked on dim 0."""

    name: str
    modules: Mapping[Template, tuple[str, ...]]
    absent: frozenset[str] = frozenset()

    def stacked(self, path: str) -> tuple[str, ...]:
        """The segments a module of this layout stacks."""
        place = self.locate(path)
        return self.modules[place[0]] if place else ()

    def locate(self, path: str, sep: str = ".") -> tuple[Template, Index] | None:
        """The template and block numbers of a module path, or None where the layout has no such module."""
        for template in self.modules:
            index = template.match(path, sep)
            if index is not None:
                return template, index
        return None


@dataclass(frozen=True, slots=True)
class Variant:
    """One released base model, as far as shapes can tell it from its siblings."""

    name: str
    repo: str
    blocks: int
    shapes: Mapping[str, tuple[int, ...]]
    """Base weight shape of the segments that differ between variants."""
    absent: frozenset[str]
    """Segments this variant has not got."""

    def objection(self, segment: str, index: Index, shape: tuple[int, ...]) -> str | None:
        """Why a weight of this shape at this place cannot belong to the variant, or None."""
        if segment in self.absent:
            return f"{self.name} has no {segment}"
        if any(number >= self.blocks for _, number in index):
            return f"{self.name} has {self.blocks} blocks"
        want = self.shapes.get(segment)
        return f"{segment} is {list(want)} in {self.name}, not {list(shape)}" if want and want != shape else None


@dataclass(frozen=True, slots=True)
class Architecture:
    """A family of base models: its segments, its released variants, and every known layout of it."""

    name: str
    title: str
    segments: Mapping[str, int]
    """Relative number of rows of each segment."""
    variants: tuple[Variant, ...]
    layouts: Mapping[str, Layout]

    def convolutional(self, segments: tuple[str, ...]) -> bool:
        """Whether some variant has a convolution there."""
        return any(len(variant.shapes.get(segment, ())) > 2 for variant in self.variants for segment in segments)

    def sizes(self, segments: tuple[str, ...], rows: int) -> list[int] | None:
        """Rows of each stacked segment when the module has `rows` in all; None if they do not divide."""
        ratios = [self.segments[segment] for segment in segments]
        return None if rows % sum(ratios) else [rows // sum(ratios) * ratio for ratio in ratios]


def parse(data: Mapping[str, Any], where: str) -> Architecture:
    """Build an architecture from its TOML, after checking that every layout is a bijection.

    Raises LayoutError that lists all problems of the file, not just the first.
    """
    problems = list(_unknown_keys(data))
    ratios = data.get("rows", {})
    segments = {segment: ratios.get(segment, 1) for segment in data.get("segments", ())}
    layouts = {
        name: Layout(
            name,
            {Template(path): tuple(stack) for path, stack in table.get("modules", {}).items()},
            frozenset(table.get("absent", ())),
        )
        for name, table in data.get("layouts", {}).items()
    }
    holes: dict[str, tuple[str, frozenset[str]]] = {}
    for layout in layouts.values():
        problems += [f"layout {layout.name}: {problem}" for problem in _faults(layout, segments, holes)]
    variants = tuple(
        Variant(
            name,
            v["repo"],
            v["blocks"],
            {s: tuple(shape) for s, shape in v.get("shapes", {}).items()},
            frozenset(v.get("absent", ())),
        )
        for name, v in data.get("variants", {}).items()
    )
    for variant in variants:
        problems += [
            f"variant {variant.name}: unknown segment {s!r}"
            for s in sorted({*variant.shapes, *variant.absent} - segments.keys())
        ]
    problems += [f"rows: unknown segment {s!r}" for s in sorted(ratios.keys() - segments.keys())]
    if problems:
        raise LayoutError(where, problems)
    return Architecture(data["architecture"], data["title"], segments, variants, layouts)


_KEYS = {
    "": {"architecture", "title", "segments", "rows", "variants", "layouts"},
    "layouts": {"modules", "absent"},
    "variants": {"repo", "blocks", "shapes", "absent"},
}


def _unknown_keys(data: Mapping[str, Any]) -> Iterator[str]:
    for key in sorted(data.keys() - _KEYS[""]):
        yield f"unknown key {key!r}"
    for key in ("architecture", "title", "segments", "layouts"):
        if key not in data:
            yield f"{key!r} is missing"
    for table in ("layouts", "variants"):
        for name, entry in data.get(table, {}).items():
            for key in sorted(entry.keys() - _KEYS[table]):
                yield f"{table}.{name}: unknown key {key!r}"


def _faults(layout: Layout, segments: Mapping[str, int], holes: dict[str, tuple[str, frozenset[str]]]) -> Iterator[str]:
    owner: dict[str, Template] = {}
    templates = list(layout.modules)
    for n, template in enumerate(templates):
        for earlier in templates[:n]:
            if template.overlaps(earlier) or template.overlaps(earlier, "_"):
                yield f"{earlier.text!r} and {template.text!r} can match the same module"
        for segment in layout.modules[template]:
            if segment not in segments:
                yield f"{template.text!r} uses unknown segment {segment!r}"
            elif segment in owner:
                yield f"segment {segment!r} is in {owner[segment].text!r} and in {template.text!r}"
            owner.setdefault(segment, template)
            other, indexed = holes.setdefault(segment, (layout.name, template.holes))
            if indexed != template.holes:
                yield f"segment {segment!r} is indexed differently in layout {other!r}"
    for segment in segments:
        if (segment in owner) == (segment in layout.absent):
            state = "both placed and" if segment in owner else "in no module: place it, or list it as"
            yield f"segment {segment!r} is {state} absent"
