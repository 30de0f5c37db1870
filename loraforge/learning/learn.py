"""`layouts learn`: two checkpoints of the same weights, whose names differ, become a layout as data."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from loraforge.errors import LoraforgeError, OutputError, Try, adding
from loraforge.files.destination import Destination, replacing
from loraforge.learning.checkpoint import Checkpoint, open_checkpoint
from loraforge.learning.layout_file import Part, as_toml, named, new_architecture, new_layout, stacks
from loraforge.learning.matching import Matches, match
from loraforge.learning.modules import Left, cut, modules_of, renamed, whole_stacks
from loraforge.learning.templates import Entry, Module, entries
from loraforge.names.catalog import architecture
from loraforge.names.check import check
from loraforge.names.layout import Architecture, Layout
from loraforge.text import command, listed


@dataclass(frozen=True, slots=True)
class Learned:
    """What was written, and what a reader is to look at."""

    path: Path
    adds: tuple[str, ...]
    entries: tuple[Entry, ...]
    left_out: Left
    dropped: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for a terminal."""
        modules = sum(len(entry.modules) for entry in self.entries)
        rows = [f"{self.path}: {', '.join(self.adds)}; {modules} modules in {len(self.entries)} templates"]
        for template, parts in stacks(self.entries).items():
            if len(parts) > 1:
                label = "swapped" if _swapped(parts) else "stacked"
                rows.append(f"  {label:<9} {template} = {', '.join(part.where for part in parts)}")
        rows += [f"  literal   {entry.b.text}: no template explains its number" for entry in self.entries if entry.odd]
        rows += [f"  left out  {path}: {why}" for why, paths in self.left_out.items() for path in short(paths)]
        rows += [f"  dropped   {key}" for key in short(self.dropped)]
        if not any(entry.b.holes for entry in self.entries):
            rows.append("  literal   no number counts blocks: give checkpoints of two blocks or more")
        return [*rows, f"  next      {command('loraforge', 'layouts', 'check', self.path)} A2 B2   # of another size"]


def short(paths: Sequence[str]) -> list[str]:
    """The paths with `*` for their numbers, each once."""
    return [*dict.fromkeys(re.sub(r"(?<![^.])[0-9]+(?![^.])", "*", path) for path in paths)]


def _swapped(parts: Sequence[Part]) -> bool:
    """Whether pieces of one module of B stand in another order in A."""
    orders = defaultdict[str, list[int]](list)
    for part in parts:
        orders[part.entry.b.text].append(part.n)
    return any(order != sorted(order) for order in orders.values())


def learn(
    a: Path,
    b: Path,
    out: Path,
    *,
    onto: str | None = None,
    name: str | None = None,
    layouts: tuple[str, str] = ("original", "diffusers"),
    drop: Sequence[tuple[str, str]] = (),
    force: bool = False,
) -> Learned:
    """Write the TOML of an architecture with the layouts of A and B; `onto` a known one, the layout that is new there.

    Raises LoraforgeError, and writes nothing, if a tensor of one side is not on the other and not dropped (`drop`:
    patterns of keys, and reasons), or if the file would not be sound; OutputError if `out` exists, unless `force`.
    """
    if out.suffix != ".toml":
        raise OutputError(f"{out}: a layout is a TOML file.", adding("-o", out.with_suffix(".toml")))
    if out.exists() and not force:
        raise OutputError(f"{out} exists.", adding("--force", why="replace it"))
    name = onto or _identifier(name or out.stem)
    sides = open_checkpoint(a, drop), open_checkpoint(b, drop)
    for pattern, _ in drop:
        if not any(fnmatchcase(key, pattern) for side in sides for key in side.dropped):
            raise LoraforgeError(f"--drop {pattern}: neither {a} nor {b} has such a tensor.", _skeleton(a))
    left_out = Left(list)
    if onto:
        every, tables = _onto(architecture(onto), *sides, layouts, left_out)
    else:
        every = tuple(named(entries(whole_stacks(_modules(*sides, left_out), left_out))))
        tables = new_architecture(name, every, layouts, [side.dropped for side in sides])
    if not every:
        why = "; ".join(f"{listed(short(paths), 3)} {why}" for why, paths in left_out.items())
        raise LoraforgeError(f"Of {a} and {b} nothing is left that a layout can say: {why}.", _skeleton(a))
    text = as_toml(tables, _comment(*sides, left_out))
    with replacing(Destination(out.parent, (out.name,)), len(text), force=force) as folder:
        (folder / out.name).write_text(text, "utf-8")
        adds, problems = check(folder / out.name)
        if problems:
            raise LoraforgeError(f"What was learned is no sound layout: {listed([*map(str, problems)], 5)}")
    return Learned(out, tuple(adds), every, left_out, tuple(key for side in sides for key in side.dropped))


