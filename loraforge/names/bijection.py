"""TODO."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from loraforge.errors import LayoutError
from loraforge.names.diffusers_config import faults
from loraforge.names.dimensions import term
from loraforge.names.layout import Architecture, Layout, Template, Variant, _is_hole


def parse(data: Mapping[str, Any], where: str) -> Architecture:
    """Build an architecture from its TOML, after checking that every layout is a bijection.

    Raises LayoutError that lists all problems of the file, not just the first.
    """
    problems = [*_wrong_keys(data), *_wrong_segments(data)]
    ratios, kinds = data.get("rows", {}), data.get("unadapted", {})
    layouts = {
        name: Layout(
            name,
            {Template(path): tuple(stack) for path, stack in table.get("modules", {}).items()},
            frozenset(table.get("absent", ())) | _left_out(table, kinds),
            {Template(key): reason for key, reason in table.get("dropped", {}).items()},
            {Template(path): axis for path, axis in table.get("unit_axes", {}).items()},
            tuple(map(Template, table.get("own", ()))),
        )
        for name, table in data.get("layouts", {}).items()
    }
    variants = tuple(
        Variant(
            name,
            v.get("repo", ""),
            v.get("blocks", 0),
            {s: tuple(shape) for s, shape in v.get("shapes", {}).items()},
            frozenset(v.get("absent", ())),
            v.get("config", {}),
            v.get("pipeline", ""),
        )
        for name, v in data.get("variants", {}).items()
    )
    arch = Architecture(
        data.get("architecture", ""),
        data.get("title", ""),
        {segment: ratios.get(segment, 1) for segment in data.get("segments", ())},
        variants,
        layouts,
        {segment: tuple(names) for segment, names in data.get("parameters", {}).items()},
        {segment: what for what, segments in kinds.items() for segment in segments},
        data.get("config", {}),
        data.get("told_by", ""),
        {
            s: (one, two)
            for s, texts in data.get("dimensions", {}).items()
            for one, two in [map(term, texts)]
            if one and two
        },
        data.get("pipelines", {}),
    )
    problems += [*_wrong_dimensions(data, arch), *_wrong_classes(arch)]
    holes: dict[str, tuple[str, frozenset[str]]] = {}
    for layout in layouts.values():
        faults = [*_misplaced(layout, arch, holes), *_misdropped(layout, arch)]
        problems += [f"layout {layout.name}: {fault}" for fault in faults]
    if problems:
        raise LayoutError(where, problems)
    return arch


def _left_out(table: Mapping[str, Any], kinds: Mapping[str, Any]) -> frozenset[str]:
    """The segments no LoRA adapts, where a layout is for LoRA alone and does not place them."""
    placed = {segment for stack in table.get("modules", {}).values() for segment in stack}
    every = {segment for segments in kinds.values() for segment in segments} if table.get("lora_only") else set()
    return frozenset(every - placed)


_KEYS = {
    "": (
        {"architecture", "title", "segments", "layouts"},
        {"rows", "variants", "parameters", "unadapted", "told_by", "config", "dimensions", "pipelines"},
    ),
    "layouts": ({"modules"}, {"absent", "dropped", "lora_only", "unit_axes", "own"}),
    "variants": ({"repo", "blocks"}, {"shapes", "absent", "config", "pipeline"}),
}
"""Table -> keys it must have, keys it may have."""


def _wrong_keys(data: Mapping[str, Any]) -> Iterator[str]:
    tables = [("", "", data)]
    for kind in ("layouts", "variants"):
        tables += [(kind, f"{kind}.{name}: ", entry) for name, entry in data.get(kind, {}).items()]
    for kind, place, entry in tables:
        needed, allowed = _KEYS[kind]
        yield from (f"{place}unknown key {key!r}" for key in sorted(entry.keys() - needed - allowed))
        yield from (f"{place}{key!r} is missing" for key in sorted(needed - entry.keys()))


def _wrong_segments(data: Mapping[str, Any]) -> Iterator[str]:
    """Segments that are named outside the layouts and do not exist, and lists of them that contradict each other."""
    kinds, variants = data.get("unadapted", {}), data.get("variants", {})
    told_by = data.get("told_by")
    named = {
        "rows": list(data.get("rows", {})),
        "parameters": list(data.get("parameters", {})),
        "told_by": [told_by] if told_by is not None else [],
        "dimensions": list(data.get("dimensions", {})),
        **{f"unadapted {what!r}": segments for what, segments in kinds.items()},
        **{f"variant {name}": [*v.get("shapes", {}), *v.get("absent", ())] for name, v in variants.items()},
    }
    for place, segments in named.items():
        unknown = sorted(set(segments) - set(data.get("segments", ())))
        yield from (f"{place}: unknown segment {segment!r}" for segment in unknown)
    for segment, count in Counter(segment for segments in kinds.values() for segment in segments).items():
        if count > 1:
            yield f"unadapted: segment {segment!r} is listed {count} times"
    for segment, names in data.get("parameters", {}).items():
        if not names or any(not name or "." in name for name in names):
            yield f"parameters: {list(names)} of segment {segment!r} are no names of parameters"
    for name, variant in variants.items():
        both = variant.get("shapes", {}).keys() & set(variant.get("absent", ()))
        yield from (f"variant {name}: segment {segment!r} is absent, and has a shape" for segment in sorted(both))
        if told_by is not None and told_by not in variant.get("shapes", {}):
            yield f"variant {name}: no shape of {told_by!r}, by which variants are told"


def _wrong_dimensions(data: Mapping[str, Any], arch: Architecture) -> Iterator[str]:
    """Sizes that are none, that contradict the rows of a stack, or a released variant."""
    for segment, texts in data.get("dimensions", {}).items():
        if segment not in arch.dimensions:
            yield f"dimensions: {list(texts)} of {segment!r} are not rows and inputs like '4 d', 'd' or '64'"
    for layout in arch.layouts.values():
        for template, stack in layout.modules.items():
            sizes = [
                (arch.segments[s], arch.dimensions[s][0]) for s in stack if s in arch.segments.keys() & arch.dimensions
            ]
            for (ratio, (times, symbol)), (other, (more, same)) in pairwise(sizes):
                if symbol == same and ratio * more != other * times:
                    yield f"layout {layout.name}: the rows of {template.text!r} are not as dimensions has them"
    for variant in arch.variants:
        if odd := arch.solved(variant).odd:
            yield f"variant {variant.name}: dimensions do not allow {', '.join(one.said() for one in odd)}"


def _wrong_classes(arch: Architecture) -> Iterator[str]:
    """Pipelines that are not listed, and sizes of a configuration that nothing measures."""
    yield from faults("config", arch.config, arch)
    for variant in arch.variants:
        yield from faults(f"variant {variant.name}: config", variant.config, arch)
        if variant.pipeline and variant.pipeline not in arch.pipelines:
            yield f"variant {variant.name}: {variant.pipeline} is none of pipelines"


def _misplaced(layout: Layout, arch: Architecture, holes: dict[str, tuple[str, frozenset[str]]]) -> Iterator[str]:
    """What keeps the modules from being a bijection with the segments. `holes`: those of the layouts seen so far."""
    owner: dict[str, Template] = {}
    templates = list(layout.modules)
    for n, template in enumerate(templates):
        stack = layout.modules[template]
        yield from _malformed(template)
        if not stack:
            yield f"{template.text!r} stacks no segment"
        for earlier in templates[:n]:
            if template.overlaps(earlier) or template.overlaps(earlier, "_"):
                yield f"{earlier.text!r} and {template.text!r} can match the same module"
        for segment in stack:
            if segment not in arch.segments:
                yield f"{template.text!r} uses unknown segment {segment!r}"
            elif segment in owner:
                yield f"segment {segment!r} is in {owner[segment].text!r} and in {template.text!r}"
            owner.setdefault(segment, template)
            other, indexed = holes.setdefault(segment, (layout.name, template.holes))
            if indexed != template.holes:
                here, there = (", ".join(sorted(names)) or "no block number" for names in (template.holes, indexed))
                yield f"segment {segment!r} is indexed differently in layout {other!r}: by {there}, here by {here}"
        if len({(arch.named((segment,)), arch.unadapted.get(segment)) for segment in stack}) > 1:
            yield f"{template.text!r} stacks segments whose parameters, or kinds, are not the same"
    for segment in arch.segments:
        if (segment in owner) == (segment in layout.absent):
            state = "both placed and" if segment in owner else "in no module: place it, or list it as"
            yield f"segment {segment!r} is {state} absent"
    strangers = sorted(template.text for template in layout.unit_axes.keys() - layout.modules.keys())
    yield from (f"unit_axes: {text!r} is no module" for text in strangers)
    yield from (f"own: {template.text!r} is no module" for template in layout.own if template not in layout.modules)
    yield from (f"absent: unknown segment {segment!r}" for segment in sorted(layout.absent - arch.segments.keys()))


def _misdropped(layout: Layout, arch: Architecture) -> Iterator[str]:
    """Dropped keys that are ambiguous, or that are carried in every variant."""
    templates = list(layout.dropped)
    for n, template in enumerate(templates):
        yield from _malformed(template)
        for earlier in templates[:n]:
            if template.overlaps(earlier):
                yield f"dropped {earlier.text!r} and {template.text!r} can match the same key"
        for module, stack in layout.modules.items():
            mine = any(template.overlaps(Template(f"{module.text}.{name}")) for name in arch.named(stack))
            if mine and not any(variant.absent.issuperset(stack) for variant in arch.variants):
                yield f"dropped {template.text!r} is a parameter of {module.text!r}, which no variant lacks"


def _malformed(template: Template) -> Iterator[str]:
    tokens = template.tokens()
    holes = [token for token in tokens if _is_hole(token)]
    if len(holes) > len(template.holes):
        yield f"{template.text!r} uses a block number twice"
    for token in tokens:
        inner = token[1:-1] if token in holes else token
        if not inner or "{" in inner or "}" in inner or (token in holes and not inner.isidentifier()):
            yield f"{template.text!r}: {token!r} is neither a name nor one whole {{number}}"
