"""Say whether two adapters make the same update, or what the real loader makes of one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Unpack

from loraforge.adapter.adapter import Adapter
from loraforge.adapter.drop import meets
from loraforge.adapter.proof import Comparison, compare, pair_up
from loraforge.conversion.read import read_file
from loraforge.conversion.real_loader import load_back
from loraforge.conversion.report import scale_text
from loraforge.document import Document
from loraforge.errors import ConversionError, LoraforgeError, adding
from loraforge.files.digest import scan
from loraforge.files.mapped import steady
from loraforge.files.tensorfile import TensorFile
from loraforge.format.locate import locate
from loraforge.format.not_an_adapter import not_an_adapter
from loraforge.hub.folder import base_folder
from loraforge.names.layout import COMPONENTS
from loraforge.scale.origin import own_entry
from loraforge.scale.rule import Choice, Scale
from loraforge.scale.stated import Stated, choice_of, takes_stated
from loraforge.text import command, fraction, listed, told

Loader = Literal["diffusers", "peft"]

SHOWN = 10
"""Modules that are listed for a terminal; --json has all."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two adapters, and the scale at which it was read."""

    path: str
    format: str
    scale: Scale
    scalings: tuple[float, ...]
    """The distinct scales of its modules, sorted."""

    def line(self) -> str:
        """The same, for a terminal."""
        if not self.scalings:
            return f"{self.path} ({self.format}): not one module"
        at = ", ".join(map(fraction, self.scalings))
        unknown = self.scale.provenance == "ambiguous"
        known = "nothing is recorded: taken for 1" if unknown else scale_text(self.scale, self.scalings)
        return f"{self.path} ({self.format}), read at scale {at} ({known})"


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of rows of the base model, as both adapters update it."""

    module: str
    rows: int
    rows_off: int
    """Rows that differ by more than rounding."""
    worst: float
    """The largest difference of a row, as a share of the row's size in A."""
    strength: float | None
    """B's update as a multiple of A's; None if A's is zero."""


