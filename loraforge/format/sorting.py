"""Sorts the keys of a file into modules, before anything is judged; and divides what Diffusers fuses."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from loraforge.names.catalog import architectures
from loraforge.names.layout import Architecture, Layout, pattern
from loraforge.tables import package_table

if TYPE_CHECKING:
    from loraforge.format.keys import KeyStyle

_WHOLE = slice(None)


@dataclass(slots=True)
class Sorted:
    """The keys of a file, by module."""

    modules: dict[str, dict[int, dict[str, str]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(dict))
    )
    """Module path -> part -> factor -> key."""
    siblings: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Part of a fused module -> all of its parts, in order."""
    spelled: dict[str, str] = field(default_factory=dict)
    """Each spelling -> a key of it."""
    factors: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Spelling -> its factors in the file."""
    strange: list[str] = field(default_factory=list)
    """Keys that are of no module."""
    doubled: list[str] = field(default_factory=list)
    """What is wrong with keys that are the same factor of the same module."""


def taken_apart(style: KeyStyle, keys: Iterable[str], layout: Layout) -> Sorted:
    """The keys by module of this layout."""
    found, rest = Sorted(), dict[str, str]()
    for key in keys:
        hits = style.parse(key)
        located = [layout.locate(hit.path, hit.sep) for hit in hits]
        if not hits or not all(located):
            found.strange.append(key)
            continue
        paths = tuple(one[0].fill(one[1]) for one in located if one)
        for path, hit in zip(paths, hits, strict=True):
            same = found.modules[path][hit.part].setdefault(hit.factor, key)
            if same != key and hit.factor in found.factors[hit.spelled]:
                found.doubled.append(f"{same} and {key} are both {hit.factor} of {path}")
            if len(paths) > 1:
                found.siblings[path] = paths
        if hits[0].factor in ("A", "B") or not hits[0].spelled.endswith("..."):
            found.spelled.setdefault(hits[0].spelled, key)
        else:
            rest.setdefault(hits[0].spelled, key)
        found.factors[hits[0].spelled].add(hits[0].factor)
    alone = {start: key for start, key in rest.items() if not any(one.startswith(start) for one in found.spelled)}
    found.spelled |= alone if found.spelled else dict(list(alone.items())[:1])
    found.factors = {spelled: kinds for spelled, kinds in found.factors.items() if spelled in found.spelled}
    return found


def cut(path: str, siblings: Sequence[str] | None, rows: int, arch: Architecture, layout: Layout) -> slice | None:
    """The rows of a module in the B of the fused module that it is a part of; None if they cannot be divided."""
    if siblings is None:
        return _WHOLE
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
