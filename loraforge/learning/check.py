"""`layouts check`: whether a layout moves one checkpoint to another bit for bit, and which sizes pairs share."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loraforge.base.route import route
from loraforge.errors import LoraforgeError
from loraforge.learning.checkpoint import Checkpoint, equal, open_checkpoint
from loraforge.names.bijection import parse
from loraforge.names.catalog import architecture_tables, joined
from loraforge.names.check import check as check_file
from loraforge.names.dimensions import Sized, solve
from loraforge.names.layout import Architecture, Layout, Variant
from loraforge.plugin.schema_check import look
from loraforge.text import command, listed

Shapes = Mapping[str, tuple[int, int]]
"""Segment -> rows and inputs of its weight."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What held."""

    pairs: tuple[str, ...]
    """A line for each, and for what no layout knows."""
    dimensions: Mapping[str, tuple[str, str]]
    """Segment -> rows and inputs in symbols, where several pairs agree; empty after one pair."""

    def lines(self) -> list[str]:
        """The report for a terminal; the sizes as TOML."""
        sizes = [f'{segment} = ["{rows}", "{inputs}"]' for segment, (rows, inputs) in self.dimensions.items()]
        return [*self.pairs, *(["", "[dimensions]", *sizes] if sizes else [])]


def check(file: Path, pairs: Sequence[tuple[Path, Path]]) -> Checked:
    """Check a data file with layouts against pairs of checkpoints. Raises LoraforgeError where it does not hold."""
    _, problems = check_file(file)
    data, _ = look(file)
    if problems or "layouts" not in data:
        raise LoraforgeError(f"{file} is no sound layout.", command("loraforge", "plugins", "check", file))
    arch = parse(joined(data, architecture_tables(file.name)), file.name)
    lines, measured = list[str](), list[Shapes]()
    for a, b in pairs:
        sides = [open_checkpoint(path) for path in (a, b)]
        shapes, count, rest = _moved(arch, *sides)
        lines.append(f"{a} -> {b}: {count} tensors are where {file.name} has them, in each bit")
        lines += [f"  not known  {key}" for key in rest]
        sized = [Sized(segment, segment, *sizes) for segment, sizes in shapes.items()]
        if odd := solve(sized, arch.dimensions).odd:
            text = f"{a}: dimensions of {file} do not allow {listed([one.said() for one in odd], 5)}."
            raise LoraforgeError(text, command("loraforge", "inspect", "--skeleton", a))
        measured.append(shapes)
    return Checked(tuple(lines), proposed(measured))


def _moved(arch: Architecture, a: Checkpoint, b: Checkpoint) -> tuple[Shapes, int, list[str]]:
    """The sizes of the segments, how many tensors of B were compared, and the keys that no layout knows."""
    of_a, of_b = _layout(arch, a), _layout(arch, b)
    if of_a is of_b:
        text = f"{a.path} and {b.path} do not have the names of two layouts of {arch.title}."
        raise LoraforgeError(text, command("loraforge", "layouts"))
    known_a, known_b = _known(of_a, a), _known(of_b, b)
    shapes = {key: a.info(key).shape for key in known_a}
    pieces, _ = route(shapes, arch, of_a.name, of_b.name, [Variant("", "", 0, {}, frozenset())])
    carried = {
        key: parts
        for key, parts in pieces.items()
        if key in known_b or not all(of_a.needless(part.key) for part in parts)
    }
    wrong = [key for key, parts in carried.items() if key not in known_b or not equal(a, parts, b, key)]
    if wrong := sorted({*wrong, *(key for key in known_b if key not in carried)}):
        text = f"{b.path} is not what {arch.title}'s layouts make of {a.path}, in {listed(wrong, 5)}."
        raise LoraforgeError(text, command("loraforge", "layouts", "learn", a.path, b.path, "-o", "other.toml"))
    rest = [
        (side, key)
        for side, layout, known in ((a, of_a, known_a), (b, of_b, known_b))
        for key in side.keys
        if key not in known and not layout.needless(key)
    ]
    if unknown := [key for side, key in rest if key.endswith(".weight") and side.is_matrix(key)]:
        text = f"{arch.title} has no module for {listed(unknown, 5)}: its layouts do not hold for this size."
        raise LoraforgeError(text, command("loraforge", "layouts", "learn", a.path, b.path, "-o", "other.toml"))
    return _sizes(arch, of_b, b), len(carried), [key for _, key in rest]


def _layout(arch: Architecture, side: Checkpoint) -> Layout:
    return max(arch.layouts.values(), key=lambda layout: len(_known(layout, side)))


def _known(layout: Layout, side: Checkpoint) -> dict[str, None]:
    keys = (key for path, keys in side.modules.items() if layout.locate(path) for key in keys)
    return dict.fromkeys(key for key in keys if side.holds_numbers(key))


def _sizes(arch: Architecture, layout: Layout, side: Checkpoint) -> Shapes:
    """Rows and inputs of each segment's weight, if those are the same in all blocks."""
    every = defaultdict[str, set[tuple[int, int]]](set)
    for path in side.modules:
        if f"{path}.weight" in side.modules[path] and side.is_matrix(f"{path}.weight"):
            stack, shape = layout.stacked(path), side.info(f"{path}.weight").shape
            for segment, rows in zip(stack, arch.sizes(stack, shape[0]) or () if stack else (), strict=True):
                every[segment].add((rows, shape[1]))
    return {segment: next(iter(every[segment])) for segment in arch.segments if len(every[segment]) == 1}


_MOST = 16
"""The largest number of times a size is called a multiple of another: heads of a size would be more."""


def proposed(measured: Sequence[Shapes]) -> dict[str, tuple[str, str]]:
    """Rows and inputs of the segments in symbols, of those whose rows and whose inputs differ in each of the pairs."""
    if len(measured) < 2:
        return {}
    vectors = {
        segment: _vectors(segment, measured)
        for segment in measured[0]
        if all(segment in shapes for shapes in measured)
        if all(len({*vector}) == len(measured) for vector in _vectors(segment, measured))
    }
    sizes = sorted({vector for both in vectors.values() for vector in both})
    units = {vector: next((u, k) for u in sizes if (k := _times(vector, u))) for vector in sizes}
    counts = Counter(units[vector][0] for both in vectors.values() for vector in both)
    symbols = {unit: name for (unit, _), name in zip(counts.most_common(), "dabcefghijklmnop", strict=False)}

    def text(vector: Vector) -> str:
        unit, times = units[vector]
        return f"{times} {symbols[unit]}" if times > 1 else symbols[unit]

    return {segment: (text(rows), text(inputs)) for segment, (rows, inputs) in vectors.items()}


Vector = tuple[int, ...]
"""One size in each of the pairs."""


def _vectors(segment: str, measured: Sequence[Shapes]) -> tuple[Vector, Vector]:
    return tuple(shapes[segment][0] for shapes in measured), tuple(shapes[segment][1] for shapes in measured)


def _times(vector: Vector, unit: Vector) -> int:
    """How many times one is the other, alike in each pair; 0 if it is not."""
    times = vector[0] // unit[0]
    return times if times <= _MOST and all(x == times * u for x, u in zip(vector, unit, strict=True)) else 0
