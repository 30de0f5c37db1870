"""Names only: which module of a layout stacks which segments. Knows no numbers, imports no numpy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from typing import Any

from loraforge.dimensions import Sized, Sizes, Solution, solve, term
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


WEIGHT_AND_BIAS = ("weight", "bias")


@dataclass(frozen=True, slots=True)
class Layout:
    """How one framework names an architecture's modules: template -> segments stacked on dim 0."""

    name: str
    modules: Mapping[Template, tuple[str, ...]]
    absent: frozenset[str] = frozenset()
    dropped: Mapping[Template, str] = field(default_factory=dict)
    """Key templates of a base checkpoint that only this layout has -> why leaving them behind loses nothing."""
    unit_axes: Mapping[Template, int] = field(default_factory=dict)
    """Convolution -> the axis of its weight, [out, in, ...], that has length 1 here and is missing elsewhere."""
    own: tuple[Template, ...] = ()
    """Modules no other model is known to have: where a file adapts one, its architecture is shown."""

    def kernel(self, path: str, kernel: tuple[int, ...]) -> tuple[int, ...]:
        """A convolution's kernel as this layout has it, from how the others have it."""
        axis = self._unit_axis(path)
        return kernel if axis is None or not kernel else (*kernel[: axis - 2], 1, *kernel[axis - 2 :])

    def plain_kernel(self, path: str, kernel: tuple[int, ...]) -> tuple[int, ...]:
        """The inverse of `kernel`."""
        axis = self._unit_axis(path)
        return kernel if axis is None or not kernel else (*kernel[: axis - 2], *kernel[axis - 1 :])

    def _unit_axis(self, path: str) -> int | None:
        if not self.unit_axes:
            return None
        place = self.locate(path)
        return self.unit_axes.get(place[0]) if place else None

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

    def needless(self, key: str) -> str | None:
        """Why a key of a base checkpoint may be left behind, or None."""
        return next((reason for template, reason in self.dropped.items() if template.match(key) is not None), None)


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
    config: Mapping[str, Any] = field(default_factory=dict)
    """Its entries of Diffusers' config.json where they are not the architecture's."""

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
    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the parameters of the segments that have others than weight and bias."""
    unadapted: Mapping[str, str] = field(default_factory=dict)
    """Segment -> what it is, for those that no LoRA adapts."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Entries of Diffusers' config.json that no shape tells."""
    told_by: str = ""
    """The segment whose shape past dim 0 tells the variants apart, whatever the width of the model."""
    dimensions: Mapping[str, Sizes] = field(default_factory=dict)
    """Segment -> rows and inputs of its weight in symbols; empty where nothing states them."""

    def solved(self, variant: Variant) -> Solution:
        """The sizes of a released variant."""
        shapes = [Sized(s, s, shape[0], shape[1]) for s, shape in variant.shapes.items()]
        return solve(shapes, self.dimensions)

    def named(self, segments: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the parameters of a module that stacks these segments."""
        return self.parameters.get(segments[0], WEIGHT_AND_BIAS) if segments else ()

    def like(self, shape: tuple[int, ...]) -> tuple[Variant, ...]:
        """The variants whose `told_by` weight has this shape past dim 0: also those of another width."""
        return tuple(v for v in self.variants if v.shapes.get(self.told_by, shape)[1:] == shape[1:])

    def kernels(self, segments: tuple[str, ...]) -> set[int]:
        """The dimensions of the kernels variants have there; empty where none has a convolution."""
        sizes = {len(variant.shapes.get(segment, ())) for variant in self.variants for segment in segments}
        return {size - 2 for size in sizes if size > 2}

    def sizes(self, segments: tuple[str, ...], rows: int) -> list[int] | None:
        """Rows of each stacked segment when the module has `rows` in all; None if they do not divide."""
        ratios = [self.segments[segment] for segment in segments]
        return None if rows % sum(ratios) else [rows // sum(ratios) * ratio for ratio in ratios]


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
    )
    problems += _wrong_dimensions(data, arch)
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
        {"rows", "variants", "parameters", "unadapted", "told_by", "config", "dimensions"},
    ),
    "layouts": ({"modules"}, {"absent", "dropped", "lora_only", "unit_axes", "own"}),
    "variants": ({"repo", "blocks"}, {"shapes", "absent", "config"}),
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
