"""`layouts check`: whether a layout moves one checkpoint to another bit for bit, and which sizes pairs share."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from loraforge.base.route import route
from loraforge.document import Document
from loraforge.errors import LoraforgeError
from loraforge.learning.checkpoint import Checkpoint, equal, open_checkpoint
from loraforge.names.bijection import parse
from loraforge.names.catalog import known_without, joined
from loraforge.names.check import check as check_file
from loraforge.names.dimensions import Sized, solve
from loraforge.names.layout import Architecture, Layout, Variant
from loraforge.plugin.schema_check import look
from loraforge.text import command, listed

Shapes = Mapping[str, tuple[int, int]]
"""Segment -> rows and inputs of its weight."""


@dataclass(frozen=True, slots=True)
class Checked(Document):
    """What held."""

    schema: ClassVar[str] = "layout-check"
    pairs: Sequence[Mapping[str, object]]
    """For each: `a`, `b`, the number of `tensors` that were compared, and the keys that no layout has (`unknown`)."""
    dimensions: Mapping[str, tuple[str, str]]
    """Segment -> rows and inputs in symbols, where several pairs agree; empty after one pair."""

    def lines(self) -> list[str]:
        """The report for a terminal; the sizes as TOML."""
        lines = list[str]()
        for pair in self.pairs:
            lines.append(
                f"{pair['a']} -> {pair['b']}: {pair['tensors']} tensors are where the layout has them, in each bit"
            )
            lines += [f"  not known  {key}" for key in (*pair["unknown"],)]
        sizes = [f'{segment} = ["{rows}", "{inputs}"]' for segment, (rows, inputs) in self.dimensions.items()]
        return [*lines, *(["", "[dimensions]", *sizes] if sizes else [])]


def check(file: Path, pairs: Sequence[tuple[Path, Path]]) -> Checked:
    """Check a data file with layouts against pairs of checkpoints. Raises LoraforgeError where it does not hold."""
    _, problems = check_file(file)
    data, _ = look(file)
    if problems or "layouts" not in data:
        raise LoraforgeError(f"{file} is no sound layout.", command("loraforge", "plugins", "check", file))
    arch = parse(joined(data, known_without(file.name)), file.name)
    table, measured = list[dict[str, object]](), list[Shapes]()
    for paths in pairs:
        shapes, count, unknown = _moved(arch, *map(open_checkpoint, paths))
        table.append({"a": str(paths[0]), "b": str(paths[1]), "tensors": count, "unknown": unknown})
        if odd := solve([Sized(s, s, *shape) for s, shape in shapes.items()], arch.dimensions).odd:
            text = f"{paths[0]}: dimensions of {file} do not allow {listed([one.said() for one in odd], 5)}."
            raise LoraforgeError(text, command("loraforge", "inspect", "--skeleton", paths[0]))
        measured.append(shapes)
    return Checked(table, proposed(measured))


def _moved(arch: Architecture, a: Checkpoint, b: Checkpoint) -> tuple[Shapes, int, list[str]]:
    """The sizes of the segments, how many tensors of B were compared, and the keys that no layout knows."""
    layouts = [max(arch.layouts.values(), key=lambda one, side=side: len(_known(one, side))) for side in (a, b)]
    arch = arch.ending(layouts[0].last_block(a.names))
    of_a, of_b = (arch.layouts[layout.name] for layout in layouts)
    learn = command("loraforge", "layouts", "learn", a.path, b.path, "-o", "other.toml")
    if of_a is of_b:
        text = f"{a.path} and {b.path} do not have the names of two layouts of {arch.title}."
        raise LoraforgeError(text, command("loraforge", "layouts"))
    known_a, known_b = _known(of_a, a), _known(of_b, b)
    pieces, _ = route({key: a.info(key).shape for key in known_a}, arch, of_a.name, of_b.name, [_ANY])
    moved = {key for key, parts in pieces.items() if key in known_b or not all(of_a.needless(p.key) for p in parts)}
    right = {key for key in moved & known_b if equal(a, pieces[key], b, key)}
    if wrong := sorted((moved | known_b) - right):
        text = f"{b.path} is not what {arch.title}'s layouts make of {a.path}, in {listed(wrong, 5)}."
        raise LoraforgeError(text, learn)
    unknown = [(a, key) for key in a.names if key not in known_a and not of_a.needless(key)]
    unknown += [(b, key) for key in b.names if key not in known_b and not of_b.needless(key)]
    if matrices := [key for side, key in unknown if key.endswith(".weight") and side.is_matrix(key)]:
        text = f"{arch.title} has no module for {listed(matrices, 5)}: its layouts do not hold for this size."
        raise LoraforgeError(text, learn)
    return _sizes(arch, of_b, b), len(moved), [key for _, key in unknown]


_ANY = Variant("", "", 0, {}, frozenset())
"""A model that has every segment."""


def _known(layout: Layout, side: Checkpoint) -> set[str]:
    keys = (key for path, keys in side.modules.items() if layout.locate(path) for key in keys)
    return {key for key in keys if side.holds_numbers(key)}


def _sizes(arch: Architecture, layout: Layout, side: Checkpoint) -> Shapes:
    """Rows and inputs of each segment's weight, if those are the same in all blocks."""
    every = defaultdict[str, set[tuple[int, int]]](set)
    for key in side.names:
        path, _, name = key.rpartition(".")
        stack, shape = layout.stacked(path), side.info(key).shape
        if stack and name == "weight" and len(shape) > 1:
            for segment, rows in zip(stack, arch.sizes(stack, shape[0]) or (), strict=True):
                every[segment].add((rows, shape[1]))
    return {segment: next(iter(every[segment])) for segment in arch.segments if len(every[segment]) == 1}


_MOST = 16
"""The largest number of times a size is called a multiple of another: heads of a size would be more."""


def proposed(measured: Sequence[Shapes]) -> dict[str, tuple[str, str]]:
    """Rows and inputs of the segments in symbols, of those whose rows and whose inputs differ in each of the pairs."""
    shared = [s for s in (measured[0] if len(measured) > 1 else ()) if all(s in shapes for shapes in measured)]
    vectors = {s: [*zip(*(shapes[s] for shapes in measured), strict=True)] for s in shared}
    vectors = {s: both for s, both in vectors.items() if all(len({*sizes}) == len(measured) for sizes in both)}
    sizes = sorted({sizes for both in vectors.values() for sizes in both})
    terms = {one: next((_times(one, unit), unit) for unit in sizes if _times(one, unit)) for one in sizes}
    counts = Counter(terms[one][1] for both in vectors.values() for one in both)
    symbols = {unit: name for (unit, _), name in zip(counts.most_common(), "dabcefghijklmnop", strict=False)}
    texts = {one: f"{times} {symbols[unit]}".removeprefix("1 ") for one, (times, unit) in terms.items()}
    return {segment: (texts[rows], texts[inputs]) for segment, (rows, inputs) in vectors.items()}


def _times(one: Sequence[int], unit: Sequence[int]) -> int:
    """How many times one is the other, alike in each pair; 0 if it is not."""
    times = one[0] // unit[0]
    return times if times <= _MOST and all(x == times * u for x, u in zip(one, unit, strict=True)) else 0
