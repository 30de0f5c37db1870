"""In which measured versions of which programs a file acts as in training, and what it does in the other ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loraforge.programs.outlook import Outlook, odd_ranks
from loraforge.programs.table import runtimes


@dataclass(frozen=True, slots=True)
class Program:
    """What the written file does in one program, according to programs.toml."""

    runtime: str
    """Its row in the table."""
    program: str
    title: str
    versions: tuple[str, ...]
    """The versions in which files of this kind were run; empty if only its source code was read."""
    otherwise: str
    """How the effect differs from that of training; empty if it does not."""
    instead: str
    """What to change in the program."""


def joined(programs: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Programs with their versions in order, each once: `Diffusers 0.40.0, 0.42.1; PEFT 0.21.2`."""
    versions: dict[str, dict[str, None]] = {}
    for name, known in programs:
        versions.setdefault(name, {}).update(dict.fromkeys(known))

    def order(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split(".")) if version.replace(".", "").isdecimal() else ()

    return "; ".join(f"{name} {', '.join(sorted(known, key=order))}" for name, known in versions.items())


def strength_text(ratios: Sequence[float]) -> str:
    """Sorted ratios of the applied scale to that of training as text: `64x too weak`; empty if all are 1, or none."""
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
    """How the effect of a file in a program differs from that of training; empty if it does not."""
    if own.raises:
        return f"stops at {own.raises}"
    if not own.applied:
        return "does nothing"
    if own.applied < own.modules:
        return f"applies {own.applied} of {own.modules} modules"
    return own.otherwise or strength_text(own.ratios)


def programs(outlooks: Sequence[Outlook], to: str) -> tuple[Program, ...]:
    """The programs of the format `to`, and those of other formats that were run and apply the file as in training."""
    result = []
    for own in outlooks:
        otherwise, of_format = does(own), runtimes()[own.runtime].format == to
        if of_format or (own.run and not otherwise):
            versions = tuple(run.version for run in own.run)
            result.append(Program(own.runtime, own.program, own.title, versions, otherwise, own.instead))
    return tuple(result)


def acting(outlooks: Sequence[Outlook]) -> str:
    """The measured versions in which a file acts as in training: `Diffusers 0.40.0, 0.42.1; PEFT 0.21.2`, or ""."""
    return joined(
        (own.program, [run.version for run in own.run])
        for own in outlooks
        if own.run and own.ratios == (1.0,) and not does(own)
    )


def mixed_ranks(to: str, ranks: Mapping[str, int]) -> str:
    """The programs of a format that silently apply a file of these ranks at a wrong scale, with commas between them."""
    return ", ".join(
        program.title
        for program in runtimes().values()
        if program.format == to and not program.always and not program.sees and odd_ranks(program, ranks)
    )