def _onto(
    arch: Architecture, a: Checkpoint, b: Checkpoint, layouts: tuple[str, str], left_out: Left
) -> tuple[tuple[Entry, ...], dict[str, Any]]:
    """The layout of the side that an architecture does not know, in its segments."""
    known, layout = _known(arch, b, a)
    new, name = (a, layouts[0]) if known is b else (b, layouts[1])
    modules = cut(_modules(new, known, left_out), arch, layout, left_out)
    every = tuple(renamed(entry, layout) for entry in entries(whole_stacks(modules, left_out)))
    return every, new_layout(arch, every, name, new.dropped)


def _modules(a: Checkpoint, b: Checkpoint, left_out: Left) -> list[Module]:
    for side in (a, b):
        if side.others:
            left_out[f"as its names do not begin with {side.prefix}"] += side.others
    matches = match(a, b)
    _refuse(matches, a, b)
    return modules_of(matches, a, b, left_out)


def _identifier(text: str) -> str:
    name = text.lower().replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        text = f"{text!r} is no name of an architecture: small letters, digits and underscores."
        raise LoraforgeError(text, adding("--architecture", re.sub(r"^[^a-z]+|[^a-z0-9_]", "", name) or "learned"))
    return name


def _comment(a: Checkpoint, b: Checkpoint, left_out: Left) -> list[str]:
    return [
        f"Learned by `{command('loraforge', 'layouts', 'learn', a.path.name, b.path.name)}` from the numbers of both.",
        *(f"sha256 of the names, types and shapes of {side.path.name}: {side.digest()}" for side in (a, b)),
        *(f"Left out, {why}: {', '.join(short(paths))}" for why, paths in left_out.items()),
        "The last table, [format], is a guess: prefixes and suffixes are those that most programs use.",
    ]


def _known(arch: Architecture, *sides: Checkpoint) -> tuple[Checkpoint, Layout]:
    """The side that an architecture knows, and the layout it has. Raises LoraforgeError if it knows neither."""
    best, score = None, 0.5
    for side in sides:
        paths = {key.rpartition(".")[0] for key in side.keys}
        for layout in arch.layouts.values():
            share = sum(layout.locate(path) is not None for path in paths) / max(1, len(paths))
            best, score = ((side, layout), share) if share > score else (best, score)
    if best is None:
        names = " and ".join(str(side.path) for side in sides)
        text = f"Neither of {names} has the names of {arch.title}, to which the others could be added."
        raise LoraforgeError(text, command("loraforge", "layouts", arch.name))
    return best


def _refuse(matches: Matches, a: Checkpoint, b: Checkpoint) -> None:
    """Raises LoraforgeError that lists the tensors of one side that the other has not got."""
    if not matches.runs:
        more = "" if matches.missing else " that stands in one place alone"
        text = f"{a.path} and {b.path} share no row of numbers{more}: give the same weights under two names."
        probe = command("loraforge", "layouts", "probe", a.path, "-o", "probe.safetensors")
        raise LoraforgeError(text, Try(probe, "with rows that differ; then run the converter on it"))
    texts, words = list[str](), list[str]()
    for keys, side, other in ((matches.missing, b, a), (matches.unused, a, b)):
        patterns = short(sorted(keys))
        texts += [f"{side.path} has rows that {other.path} has not got, in {listed(patterns, 5)}"] if keys else []
        words += [word for p in patterns for word in ("--drop", f"{p}=not in {other.path.name}")]
    if texts:
        text = "; ".join(texts) + ". They are computed, transposed, or of other weights."
        raise LoraforgeError(text, adding(*words, why="where nothing is lost without them"))


def _skeleton(path: Path) -> str:
    return command("loraforge", "inspect", "--skeleton", path)
