"""Names only: which module of a layout stacks which segments. Knows no numbers, imports no numpy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import takewhile
from typing import Any

from loraforge.names.dimensions import Sized, Sizes, Solution, solve

COMPONENT = "transformer"
"""Diffusers' name of the part of a pipeline that LoRAs adapt: a folder, and the prefix of keys and entries."""

Index = tuple[tuple[str, int], ...]
"""Block numbers by hole name, sorted: `(("i", 3),)`."""


@dataclass(frozen=True, slots=True)
class Template:
    """A module path in which a token `{name}` is a hole for one block number."""

    text: str

    def tokens(self, sep: str = ".") -> list[str]:
        return _tokens(self.text, sep)

    @property
    def holes(self) -> frozenset[str]:
        return frozenset(token for token in self.tokens() if _is_hole(token))

    @property
    def container(self) -> str:
        """The path before the first block number; the whole path if there is none."""
        return ".".join(takewhile(lambda token: not _is_hole(token), self.tokens()))

    def match(self, path: str, sep: str = ".") -> Index | None:
        """The block numbers with which this template is `path`, or None if it does not match."""
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
        """Whether a path can match both. Exact, because a hole is always one whole token of digits."""
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
    """Whether it is a block number as programs write it: no sign, no leading zero, at most six digits."""
    return token.isascii() and token.isdecimal() and len(token) <= 6 and str(int(token)) == token


WEIGHT_AND_BIAS = ("weight", "bias")


@dataclass(frozen=True, slots=True)
class Layout:
    """How one framework names an architecture's modules: template -> segments stacked on dim 0."""

    name: str
    modules: Mapping[Template, tuple[str, ...]]
    absent: frozenset[str] = frozenset()
    dropped: Mapping[Template, str] = field(default_factory=dict)
    """Key templates of a base checkpoint that only this layout has -> why nothing is lost without them."""
    unit_axes: Mapping[Template, int] = field(default_factory=dict)
    """Convolution -> the axis of its weight, [out, in, ...], that has length 1 here and does not exist elsewhere."""
    own: tuple[Template, ...] = ()
    """Modules that no other known model has: an adapter of one of them is surely of this architecture."""

    def kernel(self, path: str, kernel: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a convolution's kernel in this layout, from its shape in the others."""
        axis = self._unit_axis(path) if kernel else None
        return kernel if axis is None else (*kernel[: axis - 2], 1, *kernel[axis - 2 :])

    def plain_kernel(self, path: str, kernel: tuple[int, ...]) -> tuple[int, ...]:
        """The inverse of `kernel`."""
        axis = self._unit_axis(path) if kernel else None
        return kernel if axis is None else (*kernel[: axis - 2], *kernel[axis - 1 :])

    def _unit_axis(self, path: str) -> int | None:
        located = self.locate(path)
        return self.unit_axes.get(located[0]) if located else None

    def stacked(self, path: str) -> tuple[str, ...]:
        """The segments that a module stacks; empty if the layout has no such module."""
        located = self.locate(path)
        return self.modules[located[0]] if located else ()

    def locate(self, path: str, sep: str = ".") -> tuple[Template, Index] | None:
        """The template and block numbers of a module path, or None if the layout has no such module."""
        for template in self.modules:
            if (index := template.match(path, sep)) is not None:
                return template, index
        return None

    def needless(self, key: str) -> str | None:
        """Why a key of a base checkpoint may be dropped; None if it may not."""
        return next((reason for template, reason in self.dropped.items() if template.match(key) is not None), None)


@dataclass(frozen=True, slots=True)
class Variant:
    """One released base model, as far as shapes can tell it from its siblings."""

    name: str
    repo: str
    blocks: int
    shapes: Mapping[str, tuple[int, ...]]
    """Base weight shapes of the segments that differ between variants."""
    absent: frozenset[str]
    """Segments that this variant does not have."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The entries of its Diffusers config.json that differ from the architecture's."""
    pipeline: str = ""
    """Diffusers' class that runs it; empty if not known."""

    def objection(self, segment: str, index: Index, shape: tuple[int, ...]) -> str | None:
        """Why a weight of this segment, block and shape cannot belong to the variant; None if it can."""
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
    """Segment that no LoRA adapts -> what it is."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """Entries of Diffusers' config.json, sizes in braces: see names/diffusers_config.py."""
    told_by: str = ""
    """The segment whose shape after dim 0 differs between the variants, whatever the width of the model."""
    dimensions: Mapping[str, Sizes] = field(default_factory=dict)
    """Segment -> rows and inputs of its weight in symbols; empty if they are not stated."""
    pipelines: Mapping[str, str] = field(default_factory=dict)
    """Diffusers' classes that run it -> the Hub's name of their task: `text-to-video`."""

    @property
    def transformer(self) -> str:
        """Diffusers' class of the model; empty if not known."""
        return str(self.config.get("_class_name", ""))

    def block_kinds(self) -> dict[str, str]:
        """Segment -> its kind of numbered blocks, by the layout that places most segments in the fewest kinds."""
        kinds = [
            {s: template.container for template, stack in layout.modules.items() if template.holes for s in stack}
            for layout in self.layouts.values()
        ]
        return min(kinds, key=lambda table: (-len(table), len(set(table.values()))), default={})

    def solved(self, variant: Variant) -> Solution:
        """The sizes of a released variant."""
        shapes = [Sized(s, s, shape[0], shape[1]) for s, shape in variant.shapes.items()]
        return solve(shapes, self.dimensions)

    def named(self, segments: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the parameters of a module that stacks these segments."""
        return self.parameters.get(segments[0], WEIGHT_AND_BIAS) if segments else ()

    def like(self, shape: tuple[int, ...]) -> tuple[Variant, ...]:
        """The variants whose `told_by` weight has this shape after dim 0, of any width."""
        return tuple(v for v in self.variants if v.shapes.get(self.told_by, shape)[1:] == shape[1:])

    def kernels(self, segments: tuple[str, ...]) -> set[int]:
        """How many dimensions the kernels of these segments have; empty if no variant has a convolution there."""
        sizes = {len(variant.shapes.get(segment, ())) for variant in self.variants for segment in segments}
        return {size - 2 for size in sizes if size > 2}

    def sizes(self, segments: tuple[str, ...], rows: int) -> list[int] | None:
        """Rows of each stacked segment if the module has `rows` in total; None if they cannot be divided."""
        ratios = [self.segments[segment] for segment in segments]
        return None if rows % sum(ratios) else [rows // sum(ratios) * ratio for ratio in ratios]
