"""The verdict on an adapter, from its numbers, its scale and the program that loads it; the remedies; the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any

from loraforge.adapter.adapter import Adapter
from loraforge.algebra.lora import CEILING
from loraforge.diagnosis.factors import Numbers
from loraforge.document import Document, rows
from loraforge.errors import Try, adding
from loraforge.facts.setting_rules import Finding
from loraforge.format.registry import formats
from loraforge.programs.outlook import Outlook, strength_text
from loraforge.programs.table import runtime
from loraforge.scale.rule import Statement
from loraforge.text import fraction, listed


class Kind(Enum):
    """What an adapter does, compared with training, or why nobody can tell; the values are for readers."""

    AS_TRAINED = "acts as trained"
    IN_PART = "acts in part"
    NOTHING = "does nothing"
    OTHER_STRENGTH = "another strength"
    WRONG_BASE = "wrong base"
    BROKEN = "broken file"
    NO_PROGRAM = "cannot tell"
    SCALE_AMBIGUOUS = "cannot tell ({choices})"
    SCALE_ASSUMED = "cannot tell ({scales})"
    TWO_READINGS = "cannot tell (two scales)"
    COARSE = "cannot tell (float16 is too coarse for it)"
    NO_TENSORS = "cannot tell (without the tensors)"
    NO_ARCHITECTURE = "cannot tell (which architecture)"
    BASE_UNREAD = "cannot tell (whether it fits the base)"
    MORE_THAN_FACTORS = "cannot tell (it is more than A and B)"
    FOREIGN_FORMAT = "cannot tell (at what scale)"
    IN_PARTS = "cannot tell (it lies in parts)"
    IN_MODEL = "cannot tell (it lies in a model)"


SCALE_UNKNOWN = (Kind.SCALE_AMBIGUOUS, Kind.SCALE_ASSUMED)
"""Nothing is wrong with the file, but nobody recorded at what scale it was trained."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an adapter does, and why."""

    kind: Kind
    why: str
    """One sentence for a reader; no code decides by it."""
    numbers: tuple[float, ...] = ()
    """The scales it may have been trained at, or the ratios of the applied scale to the scale of training."""

    @property
    def text(self) -> str:
        """The verdict in few words."""
        if self.kind is Kind.OTHER_STRENGTH:
            return strength_text(self.numbers)
        choices = " or ".join(f"{scale:g}" for scale in self.numbers)
        return str(self.kind.value).format(choices=choices, scales=listed_scales(self.numbers))


@dataclass(frozen=True, slots=True)
class Diagnosis(Document):
    """What is wrong, or that nothing is. schemas/doctor.schema.json explains the fields."""

    schema = "doctor"

    path: str
    judgement: Verdict
    facts: tuple[tuple[str, str], ...]
    outlooks: tuple[Outlook, ...]
    notes: tuple[str, ...]
    remedies: tuple[Try, ...]
    """The best first."""
    sizes: dict[str, float] = field(default_factory=dict)
    errors: tuple[dict[str, Any], ...] = ()
    settings: tuple[Finding, ...] = ()

    @property
    def verdict(self) -> str:
        """The verdict in few words."""
        return self.judgement.text

    @property
    def why(self) -> str:
        """The sentence behind the verdict."""
        return self.judgement.why

    @property
    def fix(self) -> tuple[str, ...]:
        """Commands that repair it, the best first."""
        return tuple(map(str, self.remedies))

    @property
    def healthy(self) -> bool:
        """Whether the adapter acts as trained, and no setting is wrong."""
        return self.judgement.kind is Kind.AS_TRAINED and all(finding.severity != "wrong" for finding in self.settings)

    def to_dict(self) -> dict[str, Any]:
        return {
            "schema": f"loraforge.{self.schema}.v1",
            "path": self.path,
            "verdict": self.verdict,
            "why": self.why,
            "facts": dict(self.facts),
            "outlooks": [outlook.to_dict() for outlook in self.outlooks],
            "notes": self.notes,
            "fix": self.fix,
            "sizes": self.sizes,
            "errors": self.errors,
            "settings": [asdict(finding) for finding in self.settings],
        }

    def lines(self) -> list[str]:
        """The verdict first, for a terminal; the table of runtimes is printed by the command."""
        table = [*self.facts, *(("fix" if not n else "", line) for n, line in enumerate(self.fix))]
        for entry in self.errors:
            perhaps = "" if entry["sure"] else "perhaps "
            table += [(entry["id"], f"{perhaps}{entry['title']}: {entry['cause']}"), ("", entry["fix"])]
            table += [("", entry["fix_command"])] if entry["fix_command"] else []
        table += [(f.severity, _beside(f)) for f in self.settings if f.severity != "fine"]
        fine = [f.key for f in self.settings if f.severity == "fine"]
        table += [("fine", ", ".join(fine))] if fine else []
        but = ", but not with these settings" if self.judgement.kind is Kind.AS_TRAINED and not self.healthy else ""
        return [f"{self.verdict}{but}: {self.why}", *rows(table)]


def _beside(finding: Finding) -> str:
    given = "not given" if finding.given is None else finding.given
    word = "not" if finding.severity == "wrong" else "there"
    expected = "" if finding.wanted is None else f", {word} {finding.wanted}"
    return f"{finding.key} {given}{expected}: {finding.consequence}"


