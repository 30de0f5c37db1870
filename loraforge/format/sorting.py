"""Sorts the keys of a file into modules, before anything is judged; and divides what Diffusers fuses."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from loraforge.files.tensorfile import TensorInfo
from loraforge.names.catalog import architectures
from loraforge.names.layout import ANY, Architecture, Layout, pattern
from loraforge.numbered import Kinds, parted
from loraforge.tables import package_table

if TYPE_CHECKING:
    from loraforge.format.keys import KeyStyle

WHOLE = slice(None)
"""All rows of a module."""


class Kind(NamedTuple):
    """Keys that differ in their block number alone, of tensors of one type and shape; and what they are keys of."""

    part: int
    factor: str
    spelled: str
    info: TensorInfo
    """That of the first."""
    keys: Mapping[str, str]
    """Block number of the module -> key."""
    siblings: Sequence[_Place] = ()
    """All parts of the fused module that the module is a part of, in order; empty if it is none."""


class Alike(NamedTuple):
    """Modules whose keys are of the same kinds: what is wrong with one is wrong with all."""

    start: str
    end: str
    """What is before and after the block number in their paths."""
    numbers: Sequence[str]
    stack: tuple[str, ...]
    parts: Mapping[int, Mapping[str, Kind]]
    """Part -> factor -> its kind, in order."""

    def path(self, number: str) -> str:
        return f"{self.start}{number}{self.end}"

    def pairs(self, number: str) -> list[dict[str, str]]:
        """Of each part, factor -> key."""
        return [{factor: kind.keys[number] for factor, kind in kinds.items()} for kinds in self.parts.values()]

    def rows(self, arch: Architecture) -> slice | None:
        """The rows of each in the B of the fused module that it is a part of; None if they cannot be divided."""
        every = [kind for kinds in self.parts.values() for kind in kinds.values()]
        if not (siblings := next((kind.siblings for kind in every if kind.siblings), ())):
            return WHOLE
        height = next(kind.info.shape[0] for kind in every if kind.factor == "B")
        sizes = arch.sizes(tuple(segment for one in siblings for segment in one.stack), height)
        if sizes is None:
            return None
        heights = iter(sizes)
        each = [sum(next(heights) for _ in one.stack) for one in siblings]
        n = [(one.start, one.end) for one in siblings].index((self.start, self.end))
        return slice(sum(each[:n]), sum(each[: n + 1]))


@dataclass(slots=True)
class Sorted:
    """The keys of a file, by module."""

    modules: list[Alike] = field(default_factory=list)
    spelled: dict[str, str] = field(default_factory=dict)
    """Each spelling -> a key of it."""
    factors: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Spelling -> its factors in the file."""
    strange: list[str] = field(default_factory=list)
    """Keys that are of no module."""
    doubled: list[str] = field(default_factory=list)
    """What is wrong with keys that are the same factor of the same module."""


_Module = tuple[str, str, tuple[str, ...]]
"""What is before and after the block number of a module's path, and the segments that it stacks."""


