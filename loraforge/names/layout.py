"""Names only: which module of a layout stacks which segments. Knows no numbers, imports no numpy."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import takewhile
from typing import Any

from loraforge.names.dimensions import Sized, Sizes, Solution, solve
from loraforge.numbered import parted

COMPONENT = "transformer"
"""Diffusers' name of the part of most pipelines that LoRAs adapt: a folder, and the prefix of keys and entries."""
COMPONENTS = (COMPONENT, "unet")
"""Its names in all pipelines."""

Index = tuple[tuple[str, int], ...]
"""Block numbers by hole name, sorted: `(("i", 3),)`."""

LAST = "last"
"""The hole of a template for the last block alone, where that block is built differently (SD3, Mochi)."""


@dataclass(frozen=True, slots=True)
class Template:
    """A module path in which a token `{name}` is a hole for one block number. The empty path is the model itself."""

    text: str

    def tokens(self, sep: str = ".") -> list[str]:
        return _tokens(self.text, sep)

    @property
    def holes(self) -> frozenset[str]:
        return frozenset(token for token in self.tokens() if _is_hole(token))

    @property
    def for_last(self) -> bool:
        """Whether it is a module of the last block alone."""
        return f"{{{LAST}}}" in self.holes

    @property
    def container(self) -> str:
        """The path before the first block number; the whole path if there is none."""
        return ".".join(takewhile(lambda token: not _is_hole(token), self.tokens()))

    def match(self, path: str, sep: str = ".") -> Index | None:
        """The block numbers with which this template is `path`, or None if it does not match."""
        mine, theirs = self.tokens(sep), path.split(sep)
        pairs = [(want, got) for want, got in zip(mine, theirs, strict=False) if want != got]
        if len(mine) != len(theirs) or not all(_is_hole(want) and _is_number(got) for want, got in pairs):
            return None
        return tuple(sorted((want[1:-1], int(got)) for want, got in pairs))

    def fill(self, index: Index) -> str:
        return self.text.format(**dict(index))

    def ends(self, other: Template) -> bool:
        """Whether this is the other template in the last block."""
        theirs = [f"{{{LAST}}}" if _is_hole(token) else token for token in other.tokens()]
        return self.for_last and not other.for_last and theirs == self.tokens()

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


_NUMBER = re.compile(r"(?<![^._])(?:\d+|\{\w+\})(?![^._])")


def pattern(path: str) -> str:
    """A module path, or a template of one, without its numbers; alike whether dots or underscores join its words."""
    return _NUMBER.sub("#", path).replace("_", ".")


def parameter_key(path: str, parameter: str) -> str:
    """The key of a module's parameter; that of the model itself, whose path is empty, has no dot."""
    return f"{path}.{parameter}" if path else parameter


ANY = "999999"
"""A block number that is asked for in place of all: it is a word of no template, and of no model known."""


def _is_number(token: str) -> bool:
    """Whether it is a block number as programs write it: no sign, no leading zero, at most six digits."""
    return token.isascii() and token.isdecimal() and len(token) <= 6 and str(int(token)) == token


