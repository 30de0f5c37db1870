"""Finds known failure texts in the output of a program, by plain substring search: logs may be hostile and long."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from loraforge.tables import package_table, with_tuples
from loraforge.text import command

MOST = 4_000_000
"""Number of characters that are searched, at the end of a log."""
NEAR = 4_000
"""Distance, in characters, within which the words of `near` and `unless` are looked for."""
TRIES = 500
"""How many occurrences of its last piece are tried per failure text."""
GAPS = {"#": 12, "*": 300, "**": 60_000}
"""The most characters that each wildcard matches."""

_WILD = re.compile(r"(\*\*|\*|#)")
_COLOUR = re.compile(r"\x1b\[[0-9;]{0,20}[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Symptom:
    """One failure: text, cause, check and fix. schemas/symptoms.schema.json explains the fields."""

    id: str
    title: str
    title_zh: str
    any: tuple[str, ...]
    cause: str
    cause_zh: str
    check: str
    check_zh: str
    fix: str
    fix_zh: str
    sources: tuple[str, ...]
    near: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    over: tuple[str, ...] = ()
    exact: bool = True
    check_command: str | None = None
    fix_command: str | None = None

    def to_dict(self, lang: str = "en", file: str | Path = "ADAPTER") -> dict[str, Any]:
        """The entry of the JSON document in one language; `file` is the adapter in its commands."""
        return {
            "id": self.id,
            "title": self.text("title", lang),
            "texts": list(self.any),
            "exact": self.exact,
            "cause": self.text("cause", lang),
            "check": self.text("check", lang),
            "check_command": filled(self.check_command, file),
            "fix": self.text("fix", lang),
            "fix_command": filled(self.fix_command, file),
            "sources": list(self.sources),
        }

    def text(self, field: str, lang: str) -> str:
        """The field `title`, `cause`, `check` or `fix` in a language: en or zh."""
        return str(getattr(self, f"{field}_zh" if lang == "zh" else field))


@cache
def symptoms() -> Mapping[str, Symptom]:
    """Every known failure, by its id."""
    return {name: Symptom(name, **with_tuples(entry)) for name, entry in package_table("facts/symptoms").items()}


def find(text: str) -> list[Symptom]:
    """The failures whose text occurs in a log: the longest literal text first, then the last in the log."""
    log = normal(text)
    ranks = dict[str, tuple[int, int]]()
    for symptom in symptoms().values():
        if matches := [match for fragment in symptom.any if (match := _match(log, fragment, symptom))]:
            ranks[symptom.id] = max(matches)
    less_specific = {name for match in ranks for name in symptoms()[match].over}
    order = sorted(ranks.keys() - less_specific, key=lambda name: ranks[name], reverse=True)
    return [symptoms()[name] for name in order]


def normal(text: str) -> str:
    """The end of a text as it is searched: without colour codes, in lower case, with single spaces."""
    plain = _COLOUR.sub("", text[-MOST:])
    for escaped in "'", '"', "\\":  # logs of JSON lines escape these
        plain = plain.replace(f"\\{escaped}", escaped)
    return " ".join(plain.lower().split())


def filled(template: str | None, file: str | Path) -> str | None:
    """A command with the adapter's path for `{file}`, quoted for a shell; None if there is no command."""
    return template and command(*(Path(file) if word == "{file}" else word for word in template.split()))


def language() -> str:
    """The language of the terminal: zh, or en for all others."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if os.environ.get(name):
            return "zh" if os.environ[name].lower().startswith("zh") else "en"
    return "en"


@cache
def _pieces(fragment: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The literal pieces of a fragment, and the largest distance between each and the next."""
    parts = _WILD.split(" ".join(fragment.lower().split()))
    return tuple(parts[::2]), tuple(GAPS[wild] for wild in parts[1::2])


def _match(log: str, fragment: str, symptom: Symptom) -> tuple[int, int] | None:
    """The last occurrence with a `near` word and no `unless` word around it: its literal characters and its end."""
    pieces, gaps = _pieces(fragment)
    limit = len(log)
    for _ in range(TRIES):
        end = log.rfind(pieces[-1], 0, limit)
        if end < 0:
            return None
        limit = end + len(pieces[-1]) - 1
        start = _start(log, pieces, gaps, end)
        if start is None:
            continue
        around = log[max(0, start - NEAR) : end + NEAR]
        if (not symptom.near or _has(around, symptom.near)) and not _has(around, symptom.unless):
            return sum(map(len, pieces)), end + len(pieces[-1])
    return None


def _start(log: str, pieces: tuple[str, ...], gaps: tuple[int, ...], end: int) -> int | None:
    """The start of a fragment whose last piece is at `end`; None if the other pieces are not before it."""
    for piece, gap in zip(reversed(pieces[:-1]), reversed(gaps), strict=True):
        end = log.rfind(piece, max(0, end - gap - len(piece)), end)
        if end < 0:
            return None
    return end


def _has(text: str, words: tuple[str, ...]) -> bool:
    return any(word.lower() in text for word in words)
