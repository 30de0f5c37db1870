"""Builds an architecture from its tables, and refuses layouts that are not a bijection with its segments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

from loraforge.errors import Fault, LayoutError
from loraforge.names.diffusers_config import faults
from loraforge.names.dimensions import term
from loraforge.names.layout import Architecture, Layout, Template, Variant, _is_hole, parameter_key
from loraforge.names.places import expanded, misplaces


def parse(data: Mapping[str, Any], where: str) -> Architecture:
    """Build an architecture from its TOML, which follows its schema, and check that every layout is a bijection.

    Raises LayoutError that lists all problems of the file.
    """
    if odd := list(misplaces(data)):
        raise LayoutError(where, odd)
    data = expanded(data)
    arch = built(data)
    problems = [*_wrong_segments(data), *_wrong_dimensions(arch), *_wrong_classes(arch), *_misnamed(arch)]
    holes: dict[str, tuple[str, frozenset[str]]] = {}
    for layout in arch.layouts.values():
        faults = [*_misplaced(layout, arch, holes), *_misdropped(layout, arch)]
        problems += [replace(fault, layout=layout.name) for fault in faults]
    if problems:
        raise LayoutError(where, problems)
    return arch


def built(data: Mapping[str, Any]) -> Architecture:
    """The architecture of tables that are known to have no fault."""
    data = expanded(data)
    ratios, kinds = data.get("rows", {}), data.get("unadapted", {})
    layouts = {name: _layout(name, table, kinds) for name, table in data.get("layouts", {}).items()}
    sizes = {segment: (term(rows), term(inputs)) for segment, (rows, inputs) in data.get("dimensions", {}).items()}
    dimensions = {segment: (rows, inputs) for segment, (rows, inputs) in sizes.items() if rows and inputs}
    segments = {segment: ratios.get(segment, 1) for segment in data.get("segments", ())}
    unadapted = {segment: what for what, segments in kinds.items() for segment in segments}
    name, title, words = data.get("architecture", ""), data.get("title", ""), tuple(data.get("words", ()))
    rest: dict[str, Any] = {"dimensions": dimensions, "words": words}
    rest |= {
        field: data[field] for field in ("config", "told_by", "pipelines", "kernels", "component") if field in data
    }
    arch = Architecture(name, title, segments, (), layouts, _parameters(data), unadapted, **rest)
    released = data.get("variants", {}).items()
    return replace(arch, variants=tuple(_variant(name, table, arch.block_kinds()) for name, table in released))


def _layout(name: str, table: Mapping[str, Any], kinds: Mapping[str, Any]) -> Layout:
    """The layout of a table. A layout for LoRA alone need not place the segments that no LoRA adapts."""
    modules = {Template(path): tuple(stack) for path, stack in table.get("modules", {}).items()}
    unadapted = {segment for segments in kinds.values() for segment in segments} if table.get("lora_only") else set()
    absent = unadapted.difference(*modules.values()).union(table.get("absent", ()))
    dropped = {Template(key): reason for key, reason in table.get("dropped", {}).items()}
    axes = {Template(path): axis for path, axis in table.get("unit_axes", {}).items()}
    own = tuple(map(Template, table.get("own", ())))
    parameters = {segment: tuple(names) for segment, names in table.get("parameters", {}).items()}
    return Layout(name, modules, frozenset(absent), dropped, axes, own, parameters)


def _parameters(data: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The parameters of segments that have others than weight and bias; `*` stands for those not listed."""
    stated = {**data.get("parameters", {})}
    others = dict.fromkeys(data.get("segments", ()), tuple(stated.pop("*", ())))
    return {s: names for s, names in (others | {s: tuple(names) for s, names in stated.items()}).items() if names}