WEIGHT_AND_BIAS = ("weight", "bias")
_MOST_LOCATED = 1 << 16
"""Names of which a layout keeps where they are, so that a file of a million keys does not fill the memory."""


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
    parameters: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the parameters of the segments that have others here than in the architecture, in the same order."""
    last: int | None = None
    """The number of the last block, which `{last}` stands for; None if it is not known."""
    _located: dict[tuple[str, str], tuple[Template, Index] | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """The answers for paths that differ by more than a block number."""
    _patterns: dict[str, list[Template]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The templates by their patterns, so that a path is compared with one or two."""

    def kernel(self, path: str, kernel: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a convolution's kernel in this layout, from its shape in the others."""
        axis = self._unit_axis(path) if kernel else None
        return kernel if axis is None else (*kernel[: axis - 2], 1, *kernel[axis - 2 :])

    def plain_kernel(self, path: str, kernel: tuple[int, ...]) -> tuple[int, ...]:
        """The inverse of `kernel`."""
        axis = self._unit_axis(path) if kernel else None
        return kernel if axis is None else (*kernel[: axis - 2], *kernel[axis - 1 :])

    def _unit_axis(self, path: str) -> int | None:
        return self.unit_axes.get(located[0]) if (located := self.locate(path)) else None

    def stacked(self, path: str) -> tuple[str, ...]:
        """The segments that a module stacks; empty if the layout has no such module."""
        return self.modules[located[0]] if (located := self.locate(path)) else ()

    def locate(self, path: str, sep: str = ".") -> tuple[Template, Index] | None:
        """The template and block numbers of a module path, or None if the layout has no such module."""
        before, number, after = parted(path)
        everywhere = self._matching(f"{before}{ANY}{after}", sep) if number else None
        if everywhere is None or ANY in path or int(number) == self.last:  # it may be a word of a template: `net.2`
            return self._matching(path, sep)
        template, index = everywhere
        if len(index) == 1:
            return template, ((index[0][0], int(number)),)
        return template, tuple(sorted((hole, int(number) if other == int(ANY) else other) for hole, other in index))

    def _matching(self, path: str, sep: str) -> tuple[Template, Index] | None:
        if (path, sep) not in self._located:
            if len(self._located) >= _MOST_LOCATED:
                self._located.clear()
            if not self._patterns:
                for template in self.modules:
                    self._patterns.setdefault(pattern(template.text), []).append(template)
            matches = [(one, one.match(path, sep)) for one in self._patterns.get(pattern(path), ())]
            located = [(one, index) for one, index in matches if index is not None]
            if len(located) > 1:
                located.sort(key=lambda hit: hit[0].for_last != any(number == self.last for _, number in hit[1]))
            self._located[path, sep] = located[0] if located else None
        return self._located[path, sep]

    def called(self, path: str) -> str:
        """The module whose name, joined by underscores, is the same as that of this path; the path if there is none."""
        located = None if self.locate(path) else self.locate(path.replace(".", "_"), "_")
        return located[0].fill(located[1]) if located else path

    def last_block(self, keys: Iterable[str]) -> int | None:
        """The highest number of the blocks whose last one is built differently, in the keys of a whole model."""
        starts = tuple(f"{one.container}." for one in self.modules if one.for_last)
        words = [key[len(start) :].partition(".")[0] for key in keys for start in starts if key.startswith(start)]
        return max((int(word) for word in words if _is_number(word)), default=None)

    def needless(self, key: str) -> str | None:
        """Why a key of a base checkpoint may be dropped; None if it may not."""
        return next((reason for template, reason in self.dropped.items() if template.match(key) is not None), None)


@dataclass(frozen=True, slots=True)
class Variant:
    """One released base model, as far as shapes can tell it from its siblings."""

    name: str
    repo: str
    blocks: int
    """The number of its blocks; of the most numerous kind, if it has several."""
    shapes: Mapping[str, tuple[int, ...]]
    """Base weight shapes of the segments that differ between variants."""
    absent: frozenset[str]
    """Segments that this variant does not have, and parameters of them: `ff_in.bias`."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The entries of its Diffusers config.json that differ from the architecture's."""
    pipeline: str = ""
    """Diffusers' class that runs it; empty if not known."""
    depths: Mapping[str, int] = field(default_factory=dict)
    """Segment -> the number of blocks of its kind; empty if all kinds have `blocks`."""

    def depth(self, segment: str) -> int:
        """The number of blocks that have this segment."""
        return self.depths.get(segment, self.blocks)

    def objection(self, segment: str, index: Index, shape: tuple[int, ...]) -> str | None:
        """Why a weight of this segment, block and shape cannot belong to the variant; None if it can."""
        if segment in self.absent:
            return f"{self.name} has no {segment}"
        if any(number >= self.depth(segment) for _, number in index):
            return f"{self.name} has {self.depth(segment)} blocks"
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
    bare: tuple[str, ...] = ()
    """Those of them that take no adapters: the transformer does."""
    words: tuple[str, ...] = ()
    """What its name begins with in headers (modelspec.architecture), in small letters and digits alone."""
    component: str = COMPONENT
    """Diffusers' name of the model in a pipeline: a folder, and the prefix of keys and entries."""
    kernels: Mapping[str, int] = field(default_factory=dict)
    """Segment that is a convolution -> how many dimensions its kernel has, where no variant gives its shape."""
    _ended: dict[int, Architecture] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def transformer(self) -> str:
        """Diffusers' class of the model; empty if not known."""
        return str(self.config.get("_class_name", ""))

    def transformer_of(self, variant: Variant | None) -> str:
        """Diffusers' class of a variant; the architecture's if None."""
        return str((variant.config if variant else {}).get("_class_name", self.transformer))

    @property
    def transformers(self) -> frozenset[str]:
        """Diffusers' classes of the model in all of its variants."""
        return frozenset({self.transformer, *map(self.transformer_of, self.variants)} - {""})

    def block_kinds(self) -> dict[str, str]:
        """Segment -> its kind of numbered blocks, by the layout that places most segments in the fewest kinds."""
        kinds = [
            {s: template.container for template, stack in layout.modules.items() if template.holes for s in stack}
            for layout in self.layouts.values()
        ]
        return min(kinds, key=lambda table: (-len(table), len(set(table.values()))), default={})

    def solved(self, variant: Variant) -> Solution:
        """The sizes of a released variant."""
        shapes = [Sized(s, s, *(*shape, 1)[:2]) for s, shape in variant.shapes.items()]
        return solve(shapes, self.dimensions)

    def named(self, segments: tuple[str, ...], layout: str = "") -> tuple[str, ...]:
        """Names of the parameters of a module that stacks these segments, in a layout."""
        if not segments:
            return ()
        own = self.layouts[layout].parameters if layout else {}
        return own.get(segments[0]) or self.parameters.get(segments[0], WEIGHT_AND_BIAS)

    @property
    def in_blocks(self) -> set[str]:
        """The segments in numbered blocks."""
        return {s for layout in self.layouts.values() for t, stack in layout.modules.items() if t.holes for s in stack}

    def ending(self, last: int | None) -> Architecture:
        """The architecture of a model whose last block has this number; None if it is not known."""
        if last is None:
            return self
        if last not in self._ended:
            layouts = {name: replace(layout, last=last) for name, layout in self.layouts.items()}
            self._ended[last] = replace(self, layouts=layouts)
        return self._ended[last]

    def lacks(self, segments: tuple[str, ...], index: Index) -> bool:
        """Whether the block of this number has not got these segments: in a layout, their name is another module's."""
        every = (
            (layout, one) for layout in self.layouts.values() for one, s in layout.modules.items() if s == segments
        )
        found = ((one, layout.locate(one.fill(index))) for layout, one in every if one.holes and not one.for_last)
        return any(hit is not None and hit[0] != one for one, hit in found)

    def like(self, shape: tuple[int, ...]) -> tuple[Variant, ...]:
        """The variants whose `told_by` weight has this shape after dim 0, of any width."""
        return tuple(v for v in self.variants if v.shapes.get(self.told_by, shape)[1:] == shape[1:])

    def kernel_sizes(self, segments: tuple[str, ...]) -> set[int]:
        """How many dimensions the kernels of these segments have; empty if no variant has a convolution there."""
        sizes = {len(variant.shapes.get(segment, ())) for variant in self.variants for segment in segments}
        return {size - 2 for size in sizes if size > 2} | {self.kernels[s] for s in segments if s in self.kernels}

    def sizes(self, segments: tuple[str, ...], rows: int) -> list[int] | None:
        """Rows of each stacked segment if the module has `rows` in total; None if they cannot be divided."""
        ratios = [self.segments[segment] for segment in segments]
        return None if rows % sum(ratios) else [rows // sum(ratios) * ratio for ratio in ratios]
