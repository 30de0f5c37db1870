"""The report of a conversion: printed for people, and as JSON for programs (schemas/convert.schema.json)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loraforge.adapter.adapter import Step
from loraforge.adapter.differences import counted, described
from loraforge.document import Document, rows
from loraforge.names.catalog import architecture, architectures
from loraforge.programs.outlook import Program, joined
from loraforge.scale.rule import Scale
from loraforge.text import fraction, megabytes


@dataclass(frozen=True, slots=True)
class Report(Document):
    """Everything a user may ask about one conversion. schemas/convert.schema.json explains the fields."""

    schema = "convert"

    source: dict[str, Any]
    output: dict[str, Any]
    architecture: str
    evidence: str | None
    scale: Scale
    scalings: tuple[float, ...]
    stored: str
    steps: tuple[Step, ...]
    unfetched: int
    worst_error: float | None
    fits: tuple[str, ...]
    base_model: str | None
    others: dict[str, int]
    dropped_modules: tuple[str, ...]
    dropped_metadata: tuple[str, ...]
    notes: tuple[str, ...]
    load: str
    not_with: str
    provided: str
    programs: tuple[Program, ...] = ()
    rivals: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report for a terminal: what was done, then the strength, how to load it, which base it fits."""
        kinds = Counter(step.kind for step in self.steps)
        whole = [step for step in self.steps if not step.rank[1]]
        sources = {name for step in self.steps if step.rank[1] for name in step.sources}
        done = [f"{len(sources)} modules -> {len(self.steps) - len(whole)}"]
        done += [described(counted(step.module for step in whole))] if whole else []
        if kinds["exact"]:
            done.append(f"{'all' if kinds['exact'] == len(self.steps) else kinds['exact']} exact")
        if kinds["rounded"]:
            worst = max(self.steps, key=lambda step: step.error)
            done.append(f"{kinds['rounded']} rounded, at worst {worst.error:.1e} of the update ({worst.module})")
        changed = Counter(step.rank for step in self.steps if step.kind == "rank")
        done += [f"rank {before} -> {after}: {count}" for (before, after), count in sorted(changed.items())]
        if self.others:
            done.append("left alone: " + ", ".join(f"{count} tensors of {name}" for name, count in self.others.items()))
        if self.unfetched:
            done = [f"steps and rounding: needs the tensors ({megabytes(self.unfetched)}); --fetch gets them"]
        out = [f"{self.source['path']} -> {self.output['path']}", "  " + "; ".join(done)]
        out += [f"  dropped {what}" for what in self.dropped_modules]
        if self.dropped_metadata:
            out.append(f"  not carried over, as they describe the old tensors: {', '.join(self.dropped_metadata)}")
        table = [] if self.evidence else [("model", unshown(self.architecture, titles(self.rivals)))]
        table += [("strength", self.strength()), *self.seen(), ("load", self.load), ("not with", self.not_with)]
        return [*out, *rows([*table, ("base", self.base())])]

    def seen(self) -> list[tuple[str, str]]:
        """The second claim: what the programs that were run do with such a file. Never a constant of a format."""
        if self.worst_error is None and not self.programs:  # of a dry run, where only the file itself would tell
            return []
        does = "acts as trained" if self.evidence and self.scale.provenance in ("recorded", "given") else "acts so"
        as_it_is = [program for program in self.programs if not program.otherwise]
        where = joined((program.program, program.versions) for program in as_it_is if program.versions)
        changed = [(p, "" if p.versions else "; read, not run") for p in self.programs if p.otherwise]
        bad = "; ".join(f"{program.title} ({program.otherwise}{run})" for program, run in changed)
        unseen = "; ".join(program.title for program in as_it_is if not program.versions)
        seen = f"1.0 {does} in {where}" if where else "no program yet: none was seen to apply such a file as it is"
        return [("run in", seen), *((label, text) for label, text in (("not in", bad), ("not run", unseen)) if text)]

    def strength(self) -> str:
        """The first claim, which is ours to prove, no wider than its evidence."""
        scaling = ", ".join(fraction(value) for value in self.scalings)
        known = self.scale.provenance in ("recorded", "given")
        sure = "1.0" if self.evidence else f"1.0 is right if it is {either([self.architecture, *self.rivals])}"
        claim = (sure if known else "1.0 is right if training used this scale") + self.provided
        if self.scale.program:
            claim = f"1.0 keeps it as it acts in {self.scale.program}, whatever training used{self.provided}"
        worst = max((step.error for step in self.steps), default=0.0)
        same = f"same update as the source{f', to {worst:.0e}' if worst else ''} (compared),"
        proof = "not written, not compared: source" if self.worst_error is None else same
        return f"{claim}; {proof} read at scale {scaling} ({scale_text(self.scale, self.scalings)})"

    def base(self) -> str:
        """The base model as stated, or as far as the shapes determine it."""
        return self.base_model or base_text(self.fits, self.architecture, self.rivals)


def scale_text(scale: Scale, scalings: Sequence[float]) -> str:
    """How well a scale is known and who says so; for a file written by loraforge, the scale of its source too."""
    text = f"{scale.provenance}: {scale.source}"
    if not scale.trained:
        return text
    if tuple(scalings) == scale.trained:
        return f"{text}; loraforge wrote it into the file"
    return f"trained at {', '.join(map(fraction, scale.trained))}, {text}; loraforge folded that into the tensors"


def titles(names: Sequence[str]) -> list[str]:
    """The titles of these architectures."""
    return [architectures().index.titles[name] for name in names]


def either(names: Sequence[str]) -> str:
    """The titles of these architectures, as a choice."""
    return " or ".join(titles(names))


def base_text(fits: Sequence[str], family: str, rivals: Sequence[str] = ()) -> str:
    """What the shapes say about the base model, and what they cannot say. `rivals`: of which models it may be too."""
    if rivals:
        which = f"{either([family, *rivals])}: nothing shows which (block numbers: unchecked)"
        return f"{which}; use the base model of its training run"
    if not fits:
        arch = architecture(family)
        why = "has these shapes (block numbers: unchecked)" if arch.variants else "is known: its data lists no variants"
        none = f"no released {arch.title} {why}"
        return f"{none}; use the base model of its training run"
    if len(fits) == 1:
        return f"{fits[0]}, the only one with these shapes"
    return f"{', '.join(fits)}: the shapes cannot tell which; use the one of its training run"


def unshown(family: str, others: Sequence[str] = ()) -> str:
    """The sentence for an adapter without evidence. `others`: other models with modules of these names."""
    shared = f" (and those of {', '.join(others)})" if others else ""
    settles = f"--architecture {family} settles it"
    return f"the names fit {architecture(family).title}{shared}; nothing shows that it is one ({settles})"
