"""Diffusers' config.json as an architecture's data states it: numbers, and sizes that follow from the weights.

A size is a text in braces: `{x}` is a symbol of the dimensions, `{d / 64}` a share of one, and `{blocks q}` the number
of blocks that have the segment q. A list can have sizes too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from loraforge.errors import Fault
from loraforge.names.dimensions import Sized, solve
from loraforge.names.layout import Architecture, Index, Variant

Placed = tuple[str, str, Index, tuple[int, ...]]
"""Module, segment, block numbers, and the shape of the segment's base weight."""

_SIZE = re.compile(r"\{((?:blocks )?\w+)(?: / (\w+))?\}")


def entries(arch: Architecture, variant: Variant | None) -> dict[str, Any]:
    """The entries of a variant as its data states them; None for an entry that only others of its class have."""
    kind = arch.transformer_of(variant)
    others = {name: None for other in arch.variants if arch.transformer_of(other) == kind for name in other.config}
    return {**others, **arch.config, **(variant.config if variant else {})}


def fixed(arch: Architecture, variant: Variant) -> dict[str, Any]:
    """The entries that do not follow from the weights."""
    return {name: value for name, value in entries(arch, variant).items() if not _is_size(value)}


def sizes(arch: Architecture, placed: Iterable[Placed]) -> dict[str, int]:
    """The sizes that follow from the weights: symbol -> its value, `blocks SEGMENT` -> the number of blocks."""
    every = list(placed)
    sized = [Sized(path, s, shape[0], shape[1] if len(shape) > 1 else 1) for path, s, _, shape in every if shape]
    kinds, counts = arch.block_kinds(), dict[str, int]()
    for _, segment, index, _ in every:
        if index and segment in kinds:
            counts[kinds[segment]] = max(counts.get(kinds[segment], 0), index[0][1] + 1)
    blocks = {f"blocks {segment}": counts[kind] for segment, kind in kinds.items() if kind in counts}
    return {**solve(sized, arch.dimensions).values, **blocks}


def filled(values: Mapping[str, Any], known: Mapping[str, int], *, any_share: bool = False) -> dict[str, Any]:
    """The entries with their sizes as numbers. An entry of which a size is not known is left out.

    `any_share`: a width that is not divisible as the entry says, or by an unknown number, is one share. This is for a
    model of which only the shapes matter.
    """
    lists = {name: value for name, value in values.items() if isinstance(value, list) and _is_size(value)}
    each = {f"{name}.{n}": one for name, value in lists.items() for n, one in enumerate(value)}
    done = _filled({name: value for name, value in values.items() if name not in lists} | each, known, any_share)
    every = {name: [done.pop(f"{name}.{n}", None) for n in range(len(value))] for name, value in lists.items()}
    return done | {name: value for name, value in every.items() if None not in value}


def _filled(values: Mapping[str, Any], known: Mapping[str, int], any_share: bool) -> dict[str, Any]:
    numbers, known = {name: value for name, value in values.items() if not _is_size(value)}, dict(known)
    texts = {name: match for name, value in values.items() if _is_size(value) and (match := _SIZE.fullmatch(value))}
    for name, match in sorted(texts.items(), key=lambda item: item[1][2] is None):  # shares first: they may settle one
        whole, by = known.get(match[1]), match[2]
        if whole is None:
            continue
        share = 1 if by is None else int(by) if by.isdecimal() else known.get(by, numbers.get(by))
        if share and whole % share == 0:
            numbers[name] = whole // share
        elif any_share:
            numbers[name] = 1
            (numbers if by in values else known)[by] = whole
    return numbers


def faults(where: str, config: Mapping[str, Any], arch: Architecture) -> Iterator[Fault]:
    """The sizes of a configuration that do not follow from any weight."""
    symbols = {symbol for pair in arch.dimensions.values() for _, symbol in pair}
    known = symbols | {f"blocks {segment}" for segment in arch.segments}
    every = ((name, one) for name, value in config.items() for one in (value if isinstance(value, list) else [value]))
    for name, value in ((name, value) for name, value in every if _is_size(value)):
        match = _SIZE.fullmatch(value)
        if match is None or match[1] not in known:
            yield Fault(f"{where}: {name} is {value!r}, which is no symbol of dimensions and no number of blocks")
        elif (by := match[2]) and not by.isdecimal() and by not in symbols | arch.config.keys():
            yield Fault(f"{where}: {name} is {value!r}, and {by} is no symbol of dimensions, no entry and no number")


def like(value: Any, example: Any) -> bool:
    """Whether an entry may have this value, where a variant has the example: of its type, and a positive number.

    No number of such a configuration is larger than 10^9.
    """
    example = 1 if isinstance(example, str) and _is_size(example) else example
    if type(example) not in (int, float):
        return type(value) is type(example)
    return type(value) in (int, type(example)) and (0 < value <= 1e9 or value == example)


def _is_size(value: Any) -> bool:
    """Whether it is a size, or a list that has one."""
    return any(isinstance(one, str) and one.startswith("{") for one in (value if isinstance(value, list) else [value]))
