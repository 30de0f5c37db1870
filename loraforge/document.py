"""The base of every report: a JSON document that follows a schema, and lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True, slots=True)
class Document:
    """A report: its fields are the JSON document of schemas/<schema>.schema.json."""

    schema: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document. Its shape is a promise: see the schema."""
        return {"schema": f"loraforge.{self.schema}.v1", **asdict(self)}

    def lines(self) -> list[str]:
        """The report for a terminal."""
        raise NotImplementedError


def rows(table: Iterable[tuple[str, str]]) -> list[str]:
    """Lines with a label and a text, the texts in one column."""
    return [f"  {label:<9} {text}" for label, text in table]


def title(source: Mapping[str, Any], output: Mapping[str, Any]) -> str:
    """The first line of a report on a model that was made from another."""
    return f"{source['path']} -> {output['path']}{'' if output['written'] else ' (not written)'}"