def _variant(name: str, table: Mapping[str, Any], kinds: Mapping[str, str]) -> Variant:
    """A variant. A segment without a stated depth has that of the deepest of its kind of block."""
    shapes = {segment: tuple(shape) for segment, shape in table.get("shapes", {}).items()}
    repo, blocks, absent = table.get("repo", ""), table.get("blocks", 0), frozenset(table.get("absent", ()))
    stated, blocks = (blocks, max(blocks.values())) if isinstance(blocks, Mapping) else ({}, blocks)
    deepest = {kinds.get(s, s): number for s, number in sorted(stated.items(), key=lambda item: item[1])}
    depths = {segment: deepest[kind] for segment, kind in kinds.items() if kind in deepest} | dict(stated)
    return Variant(name, repo, blocks, shapes, absent, table.get("config", {}), table.get("pipeline", ""), depths)


def _wrong_segments(data: Mapping[str, Any]) -> Iterator[Fault]:
    """Segments that are named outside the layouts but do not exist, and lists that contradict each other."""
    kinds, variants, told_by = data.get("unadapted", {}), data.get("variants", {}), data.get("told_by")
    absent = {name: [text.partition(".")[0] for text in v.get("absent", ())] for name, v in variants.items()}
    named = {
        "rows": list(data.get("rows", {})),
        "parameters": [segment for segment in data.get("parameters", {}) if segment != "*"],
        "told_by": [told_by] if told_by is not None else [],
        "dimensions": list(data.get("dimensions", {})),
        "kernels": list(data.get("kernels", {})),
        **{f"unadapted {what!r}": segments for what, segments in kinds.items()},
        **{f"variant {name}": [*v.get("shapes", {}), *absent[name]] for name, v in variants.items()},
        **{f"variant {n}: blocks": list(b) for n, v in variants.items() if isinstance(b := v.get("blocks"), Mapping)},
    }
    for table, segments in named.items():
        unknown = sorted(set(segments) - set(data.get("segments", ())))
        yield from (Fault(f"{table}: unknown segment {segment!r}", (segment,)) for segment in unknown)
    counts = Counter(segment for segments in kinds.values() for segment in segments)
    yield from (Fault(f"unadapted: segment {s!r} is listed {n} times", (s,)) for s, n in counts.items() if n > 1)
    for name, variant in variants.items():
        both = variant.get("shapes", {}).keys() & set(variant.get("absent", ()))
        yield from (Fault(f"variant {name}: segment {s!r} is absent, and has a shape", (s,)) for s in sorted(both))
        if told_by is not None and told_by not in variant.get("shapes", {}):
            yield Fault(f"variant {name}: no shape of {told_by!r}, by which variants are told")


def _wrong_dimensions(arch: Architecture) -> Iterator[Fault]:
    """Sizes that contradict the rows of a stack or a released variant."""
    for layout in arch.layouts.values():
        for template, stack in layout.modules.items():
            known = [s for s in stack if s in arch.segments.keys() & arch.dimensions]
            sizes = [(arch.segments[s], arch.dimensions[s][0]) for s in known]
            for (ratio, (times, symbol)), (other, (more, same)) in pairwise(sizes):
                if symbol == same and ratio * more != other * times:
                    text = f"the rows of {template.text!r} are not as dimensions has them"
                    yield Fault(text, (template.text,), layout.name)
    for variant in arch.variants:
        if odd := arch.solved(variant).odd:
            yield Fault(f"variant {variant.name}: dimensions do not allow {', '.join(one.said() for one in odd)}")


def _wrong_classes(arch: Architecture) -> Iterator[Fault]:
    """Pipelines that are not listed, and sizes of a configuration that no weight shows."""
    yield from faults("config", arch.config, arch)
    for variant in arch.variants:
        yield from faults(f"variant {variant.name}: config", variant.config, arch)
        if variant.pipeline and variant.pipeline not in arch.pipelines:
            yield Fault(f"variant {variant.name}: {variant.pipeline} is none of pipelines")