def taken_apart(style: KeyStyle, tensors: Mapping[str, TensorInfo], kinds: Kinds, layout: Layout) -> Sorted:
    """The keys of these tensors by module of this layout, from a file with keys of these kinds.

    A kind of key is read and located once, whatever its block numbers.
    """
    found, rest, families = Sorted(), dict[str, str](), defaultdict[_Module, list[Kind]](list)
    for (start, end), every in kinds.items():
        alike = defaultdict[tuple[object, ...], dict[str, str]](dict)
        for number, key in every.items():
            if info := tensors.get(key):
                alike[info.dtype, info.shape, info.strides][number] = key
        groups = [(_places(style, f"{start}{ANY}{end}", layout, ANY) if end and alike else [], [*alike.values()])]
        if not groups[0][0]:  # what it is depends on the number
            each = [(_places(style, key, layout), key) for keys in alike.values() for key in keys.values()]
            found.strange += [key for places, key in each if not places]
            groups = [(places, [{places[0].number: key}]) for places, key in each if places]
        for places, of_one in ((places, keys) for places, sets in groups for keys in sets):
            first, fused = next(iter(of_one.values())), places if len(places) > 1 else ()
            for place in places:
                kind = Kind(*place[-3:], tensors[first], of_one, fused)
                families[place.start, place.end, place.stack].append(kind)
            _, factor, spelled = places[0][-3:]
            named = factor in ("A", "B") or not spelled.endswith("...")
            (found.spelled if named else rest).setdefault(spelled, first)
            found.factors[spelled].add(factor)
    for (start, end, stack), mine in families.items():
        held, like = defaultdict[str, list[int]](list), defaultdict[tuple[int, ...], list[str]](list)
        for n, kind in enumerate(mine):
            for number in kind.keys:
                held[number].append(n)
        for number, which in held.items():
            like[tuple(which)].append(number)
        for group, numbers in like.items():
            parts = defaultdict[int, dict[str, Kind]](dict)
            for kind in map(mine.__getitem__, group):
                if (same := parts[kind.part].setdefault(kind.factor, kind)) is not kind:
                    both = [(f"{same.keys[n]} and {kind.keys[n]}", f"{start}{n}{end}") for n in numbers]
                    found.doubled += [f"{each} are both {kind.factor} of {path}" for each, path in both]
            found.modules.append(Alike(start, end, numbers, stack, dict(sorted(parts.items()))))
    if strange := {*found.strange}:
        found.strange = [key for key in tensors if key in strange]
    alone = {start: key for start, key in rest.items() if not any(one.startswith(start) for one in found.spelled)}
    found.spelled |= alone if found.spelled else dict(list(alone.items())[:1])
    found.factors = {spelled: kinds for spelled, kinds in found.factors.items() if spelled in found.spelled}
    return found


class _Place(NamedTuple):
    """A module that a key is of: what is before and after the block number in its path, and the number."""

    start: str
    number: str
    end: str
    stack: tuple[str, ...]
    part: int
    factor: str
    spelled: str


def _places(style: KeyStyle, key: str, layout: Layout, hole: str = "") -> list[_Place]:
    """The modules that a key is of. None if it is of no module, or if that depends on the number in place of `hole`."""
    hits = style.parse(key)
    located = [(hit, one) for hit in hits if (one := layout.locate(hit.path, hit.sep))]
    paths = [parted(template.fill(index)) for _, (template, index) in located]
    fixed = not hole or (layout.last is None and all(path[1] == hole and hole not in path[2] for path in paths))
    if len(located) < len(hits) or not fixed:
        return []
    every = zip(paths, located, strict=True)
    return [_Place(*path, layout.modules[one[0]], hit.part, hit.factor, hit.spelled) for path, (hit, one) in every]


def parts_of(path: str, sep: str) -> tuple[str, ...]:
    """The modules that a fused module stacks, if this is one that no architecture has; otherwise the module itself."""
    for word, parts in package_table("format/spellings")["fused"].items():
        if path.endswith(f"{sep}{word}") and pattern(path) not in architectures().index.patterns:
            return tuple(path.removesuffix(word) + part.replace(".", sep) for part in parts)
    return (path,)


def spelled_as(prefix: str, suffix: str, factor: str, match: re.Match[str]) -> str:
    """The spelling of a key without the module path; of what has no name of its own, only how it begins."""
    name = match.groupdict().get("name", "")
    return f"{prefix}..." + (suffix.replace("{name}", name) if factor in ("A", "B") or name else "")


@cache
def ending(suffix: str) -> re.Pattern[str]:
    """What matches a key that ends so."""
    return re.compile("(?P<path>.*)" + re.escape(suffix).replace(r"\{name\}", r"(?P<name>[^.]+)"), re.DOTALL)
