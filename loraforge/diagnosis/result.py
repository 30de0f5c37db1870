"""What doctor reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from loraforge.diagnosis.verdict import Kind, Verdict
from loraforge.document import Document, rows
from loraforge.errors import Try
from loraforge.facts.setting_rules import Finding
from loraforge.programs.outlook import Outlook


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
        """The JSON document. Its shape is a promise: see the schema."""
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
            table += [(entry["id"], f"{entry['title']}: {entry['cause']}"), ("", entry["fix"])]
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