def judge(adapter: Adapter, measured: Numbers | None, own: Outlook | None, misfit: str, unshown: str = "") -> Verdict:
    """The verdict. `measured`: None if only the header is known. `unshown`: why the architecture is unknown."""
    total = len(adapter.modules)
    if measured and measured.broken:
        why = "the training diverged, or a conversion to float16 overflowed"
        return Verdict(Kind.BROKEN, f"NaN or infinity in {named(measured.broken)}: {why}")
    if misfit:
        return Verdict(Kind.WRONG_BASE, misfit)
    if measured and len(measured.dead) == total:
        why = "A or B of every module is zero: it was never trained, or the wrong tensors were saved"
        return Verdict(Kind.NOTHING, why)
    if own and own.raises:
        return Verdict(Kind.NOTHING, f"{own.title} stops at {own.raises}")
    if own and not own.applied:
        passed = f" ({listed(list(own.lost), 3)} are passed over)" if own.lost else ""
        return Verdict(Kind.NOTHING, f"{own.title} finds none of the {total} modules{passed}")
    applies = f"; {own.title} applies {listed_scales(own.scalings)}" if own else ""
    if adapter.scale.provenance == "ambiguous":
        scales = (r.scale for r in adapter.candidates if r.scale is not None and "--as-in" not in r.names)
        different = {f"{scale:g}": scale for scale in scales}
        return Verdict(Kind.SCALE_AMBIGUOUS, f"{adapter.scale.source}{applies}", tuple(different.values()))
    if adapter.scale.program or adapter.scale.provenance == "assumed":
        what = "its scale is not that of training" if adapter.scale.program else "the scale is assumed"
        return Verdict(Kind.SCALE_ASSUMED, f"{what}: {adapter.scale.source}{applies}", adapter.scalings)
    if own and own.ratios not in ((), (1.0,)):
        why = f"{own.title} applies {listed_scales(own.scalings)}, and training used {listed_scales(adapter.scalings)}"
        return Verdict(Kind.OTHER_STRENGTH, why, own.ratios)
    if own and own.otherwise:
        return Verdict(Kind.IN_PART, f"{own.title} applies {own.otherwise}")
    if own and own.applied < total:
        return Verdict(Kind.IN_PART, f"{own.title} applies {own.applied} of the {total} modules")
    if measured and measured.dead:
        return Verdict(Kind.IN_PART, f"A or B of {named(measured.dead)} is zero")
    if measured and measured.coarse:
        why = f"numbers so small that float16 rounds off more than {CEILING:.0%} of the update"
        remedy = "unless they were trained in it; convert the original to --dtype fp32 or bf16"
        return Verdict(Kind.COARSE, f"{named(measured.coarse)}: {why}, {remedy}")
    if unshown:
        return Verdict(Kind.NO_ARCHITECTURE, unshown)
    if own is None:
        return Verdict(Kind.NO_PROGRAM, "no program is known that loads this format as it is")
    if measured is None:
        why = f"by its header {own.title} applies all {total} modules at the scale of training"
        return Verdict(Kind.NO_TENSORS, f"{why}; whether their numbers are whole needs the tensors")
    return Verdict(Kind.AS_TRAINED, f"{own.title} applies all {total} modules at the scale of training")


def remedies(
    path: str | Path, adapter: Adapter, verdict: Verdict, own: Outlook | None, stated: Statement, *, dead: bool
) -> Iterator[Try | str]:
    """The commands to type, and as texts what no command does, such as a change in the program."""
    if verdict.kind is Kind.AS_TRAINED:
        return
    again = ("loraforge", "doctor", path)
    if verdict.kind is Kind.NO_TENSORS:
        yield adding("--fetch").added_to(*again)
    elif verdict.kind is Kind.NO_ARCHITECTURE:
        yield adding("--architecture", adapter.architecture).added_to(*again)
    elif verdict.kind in (Kind.BROKEN, Kind.WRONG_BASE, Kind.COARSE) or dead:
        return  # no conversion mends what was never trained
    elif verdict.kind is Kind.SCALE_AMBIGUOUS:
        yield from (remedy.added_to(*again) for remedy in adapter.candidates)
    elif verdict.kind is Kind.SCALE_ASSUMED and adapter.scale.provenance == "assumed":
        scaling = adapter.modules[next(iter(adapter.modules))][0].scaling
        over = ("--override-scale",) if adapter.scale.program else ()  # the file may record another
        yield adding("--trained-scale", f"{scaling:.12g}", *over, why="if training used that").added_to(*again)
    else:
        yield from _conversion(path, adapter, own, stated)


def _conversion(
    path: str | Path, adapter: Adapter, own: Outlook | None, stated: Statement
) -> Iterator[Try | str]:  # fmt: skip
    """The conversion that makes a file that the program applies as trained, and what to change in the program."""
    to = runtime(own.runtime).format if own else "diffusers"
    kept = adapter.source.format if adapter.source else to
    if own and own.applied == own.modules and "alpha" in runtime(own.runtime).sees and own.ratios and kept in formats():
        to = kept  # the program knows these names, and reads the scale that is written with them
    scale = stated.options if adapter.scale.provenance == "given" else ()
    known, line = formats().get(to), adding("--to", to, *scale).added_to("loraforge", "convert", path)
    if known is None or known.writer is None:
        yield f"a package adds the format {to}, for `loraforge convert --to {to}`: docs/plugins.md says which"
    elif to == "sat" and adapter.dora:
        yield "SAT has no DoRA: `loraforge fuse` puts it into the weights of SAT's base"
    else:
        yield replace(line, why="it asks for SAT's checkpoint of the base") if to == "sat" else line
    if own and own.instead and (own.raises or own.ratios not in ((), (1.0,))):
        yield f"{own.title}: {own.instead}"


def listed_scales(scalings: Sequence[float]) -> str:
    """Scales, for a reader."""
    return ", ".join(map(fraction, scalings)) or "nothing"


def named(modules: Sequence[str]) -> str:
    """A list of modules for a reader, cut after three."""
    return f"{len(modules)} modules ({listed(list(modules), 3)})" if len(modules) > 1 else "".join(modules)
