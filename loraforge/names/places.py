"""Places: a hole of a template that stands for one of a list of paths, for models whose block numbers are arithmetic.

`"{res}.conv1" = ["conv1"]` with a list of paths for `res` in each layout is one module for each path, with a segment of
its own: `conv1_0`, `conv1_1`, ... Everything else sees the modules and segments that are made of it here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from loraforge.errors import Fault
from loraforge.names.dimensions import term

Table = dict[str, Any]
_BY_SEGMENT = ("rows", "parameters", "kernels")


def misplaces(data: Mapping[str, Any]) -> Iterator[Fault]:
    """Why a template of places cannot be written out."""
    owner = dict[str, str]()
    for name, place in data.get("places", {}).items():
        if _uneven(place):
            sizes = {word: len(values) for word, values in place.items()}
            yield Fault(f"places.{name}: its lists are not of one length: {sizes}", (name,))
    for layout, table in data.get("layouts", {}).items():
        for text, stack in table.get("modules", {}).items():
            used = _used(text, data)
            if len(used) > 1:
                yield Fault(f"{text!r} has more than one place", (text,), layout)
            for segment in stack:
                if owner.setdefault(segment, "".join(used)) != "".join(used):
                    yield Fault(f"segment {segment!r} is in places {owner[segment] or 'none'} and in {text!r}", (text,))
            for name in used:
                paths = data["places"][name].get(layout, [])
                if not paths or len({*paths}) < len(paths):
                    what = "has a path twice" if paths else "has no paths"
                    yield Fault(f"places.{name} {what} of layout {layout}", (name,), layout)
    if owner.keys() & data.get("dimensions", {}).keys() and not any(map(_uneven, data.get("places", {}).values())):
        for segment, sizes in _dimensions(data, _homes(data)).items():
            yield from (Fault(f"dimensions of {segment}: {size!r} is no size") for size in sizes if not term(size))


def _uneven(place: Mapping[str, list[str]]) -> bool:
    return len({len(values) for values in place.values()}) > 1


def expanded(data: Mapping[str, Any]) -> Table:
    """The tables with a module and a segment for each path, in place of those with a hole for all of them."""
    if not data.get("places"):
        return {**data}
    layouts = {name: _layout(name, table, data) for name, table in data["layouts"].items()}
    homes = _homes(data)
    each = {segment: [f"{segment}_{n}" for n in range(number)] for segment, (_, number) in homes.items()}

    def several(segments: Iterable[str]) -> list[str]:
        return [one for segment in segments for one in each.get(segment, [segment])]

    def in_all(text: str) -> list[str]:
        segment, dot, parameter = text.partition(".")
        return [f"{one}{dot}{parameter}" for one in several([segment])]

    def by_segment(table: Mapping[str, Any]) -> Table:
        return {one: value for segment, value in table.items() for one in each.get(segment, [segment])}

    made = {key: value for key, value in data.items() if key != "places"} | {"layouts": layouts}
    made |= {key: by_segment(data[key]) for key in _BY_SEGMENT if key in data}
    made |= {"segments": several(data.get("segments", ()))}
    made["unadapted"] = {what: several(segments) for what, segments in data.get("unadapted", {}).items()}
    made["dimensions"] = _dimensions(data, homes)
    for table in layouts.values():
        table |= {"absent": several(table.get("absent", ())), "parameters": by_segment(table.get("parameters", {}))}
    variants = {}
    for name, table in data.get("variants", {}).items():
        blocks = table.get("blocks", 0)
        if isinstance(blocks, Mapping):
            blocks = {one: depth for segment, depths in blocks.items() for one, depth in _depths(segment, depths, each)}
        absent = [one for text in table.get("absent", ()) for one in in_all(text)]
        variants[name] = {**table, "blocks": blocks, "absent": absent}
    return made | ({"variants": variants} if variants else {})


def _used(text: str, data: Mapping[str, Any]) -> list[str]:
    """The places in a template."""
    return [name for name in data.get("places", {}) if f"{{{name}}}" in text.split(".")]


def _layout(name: str, table: Mapping[str, Any], data: Mapping[str, Any]) -> Table:
    made = {**table, "modules": {}}
    for text, stack in table.get("modules", {}).items():
        places = [(place, n, path) for place in _used(text, data) for n, path in enumerate(data["places"][place][name])]
        for place, n, path in places:
            made["modules"][text.replace(f"{{{place}}}", path)] = [f"{segment}_{n}" for segment in stack]
        if not places:
            made["modules"][text] = stack
    return made


def _homes(data: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Segment in places -> its place, and the number of its paths."""
    every = (item for table in data["layouts"].values() for item in table.get("modules", {}).items())
    used = ((segment, place) for text, stack in every for place in _used(text, data) for segment in stack)
    return {segment: (place, len(next(iter(data["places"][place].values())))) for segment, place in used}


def _dimensions(data: Mapping[str, Any], homes: Mapping[str, tuple[str, int]]) -> Table:
    """The sizes of each segment, with what stands for a `{word}` at its place; none where that is empty."""
    made = Table()
    for segment, sizes in data.get("dimensions", {}).items():
        place, number = homes.get(segment, ("", 0))
        made |= {} if place else {segment: sizes}
        for n in range(number):
            words = {word: values[n] for word, values in data["places"][place].items()}
            if all(filled := [_said(size, words) for size in sizes]):
                made[f"{segment}_{n}"] = filled
    return made


def _said(size: str, words: Mapping[str, str]) -> str:
    """A size with the value of its word, if it has one; empty if that is."""
    for word, value in words.items():
        if f"{{{word}}}" in size:
            return size.replace(f"{{{word}}}", value) if value else ""
    return size


def _depths(segment: str, depths: int | list[int], each: Mapping[str, list[str]]) -> Iterator[tuple[str, int]]:
    names = each.get(segment, [segment])
    yield from zip(names, depths if isinstance(depths, list) else [depths] * len(names), strict=True)
