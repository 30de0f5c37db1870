"""Sorts the keys of a file into modules, before anything is judged; and divides what Diffusers fuses."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from loraforge.files.tensorfile import TensorInfo
from loraforge.names.catalog import architectures
from loraforge.names.layout import ANY, Architecture, Layout, parted, pattern
from loraforge.tables import package_table

if TYPE_CHECKING:
    from loraforge.format.keys import KeyStyle

WHOLE = slice(None)
"""All rows of a module."""


class _Place(NamedTuple):
    """A module that the keys of one kind are of: what is before the block number in its path, and what is after it."""

    start: str
    end: str
    stack: tuple[str, ...]
    part: int
    factor: str
    spelled: str
    number: int
    """Of no other kind, and of no other module that this one stacks."""


@dataclass(slots=True)
class Module:
    """The keys of one module."""

    stack: tuple[str, ...]
    parts: dict[int, dict[str, str]] = field(default_factory=dict)
    """Part -> factor -> key."""
    siblings: tuple[str, ...] = ()
    """All parts of the fused module that it is a part of, in order; empty if it is none."""
    like: list[object] = field(default_factory=list)
    """The kinds, types and shapes of its keys: modules with the same have the same faults."""


@dataclass(slots=True)
class Sorted:
    """The keys of a file, by module."""

    modules: dict[str, Module] = field(default_factory=dict)
    """Module path -> its keys."""
    spelled: dict[str, str] = field(default_factory=dict)
    """Each spelling -> a key of it."""
    factors: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Spelling -> its factors in the file."""
    strange: list[str] = field(default_factory=list)
    """Keys that are of no module."""
    doubled: list[str] = field(default_factory=list)
    """What is wrong with keys that are the same factor of the same module."""


def taken_apart(style: KeyStyle, tensors: Mapping[str, TensorInfo], layout: Layout) -> Sorted:
    """The keys by module of this layout. A kind of key is read once, whatever its block number."""
    found, rest, numbers = Sorted(), dict[str, str](), count()
    known = dict[tuple[str, str], list[_Place]]()
    for key, info in tensors.items():
        start, number, end = parted(key)
        if (start, end) not in known:
            known[start, end] = _places(style, f"{start}{ANY}{end}", layout, numbers, ANY) if number else []
        if not (places := known[start, end]):  # what it is depends on the number
            number, places = "", _places(style, key, layout, numbers)
        if not places:
            found.strange.append(key)
            continue
        paths = [f"{place.start}{number}{place.end}" for place in places]
        for path, place in zip(paths, places, strict=True):
            if (module := found.modules.get(path)) is None:
                module = found.modules[path] = Module(place.stack)
            same = module.parts.setdefault(place.part, {}).setdefault(place.factor, key)
            module.like.append((place.number, info.dtype, info.shape, info.strides))
            if same != key and place.factor in found.factors[place.spelled]:
                found.doubled.append(f"{same} and {key} are both {place.factor} of {path}")
            if len(paths) > 1:
                module.siblings = tuple(paths)
        *_, factor, spelled, _ = places[0]
        named = factor in ("A", "B") or not spelled.endswith("...")
        (found.spelled if named else rest).setdefault(spelled, key)
        found.factors[spelled].add(factor)
    alone = {start: key for start, key in rest.items() if not any(one.startswith(start) for one in found.spelled)}
    found.spelled |= alone if found.spelled else dict(list(alone.items())[:1])
    found.factors = {spelled: kinds for spelled, kinds in found.factors.items() if spelled in found.spelled}
    return found


def _places(style: KeyStyle, key: str, layout: Layout, numbers: Iterator[int], hole: str = "") -> list[_Place]:
    """The modules that a key is of. None if it is of no module, or if that depends on the number in place of `hole`."""
    hits = style.parse(key)
    located = [layout.locate(hit.path, hit.sep) for hit in hits]
    paths = [one[0].fill(one[1]) for one in located if one]
    halves = [path.split(hole) if hole else [path, ""] for path in paths]
    if len(paths) < len(hits) or (hole and layout.last is not None) or any(len(half) != 2 for half in halves):
        return []
    every = zip(halves, located, hits, numbers, strict=False)
    return [
        _Place(half[0], half[1], layout.modules[one[0]], hit.part, hit.factor, hit.spelled, number)
        for half, one, hit, number in every
        if one
    ]


def cut(path: str, siblings: Sequence[str], rows: int, arch: Architecture, layout: Layout) -> slice | None:
    """The rows of a module in the B of the fused module that it is a part of; None if they cannot be divided."""
    if not siblings:
        return WHOLE
    stacks = [layout.stacked(sibling) for sibling in siblings]
    sizes = arch.sizes(tuple(segment for stack in stacks for segment in stack), rows)
    if sizes is None:
        return None
    heights = iter(sizes)
    each = [sum(next(heights) for _ in stack) for stack in stacks]
    n = siblings.index(path)
    return slice(sum(each[:n]), sum(each[: n + 1]))


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
