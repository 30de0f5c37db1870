"""What was measured: in which versions of which programs a file acts, and what it does in the others of its format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loraforge.programs.outlook import Outlook, odd_ranks
from loraforge.programs.table import runtimes


@dataclass(frozen=True, slots=True)
class Program:
    """What the written file does in one program, as the table of programs has it (programs.toml)."""

    runtime: str
    program: str
    title: str
    versions: tuple[str, ...]
    """In which it was run on files of this kind; empty where its source was only read."""
    otherwise: str
    """What it does other than the source did; empty where it does the same."""
    instead: str
    """What to change in the program."""


def joined(found: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Programs and their versions, in order: `Diffusers 0.40.0, 0.42.1; PEFT 0.21.2`."""
    versions: dict[str, dict[str, None]] = {}
    for name, known in found:
        versions.setdefault(name, {}).update(dict.fromkeys(known))

    def order(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split(".")) if version.replace(".", "").isdecimal() else ()

    return "; ".join(f"{name} {', '.join(sorted(known, key=order))}" for name, known in versions.items())


def strength_text(ratios: Sequence[float]) -> str:
    """`64x too weak`: sorted ratios of the scale applied to that of training, for a reader; empty if there is none."""
    if tuple(ratios) in ((), (1.0,)):
        return ""
    low, high = ratios[0], ratios[-1]
    if low < 0:
        return "cannot tell (the two scales differ in sign)"
    if high <= 1:
        return f"{1 / low:.3g}x too weak" if low == high else f"{1 / high:.3g}x to {1 / low:.3g}x too weak"
    if low == high:
        return f"{high:.3g}x too strong"
    return f"{1 / low:.3g}x too weak to {high:.3g}x too strong" if low < 1 else f"{low:.3g}x to {high:.3g}x too strong"


def does(own: Outlook) -> str:
    """What else than in training a file does in a program; empty where it does the same."""
    if own.raises:
        return f"stops at {own.raises}"
    if not own.applied:
        return "does nothing"
    part = f"applies {own.applied} of {own.modules} modules" if own.applied < own.modules else ""
    return part or own.otherwise or strength_text(own.ratios)


def programs(outlooks: Sequence[Outlook], to: str) -> tuple[Program, ...]:
    """The programs that were run and apply a written file as its source, and the others of the format `to`."""
    found = []
    for own in outlooks:
        what, mine = does(own), runtimes()[own.runtime].format == to
        if mine or (own.run and not what):
            found.append(
                Program(own.runtime, own.program, own.title, tuple(run.version for run in own.run), what, own.instead)
            )
    return tuple(found)


def acting(outlooks: Sequence[Outlook]) -> str:
    """`Diffusers 0.40.0, 0.42.1; PEFT 0.21.2`: where it was run and acts as in training; empty where nowhere."""
    return joined(
        (own.program, [run.version for run in own.run])
        for own in outlooks
        if own.run and own.ratios == (1.0,) and not does(own)
    )


def mixed_ranks(to: str, ranks: Mapping[str, int]) -> str:
    """The programs of a format that take a file of these ranks for another scale, without a word; empty where none."""
    return ", ".join(
        program.title
        for program in runtimes().values()
        if program.format == to and not program.always and not program.sees and odd_ranks(program, ranks)
    )
