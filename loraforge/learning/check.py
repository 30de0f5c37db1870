"""`layouts check`: whether a layout moves one checkpoint to another bit for bit, and which sizes pairs share."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from loraforge.base.route import route
from loraforge.document import Document
from loraforge.errors import LoraforgeError, names_in
from loraforge.learning.checkpoint import Checkpoint, equal, open_checkpoint
from loraforge.names.bijection import parse
from loraforge.names.catalog import joined, known_without
from loraforge.names.check import check as check_file
from loraforge.names.dimensions import Sized, solve
from loraforge.names.layout import Architecture, Layout, Variant
from loraforge.plugin.schema_check import look
from loraforge.text import command, listed

ANY = Variant("", "", 0, {}, frozenset())
"""A model that has every segment."""
_MOST = 16
"""The largest number of times a size is called a multiple of another: heads of a size would be more."""
Sizes = tuple[int, ...]
"""Rows or inputs in each of the pairs."""


@dataclass(frozen=True, slots=True)
class Checked(Document):
    """What held."""

    schema: ClassVar[str] = "layout-check"
    pairs: Sequence[Mapping[str, Any]]
    """For each: `a`, `b`, the number of `tensors` that were compared, and the keys that no layout has (`unknown`)."""
    dimensions: Mapping[str, tuple[str, str]]
    """Segment -> rows and inputs in symbols, where several pairs agree; empty after one pair."""

    def lines(self) -> list[str]:
        """The report for a terminal; the sizes as TOML."""
        lines, right = list[str](), "tensors, each where the layout has it, bit for bit"
        for pair in self.pairs:
            lines += [f"{pair['a']} -> {pair['b']}: {pair['tensors']} {right}"]
            lines += [f"  not known  {key}" for key in pair["unknown"]]
        sizes = [f'{segment} = ["{rows}", "{inputs}"]' for segment, (rows, inputs) in self.dimensions.items()]
        return [*lines, *(["", "[dimensions]", *sizes] if sizes else [])]


def check(file: Path, pairs: Sequence[tuple[Path, Path]]) -> Checked:
    """Check a data file with layouts against pairs of checkpoints. Raises LoraforgeError where it does not hold."""
    _, problems = check_file(file)
    data, _ = look(file)
    if problems or "layouts" not in data:
        raise LoraforgeError(f"{file} is no sound layout.", command("loraforge", "plugins", "check", file))
    arch = parse(joined(data, known_without(file.name)), file.name)
    table, measured = list[dict[str, Any]](), list[dict[str, tuple[int, int]]]()
    for a, b in pairs:
        shapes, count, unknown = _moved(arch, open_checkpoint(a), open_checkpoint(b))
        table.append({"a": str(a), "b": str(b), "tensors": count, "unknown": unknown})
        if odd := solve([Sized(segment, segment, *shape) for segment, shape in shapes.items()], arch.dimensions).odd:
            text = f"{a}: dimensions of {file} do not allow {listed([one.said() for one in odd], 5)}."
            raise LoraforgeError(text, names_in(a))
        measured.append(shapes)
    return Checked(table, proposed(measured))


def _moved(arch: Architecture, a: Checkpoint, b: Checkpoint) -> tuple[dict[str, tuple[int, int]], int, list[str]]:
    """Segment -> rows and inputs; how many tensors of B were compared; and the keys that no layout knows."""

    def known(side: Checkpoint, layout: Layout) -> set[str]:
        return {key for p, keys in side.modules.items() if layout.locate(p) for key in keys if side.holds_numbers(key)}

    of_a, of_b = (max(arch.layouts.values(), key=lambda one: len(known(side, one))).name for side in (a, b))
    if of_a == of_b:
        text = f"{a.path} and {b.path} do not have the names of two layouts of {arch.title}."
        raise LoraforgeError(text, command("loraforge", "layouts"))
    arch = arch.ending(arch.layouts[of_a].last_block(a.names))
    layouts = ((a, arch.layouts[of_a]), (b, arch.layouts[of_b]))
    sides = [(side, layout, known(side, layout)) for side, layout in layouts]
    pieces, _ = route({key: a.info(key).shape for key in sides[0][2]}, arch, of_a, of_b, [ANY])
    moved = {k for k, ps in pieces.items() if k in sides[1][2] or not all(sides[0][1].needless(p.key) for p in ps)}
    wrong = [key for key in moved | sides[1][2] if key not in b.names or not equal(a, pieces.get(key, ()), b, key)]
    unknown = [(s, key) for s, layout, keys in sides for key in s.names if key not in keys and not layout.needless(key)]
    faults = {
        f"{b.path} is not what {arch.title}'s layouts make of {a.path}, in": wrong,
        f"{arch.title} has no module for": [k for side, k in unknown if side.is_matrix(k) and k.endswith(".weight")],
    }
    for text, keys in faults.items():
        if keys:
            learn = command("loraforge", "layouts", "learn", a.path, b.path, "-o", "other.toml")
            raise LoraforgeError(f"{text} {listed(sorted(keys), 5)}.", learn)
    every = defaultdict[str, set[tuple[int, int]]](set)
    for path, stack in ((path, sides[1][1].stacked(path)) for path in b.modules):
        for key in [k for k in {f"{path}.weight"} & sides[1][2] if b.names[k].endswith(k)]:  # a factor B has no inputs
            shape = (*b.info(key).shape, 1)
            for segment, rows in zip(stack, arch.sizes(stack, shape[0]) or (), strict=True):
                every[segment].add((rows, shape[1]))
    sizes = {segment: next(iter(every[segment])) for segment in arch.segments if len(every[segment]) == 1}
    return sizes, len(moved), list(dict.fromkeys(key for _, key in unknown))


def proposed(measured: Sequence[Mapping[str, tuple[int, int]]]) -> dict[str, tuple[str, str]]:
    """Rows and inputs of the segments in symbols, of those whose rows and whose inputs differ in each of the pairs."""
    shared = [s for s in (measured[0] if len(measured) > 1 else ()) if all(s in shapes for shapes in measured)]
    both: dict[str, list[Sizes]] = {s: [*zip(*(shapes[s] for shapes in measured), strict=True)] for s in shared}
    both = {s: pair for s, pair in both.items() if all(len({*sizes}) == len(measured) for sizes in pair)}
    every, terms = sorted({sizes for pair in both.values() for sizes in pair}), dict[Sizes, tuple[int, Sizes]]()
    for sizes in every:
        units = ((sizes[0] // unit[0], unit) for unit in every)
        terms[sizes] = next((n, u) for n, u in units if n <= _MOST and sizes == tuple(n * size for size in u))
    counts = Counter(terms[sizes][1] for pair in both.values() for sizes in pair)
    symbols = {unit: name for (unit, _), name in zip(counts.most_common(), "dabcefghijklmnop", strict=False)}
    texts = {sizes: f"{times} {symbols[unit]}".removeprefix("1 ") for sizes, (times, unit) in terms.items()}
    return {segment: (texts[rows], texts[inputs]) for segment, (rows, inputs) in both.items()}
