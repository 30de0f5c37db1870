"""Moves a base model's parameters between layouts, through the same segments as a LoRA's rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from loraforge.adapter.relayout import Place
from loraforge.errors import ConversionError
from loraforge.names.layout import Architecture, Index, Variant, parameter_key
from loraforge.text import listed


class Piece(NamedTuple):
    """Rows `start` to `stop` of one tensor of the source."""

    key: str
    start: int
    stop: int


def route(
    shapes: Mapping[str, tuple[int, ...]], arch: Architecture, source: str, target: str, variants: Sequence[Variant]
) -> tuple[dict[str, tuple[Piece, ...]], dict[str, str]]:
    """Target key -> the rows it stacks on dim 0, and source key -> why it is left behind, from names and shapes alone.

    Source keys are `<module path>.<parameter>`, without any prefix.

    `variants`: the released models it may be. Raises ConversionError that lists the keys that the source layout does
    not know, those that no variant has, those that the target has no module for, and incomplete stacks.
    """
    kept, dropped = _sorted_out(shapes, arch, source, variants)
    held: dict[tuple[str, Place], Piece] = {}
    problems = []
    for key, (parameter, segments, index) in kept.items():
        shape = shapes[key]
        sizes = arch.sizes(segments, shape[0]) if shape else None
        if sizes is None:
            problems.append(f"{key} {list(shape)} cannot be shared by {', '.join(segments)}")
            continue
        start = 0
        for segment, size in zip(segments, sizes, strict=True):
            held[parameter, (segment, index)] = Piece(key, start, start + size)
            start += size
    pieces: dict[str, tuple[Piece, ...]] = {}
    for template, segments in arch.layouts[target].modules.items():
        parameters = {(index, name) for name, (segment, index) in held if segment in segments}
        for index, parameter in sorted(parameters):
            names = dict(zip(arch.named(segments), arch.named(segments, target), strict=True))
            key = parameter_key(template.fill(index), names[parameter])
            parts = {segment: held.pop((parameter, (segment, index)), None) for segment in segments}
            problems += [f"{key}: {fault}" for fault in _mismatches(parts, shapes, arch)]
            pieces[key] = tuple(part for part in parts.values() if part)
    if homeless := sorted({part.key for part in held.values()}):
        problems.append(f"layout {target} has no place for {listed(homeless)}")
    if problems:
        raise ConversionError(listed(problems))
    return pieces, dropped


Address = tuple[str, tuple[str, ...], Index]
"""The architecture's name of a parameter, the segments its module stacks, and their block numbers."""


def _sorted_out(
    keys: Mapping[str, object], arch: Architecture, layout: str, variants: Sequence[Variant]
) -> tuple[dict[str, Address], dict[str, str]]:
    """The keys that are moved, with their addresses, and those that are left behind, with the reason."""
    if not variants:
        raise ConversionError(f"no released {arch.title} has these shapes, so what its keys mean is not known")
    kept, dropped = dict[str, Address](), dict[str, str]()
    unknown, problems = list[str](), list[str]()
    for key in keys:
        address, reason = _address(key, arch, layout), arch.layouts[layout].needless(key)
        lacking = [v.name for v in variants if address and v.absent.issuperset(address[1])]
        if address and (not lacking or (reason is None and len(lacking) < len(variants))):
            kept[key] = address
        elif reason is not None and len(lacking) in (0, len(variants)):
            dropped[key] = reason
        elif reason is not None:
            problems.append(f"{key} is needless in {', '.join(lacking)}, of which it is not known whether this is one")
        elif address:
            problems.append(f"{key}: {', '.join(lacking)} has no {', '.join(address[1])}")
        else:
            unknown.append(key)
    if unknown:
        problems.insert(0, f"{listed(unknown)}: no parameter of {arch.title} in layout {layout}")
    if problems:
        raise ConversionError(listed(problems))
    return kept, dropped


def _address(key: str, arch: Architecture, layout: str) -> Address | None:
    path, _, parameter = key.rpartition(".")
    located = arch.layouts[layout].locate(path)
    segments = arch.layouts[layout].modules[located[0]] if located else ()
    names = dict(zip(arch.named(segments, layout), arch.named(segments), strict=True))
    return (names[parameter], segments, located[1]) if located and parameter in names else None


def _mismatches(
    parts: Mapping[str, Piece | None], shapes: Mapping[str, tuple[int, ...]], arch: Architecture
) -> Iterator[str]:
    """Why the parts of one tensor cannot be stacked."""
    missing = [segment for segment, part in parts.items() if part is None]
    if missing:
        yield f"{', '.join(missing)} is missing"
    present = {segment: part for segment, part in parts.items() if part}
    units = {(part.stop - part.start) / arch.segments[segment] for segment, part in present.items()}
    if len(units) > 1 or len({shapes[part.key][1:] for part in present.values()}) > 1:
        described = (f"{part.key} {list(shapes[part.key])}" for part in present.values())
        yield f"{', '.join(described)} do not stack"