@dataclass(frozen=True, slots=True)
class Verification(Document):
    """The result of a comparison. schemas/verify.schema.json explains the fields."""

    schema = "verify"

    a: Side
    b: Side
    same: bool
    strength: float | None
    segments: tuple[Segment, ...]
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The verdict for a terminal, and the worst modules if the two differ."""
        out = [f"A  {self.a.line()}", f"B  {self.b.line()}"]
        rows = sum(segment.rows for segment in self.segments)
        worst = max((segment.worst for segment in self.segments), default=0.0)
        if self.same:
            count = f"{len(self.segments)} segments, {rows} rows"
            return [*out, f"same update in {count}; the worst row is off by {worst:.1e} of its size"]
        off = sorted((s for s in self.segments if s.rows_off), key=lambda s: -s.worst)
        where = f": {len(off)} of {len(self.segments)} segments, {sum(s.rows_off for s in off)} of {rows} rows"
        out.append(f"different{where if off else ''}")
        if self.strength is not None:
            number = f"{self.strength:.3f}" if abs(self.strength) >= 0.1 else fraction(self.strength)
            out.append(f"  B is {number} x A, everywhere: the same adapter at another scale")
        for name, paths in (("A", self.only_in_a), ("B", self.only_in_b)):
            if paths:
                out.append(f"  only {name} adapts {len(paths)} modules: {listed(list(paths), 4)}")
        if self.strength is not None or not off:
            return out
        width = max(len(s.module) for s in off[:SHOWN])
        out.append(f"  {'module, the worst first':<{width}}  rows off    worst row   B / A")
        for s in off[:SHOWN]:
            strength = "-" if s.strength is None else f"{s.strength:.4g}"
            out.append(f"  {s.module:<{width}}  {f'{s.rows_off} of {s.rows}':<11} {s.worst:<11.1e} {strength}")
        return [*out, f"  and {len(off) - SHOWN} more (--json has all)"] if len(off) > SHOWN else out


@takes_stated
def verify(
    a: str | Path,
    b: str | Path | None = None,
    *,
    in_: Loader | None = None,
    base: str | Path | None = None,
    drop: Sequence[str] = (),
    **stated: Unpack[Stated],
) -> Verification:
    """Compare the updates of two adapters of any formats and layouts, row by row, in float64.

    With `in_` instead of `b`: compare the adapter with what the real loader has in its layers after loading
    it (`base`: a folder with the transformer's config.json). A scale that is neither recorded nor stated is taken for
    1.0. A stated scale applies to the adapter that records none. If both record one, it applies to A, and is refused
    if it differs; `as_in` applies to A. Rounding to the coarser element type is no difference, up to 1 % of a module.
    Raises a LoraforgeError when one of them cannot be read.
    """
    if (b is None) == (in_ is None):
        raise LoraforgeError("give two adapters, or one and the loader to try it in.", adding("--in", "diffusers"))
    if base and not in_:
        raise LoraforgeError("--base goes with --in, for one adapter: it is the model the loader fills.")
    choice = choice_of(stated)
    plain = Choice(architecture=choice.architecture, compare=True)
    asked = () if choice == plain or choice.stated.as_in else (a, b)
    unknown = [source for source in asked if source is not None and _unknown(source)]
    sides = {side: [p for p in drop if meets(locate(side, None, Choice())[2], p)] for side in (a, b) if side and drop}
    if lost := [pattern for pattern in drop if not any(pattern in matching for matching in sides.values())]:
        _read(a, plain, lost)
    one, notes, file, name = _read(a, choice if a in unknown or not unknown else plain, sides.get(a, ()))
    if b is not None:
        other, more, other_file, other_name = _read(b, choice if b in unknown else plain, sides.get(b, ()))
        scan(other_file, other.keys)
        one, other = _of_one_model(a, one, b, other)
    else:
        if file.spread or file.dropped:
            line = command("loraforge", "convert", a, "--to", str(in_), *[w for p in drop for w in ("--drop", p)])
            what = "some of it is to be left out" if file.dropped else "it lies in several files"
            raise LoraforgeError(f"{in_} would read {a} as it is, and {what}: convert it first.", line)
        other = load_back(file.path, one, str(in_), base_folder(base, only=COMPONENTS) if base else None)
        more, other_file, other_name = (), file, f"as {in_} loads it"
    scan(file, one.keys)
    pairs, (only_a, only_b) = pair_up(one, other)
    with steady(*file.maps, *other_file.maps):
        results = compare(pairs, lambda _: True, file, other_file)
    same = not (only_a or only_b) and all(comparison.holds for comparison in results)
    return Verification(
        a=Side(told(file.path), name, one.scale, one.scalings),
        b=Side(told(other_file.path), other_name, other.scale, other.scalings),
        same=same,
        strength=None if same or only_a or only_b else _strength(results),
        segments=tuple(
            Segment(c.module, c.rows, c.off, c.error, None if math.isnan(c.strength) else c.strength) for c in results
        ),
        only_in_a=tuple(only_a),
        only_in_b=tuple(only_b),
        notes=(*notes, *more),
    )


def _of_one_model(a: str | Path, one: Adapter, b: str | Path, other: Adapter) -> tuple[Adapter, Adapter]:
    """Both adapters as of one architecture that each may be of. Raises ConversionError if there is none."""
    if one.architecture == other.architecture:
        return one, other
    if layout := other.rivals.get(one.architecture):
        return one, replace(other, architecture=one.architecture, layout=layout)
    if layout := one.rivals.get(other.architecture):
        return replace(one, architecture=other.architecture, layout=layout), other
    text = f"{a} is an adapter of {one.model.title} and {b} one of {other.model.title}: they cannot be compared."
    raise ConversionError(text, *(command("loraforge", "inspect", path) for path in (a, b)))


def _unknown(source: str | Path) -> bool:
    """Whether the adapter records no scale; what cannot be read is refused later."""
    form, _, file = locate(source, None, Choice())
    try:
        adapter = form.read(file, Choice(compare=True)) if form else None
    except LoraforgeError:
        return True
    known = adapter is not None and bool(own_entry(adapter.metadata))
    return not known and (adapter is None or adapter.scale.provenance in ("ambiguous", "assumed"))


def _read(source: str | Path, choice: Choice, drop: Sequence[str]) -> tuple[Adapter, tuple[str, ...], TensorFile, str]:
    choice = replace(choice, drop=tuple(drop))
    form, located, file = locate(source, None, choice)
    if form is None:
        raise not_an_adapter(file)
    adapter = read_file(form, file, choice)
    return adapter, (*located.notes, *adapter.notes), file, form.name


def _strength(comparisons: Sequence[Comparison]) -> float | None:
    """The one factor between the two; None if they differ in more than a factor."""
    known = [c for c in comparisons if c.strength == c.strength]
    if not known or any(c.off and math.isnan(c.strength) for c in comparisons):
        return None  # where A does nothing, no number makes it B
    middle = sorted(c.strength for c in known)[len(known) // 2]
    one = all(c.scaled <= c.allowed and abs(c.strength - middle) <= c.allowed * abs(middle) for c in known)
    return middle if one else None
