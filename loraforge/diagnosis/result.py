"""TODO."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from loraforge.diagnosis.verdict import AS_TRAINED
from loraforge.document import Document, rows
from loraforge.facts.setting_rules import Finding
from loraforge.programs.outlook import Outlook


@dataclass(frozen=True, slots=True)
class Diagnosis(Document):
    """What is wrong, or that nothing is. Its JSON follows schemas/doctor.schema.json."""

    schema = "doctor"

    path: str
    verdict: str
    why: str
    facts: tuple[tuple[str, str], ...]
    """Label -> what was found."""
    outlooks: tuple[Outlook, ...]
    notes: tuple[str, ...]
    fix: tuple[str, ...]
    """Commands that mend it, the best first."""
    sizes: dict[str, float] = field(default_factory=dict)
    """Module -> |D|, the Frobenius norm of its update at the scale it was read at."""
    errors: tuple[dict[str, Any], ...] = ()
    """What the failure texts mean that the user pasted, the likeliest first: entries of schemas/explain.schema.json."""
    settings: tuple[Finding, ...] = ()
    """What the user runs it with, beside what the model, or a known program, runs with."""

    @property
    def healthy(self) -> bool:
        """Whether the adapter acts as trained, and no setting is wrong."""
        return self.verdict == AS_TRAINED and all(finding.severity != "wrong" for finding in self.settings)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document. Its shape is a promise: see the schema."""
        return {**Document.to_dict(self), "facts": dict(self.facts)}

    def lines(self) -> list[str]:
        """The verdict first, for a terminal; the table of runtimes is printed by the command."""
        table = [*self.facts, *(("fix" if not n else "", line) for n, line in enumerate(self.fix))]
        for entry in self.errors:
            table += [(entry["id"], f"{entry['title']}: {entry['cause']}"), ("", entry["fix"])]
            table += [("", entry["fix_command"])] if entry["fix_command"] else []
        table += [(f.severity, _beside(f)) for f in self.settings if f.severity != "fine"]
        fine = [f.key for f in self.settings if f.severity == "fine"]
        table += [("fine", ", ".join(fine))] if fine else []
        but = ", but not with these settings" if self.verdict == AS_TRAINED and not self.healthy else ""
        return [f"{self.verdict}{but}: {self.why}", *rows(table)]


def _beside(finding: Finding) -> str:
    given = "not given" if finding.given is None else finding.given
    other = "not" if finding.severity == "wrong" else "there"
    wanted = "" if finding.wanted is None else f", {other} {finding.wanted}"
    return f"{finding.key} {given}{wanted}: {finding.consequence}"