def _misplaced(layout: Layout, arch: Architecture, holes: dict[str, tuple[str, frozenset[str]]]) -> Iterator[Fault]:
    """Why the modules are not a bijection with the segments. `holes`: those of the layouts checked so far."""
    owner: dict[str, Template] = {}
    templates = list(layout.modules)
    for n, (template, stack) in enumerate(layout.modules.items()):
        yield from _malformed(template)
        for earlier in templates[:n]:
            clash = template.overlaps(earlier) or template.overlaps(earlier, "_")
            if clash and not template.ends(earlier) and not earlier.ends(template):
                text = f"{earlier.text!r} and {template.text!r} can match the same module"
                yield Fault(text, (earlier.text, template.text))
        for segment in stack:
            if segment not in arch.segments:
                yield Fault(f"{template.text!r} uses unknown segment {segment!r}", (template.text, segment))
            elif segment in owner:
                both = (owner[segment].text, template.text)
                yield Fault(f"segment {segment!r} is in {both[0]!r} and in {both[1]!r}", (segment, *both))
            owner.setdefault(segment, template)
            other, indexed = holes.setdefault(segment, (layout.name, template.holes))
            if indexed != template.holes:
                by, here = (", ".join(sorted(names)) or "no block number" for names in (indexed, template.holes))
                text = f"segment {segment!r} is indexed differently in layout {other!r}: by {by}, here by {here}"
                yield Fault(text, (segment,))
        if len({(arch.named((segment,), layout.name), arch.unadapted.get(segment)) for segment in stack}) > 1:
            text = f"{template.text!r} stacks segments whose parameters, or kinds, are not the same"
            yield Fault(text, (template.text,))
    for segment in arch.segments:
        if (segment in owner) == (segment in layout.absent):
            state = "both placed and" if segment in owner else "in no module: place it, or list it as"
            yield Fault(f"segment {segment!r} is {state} absent", (segment,))
    strangers = sorted(template.text for template in layout.unit_axes.keys() - layout.modules.keys())
    yield from (Fault(f"unit_axes: {text!r} is no module") for text in strangers)
    yield from (Fault(f"own: {own.text!r} is no module") for own in layout.own if own not in layout.modules)
    yield from (Fault(f"absent: unknown segment {s!r}") for s in sorted(layout.absent - arch.segments.keys()))


def _misdropped(layout: Layout, arch: Architecture) -> Iterator[Fault]:
    """Dropped keys that are ambiguous, or that belong to a module of every variant."""
    templates = list(layout.dropped)
    for n, template in enumerate(templates):
        yield from _malformed(template)
        for earlier in filter(template.overlaps, templates[:n]):
            yield Fault(f"dropped {earlier.text!r} and {template.text!r} can match the same key")
        for module, stack in layout.modules.items():
            names = arch.named(stack, layout.name)
            mine = any(template.overlaps(Template(parameter_key(module.text, name))) for name in names)
            if mine and not any(variant.absent.issuperset(stack) for variant in arch.variants):
                text = f"dropped {template.text!r} is a parameter of {module.text!r}, which no variant lacks"
                yield Fault(text, (module.text,))


def _misnamed(arch: Architecture) -> Iterator[Fault]:
    """Names of parameters in a layout that are not one for each of the architecture's."""
    for layout in arch.layouts.values():
        for segment, names in layout.parameters.items():
            if segment not in arch.segments:
                yield Fault(f"parameters: unknown segment {segment!r}", (segment,), layout.name)
            elif len(names) != len(usual := arch.named((segment,))):
                text = f"parameters: {list(names)} of {segment!r} are not one for each of {list(usual)}"
                yield Fault(text, (segment,), layout.name)
    for variant in arch.variants:
        for segment, _, parameter in (text.partition(".") for text in sorted(variant.absent)):
            if parameter and segment in arch.segments and parameter not in arch.named((segment,)):
                yield Fault(f"variant {variant.name}: absent: {segment!r} has no parameter {parameter!r}", (segment,))


def _malformed(template: Template) -> Iterator[Fault]:
    tokens = template.tokens() if template.text else []
    holes = [token for token in tokens if _is_hole(token)]
    if len(holes) > len(template.holes):
        yield Fault(f"{template.text!r} uses a block number twice", (template.text,))
    for token in tokens:
        inner = token[1:-1] if token in holes else token
        if not inner or "{" in inner or "}" in inner or (token in holes and not inner.isidentifier()):
            text = f"{template.text!r}: {token!r} is neither a name nor one whole {{number}}"
            yield Fault(text, (template.text,))
