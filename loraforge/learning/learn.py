"""`layouts learn`: two checkpoints of the same weights, whose names differ, become a layout as data."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import ClassVar

from loraforge.document import Document, rows
from loraforge.errors import FormatError, LoraforgeError, OutputError, adding, names_in
from loraforge.files.destination import destination, replacing
from loraforge.learning.checkpoint import Checkpoint, open_checkpoint
from loraforge.learning.layout_file import as_toml, named, new_architecture, new_layout, stacks
from loraforge.learning.matching import match
from loraforge.learning.templates import Entry, Left, entries, modules_of, slots
from loraforge.names.catalog import architecture, known_without
from loraforge.names.check import check
from loraforge.names.layout import Architecture, Layout
from loraforge.text import command, listed


@dataclass(frozen=True, slots=True)
class Learned(Document):
    """What was written, and what a reader is to look at."""

    schema: ClassVar[str] = "learn"
    path: str
    adds: Sequence[str]
    templates: Mapping[str, Sequence[str]]
    """Each template of A -> what it stacks of B."""
    remarks: Sequence[tuple[str, str]]
    """What is stacked, swapped, literal (of one block alone), or dropped."""
    left_out: Mapping[str, Sequence[str]]
    """Why -> modules, with `*` for their numbers."""

    def lines(self) -> list[str]:
        next_line = f"{command('loraforge', 'layouts', 'check', Path(self.path))} A2 B2   # of another size"
        title = f"{self.path}: {', '.join(self.adds)}; {len(self.templates)} templates"
        left_out = [("left out", f"{path}: {why}") for why, paths in self.left_out.items() for path in paths]
        return [title, *rows([*self.remarks, *left_out, ("next", next_line)])]


def learn(
    a: Path,
    b: Path,
    out: Path,
    *,
    onto: str | None = None,
    layouts: tuple[str, str] = ("original", "diffusers"),
    drop: Sequence[tuple[str, str]] = (),
    force: bool = False,
) -> Learned:
    """Write the TOML of an architecture with both layouts, called as the file; with `onto`, that of A's layout alone.

    Raises LoraforgeError, and writes nothing, if a tensor of one side is not on the other and not dropped (`drop`:
    patterns of keys, and reasons), or if the file would not be sound; OutputError if `out` exists, unless `force`.
    """
    if out.suffix != ".toml":
        raise OutputError(f"{out}: a layout is a TOML file.", adding("-o", out.with_suffix(".toml")))
    target = destination(out.parent, "", (out.name,), (), force=force)
    name = onto or out.stem.lower().replace("-", "_")
    if not onto and (name in known_without(out.name) or not re.fullmatch("[a-z][a-z0-9_]*", name)):
        text = f"{name!r} is an architecture already, or no name of one: small letters, digits and underscores."
        raise FormatError(
            text, adding("-o", out.with_name("my_model.toml")), adding("--onto", name, why="add a layout")
        )
    if onto and layouts[0] in architecture(onto).layouts:
        text = f"{onto} has a layout {layouts[0]} already."
        raise FormatError(text, adding("--names", f"mine,{layouts[1]}"))
    sides = open_checkpoint(a, drop), open_checkpoint(b, drop)
    for pattern, _ in drop:
        if not any(fnmatchcase(key, pattern) for side in sides for key in side.dropped):
            raise LoraforgeError(f"--drop {pattern}: neither {a} nor {b} has such a tensor.", names_in(a))
    left_out, dropped = Left(list), [side.dropped for side in sides]
    if onto:
        layout = _known(architecture(onto), sides[1])
        every = [*_in_segments(_entries(*sides, left_out), architecture(onto), layout, left_out)]
        tables = new_layout(architecture(onto), layout.name, every, layouts[0], dropped[0])
    else:
        every = [*named(_entries(*sides, left_out))]
        tables = new_architecture(name, every, layouts, dropped)
    brief = {why: _short(paths) for why, paths in left_out.items()}
    reasons = [f"{why}: {', '.join(paths)}" for why, paths in brief.items()]
    if not every:
        raise LoraforgeError(f"Of {a} and {b} nothing is left. {'; '.join(reasons)}", names_in(a))
    made = f"Learned by `{command('loraforge', 'layouts', 'learn', a.name, b.name)}` from the numbers of both."
    comment = "".join(f"# {line}\n" for line in (made, *(f"Left out, {reason}" for reason in reasons)))
    text = f"{comment}{as_toml(tables)}\n"
    with replacing(target, len(text), force=force) as folder:
        (folder / out.name).write_text(text, "utf-8")
        adds, problems = check(folder / out.name)
        if problems:
            raise LoraforgeError(f"What was learned is no sound layout: {listed([*map(str, problems)], 5)}")
    without = [("dropped", key) for key in _short([key for keys in dropped for key in keys])]
    templates = {text: [_where(*part) for part in parts] for text, parts in stacks(every).items()}
    return Learned(str(out), adds, templates, [*_remarks(every), *without], brief)


def _remarks(every: Sequence[Entry]) -> Iterator[tuple[str, str]]:
    for text, parts in stacks(every).items():
        order = [(entry.b, n) for entry, n in parts]
        swapped = any(x[0] == y[0] and x[1] > y[1] for k, y in enumerate(order) for x in order[:k])
        if len(parts) > 1:
            yield "swapped" if swapped else "stacked", f"{text} = {', '.join(_where(*part) for part in parts)}"
    yield from (("stacked", f"{entry.b} = {', '.join(entry.a)}") for entry in every if len({*entry.a}) > 1)
    yield from (("literal", f"{entry.b}: only this block is built so") for entry in every if entry.literal)
    if not any("{" in entry.b for entry in every):
        yield "literal", "no number counts blocks: give checkpoints of three blocks or more"


def _where(entry: Entry, n: int) -> str:
    return f"{entry.b} [{n + 1}/{len(entry.a)}]" if len(entry.a) > 1 else entry.b


def _entries(a: Checkpoint, b: Checkpoint, left_out: Left) -> list[Entry]:
    """Raises LoraforgeError that lists the tensors of one side that the other has not got."""
    for side in (a, b):
        if side.others:
            left_out["no part of the model, or of the adapter"] += side.others
    runs, *lacking = match(a, b)
    texts, words = list[str](), list[str]()
    for keys, side, other in zip(map(_short, lacking), (b, a), (a, b), strict=True):
        texts += [f"{side.path} has rows that {other.path} has not got, in {listed(keys, 5)}"] if keys else []
        words += [word for key in keys for word in ("--drop", f"{key}=not in {other.path.name}")]
    if not runs:
        probe = command("loraforge", "layouts", "probe", a.path, "-o", "probe.safetensors")
        text = f"{a.path} and {b.path} share no row that stands in one place alone: run the converter on a probe."
        raise LoraforgeError(text, probe)
    if texts:
        text = f"{'; '.join(texts)}. They are computed, transposed, or of other weights."
        raise LoraforgeError(text, adding(*words, why="where nothing is lost without them"))
    return entries(modules_of(runs, a, b, left_out), [*b.modules, *a.modules])


def _known(arch: Architecture, side: Checkpoint) -> Layout:
    """The layout that has most of the modules of a side. Raises LoraforgeError if none has half of them."""
    counts = {name: sum(map(bool, map(layout.locate, side.modules))) for name, layout in arch.layouts.items()}
    layout = arch.layouts[max(counts, key=lambda name: counts[name])]
    if 2 * counts[layout.name] <= len(side.modules):
        text = f"{side.path} does not have the names of {arch.title}. Give the checkpoint with known names second."
        raise LoraforgeError(text, command("loraforge", "layouts", arch.name))
    return replace(layout, last=layout.last_block(side.names))


def _in_segments(every: Sequence[Entry], arch: Architecture, layout: Layout, left_out: Left) -> Iterator[Entry]:
    """The entries cut where segments end, their block numbers called as in the layout of B.

    Raises LoraforgeError if a segment would be cut in two, or the layout has other block numbers.
    """
    for entry in every:
        located, stack = layout.locate(entry.modules[0].b), layout.stacked(entry.modules[0].b)
        sizes = arch.sizes(stack, sum(stop - start for start, stop, _ in entry.spans)) if stack else None
        if located is None or sizes is None:
            left_out[f"{arch.title} has no such module"] += [module.b for module in entry.modules]
            continue
        tokens = zip(entry.b.split("."), located[0].tokens(), strict=True)
        holes = {mine: theirs for mine, theirs in tokens if mine != theirs}
        spans, templates, ahead = list[tuple[int, int, int]](), list[str](), list(sizes)
        for (start, stop, count), template in zip(entry.spans, entry.a, strict=True):
            while start < stop:
                spans.append((start, start := start + ahead.pop(0), count))
                templates.append(".".join(holes.get(token, token) for token in template.split(".")))
            if start > stop or any({mine[0], theirs[0]} != {"{"} for mine, theirs in holes.items()):
                text = f"{located[0].text} of {arch.title} is not {entry.b}, made of {listed([*entry.a])}"
                raise LoraforgeError(f"{text}: give checkpoints of three blocks, or change {arch.name}'s TOML.")
        yield entry._replace(b=located[0].text, a=tuple(templates), spans=tuple(spans), segments=stack)


def _short(paths: Sequence[str]) -> list[str]:
    """The paths with `*` for their numbers, each once."""
    return list(dict.fromkeys(slots(path, "*")[0] for path in paths))
