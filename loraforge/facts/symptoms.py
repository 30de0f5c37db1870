"""Finds known failure texts in what a program printed. Plain substring search: a log is hostile, and may be long."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from loraforge.tables import package_table
from loraforge.text import command

MOST = 4_000_000
"""Characters of a text that are searched, counted from its end."""
NEAR = 4_000
"""How far from the failure text the words may stand without which it says nothing about an adapter."""
TRIES = 500
"""How many places where only the end of a failure text stands are looked at, per text."""
GAPS = {"#": 12, "*": 300, "**": 60_000}
"""How many characters each wildcard may stand for."""

_WILD = re.compile(r"(\*\*|\*|#)")
_COLOUR = re.compile(r"\x1b\[[0-9;]{0,20}[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Symptom:
    """One failure: how it reads, why it happens, how to make sure, what to do. Its JSON follows the schema."""

    id: str
    title: str
    title_zh: str
    any: tuple[str, ...]
    """Texts of which one must stand. `*` is any text, `**` a long one, `#` a number; upper case is lower case."""
    cause: str
    cause_zh: str
    check: str
    check_zh: str
    fix: str
    fix_zh: str
    sources: tuple[str, ...]
    """Threads (`owner/repo#n`) and source files in which the text was seen."""
    near: tuple[str, ...] = ()
    """Words of which one must stand near the text. Empty: the text says enough alone."""
    unless: tuple[str, ...] = ()
    """Words that, near the text, mean that all is well."""
    over: tuple[str, ...] = ()
    """Ids that say less about the same failure: not told where this one is."""
    exact: bool = True
    """Whether the texts are the program's own words; else they only say what it says."""
    check_command: str | None = None
    fix_command: str | None = None

    def to_dict(self, lang: str = "en", file: str | Path = "ADAPTER") -> dict[str, Any]:
        """The entry of the JSON document, in one language, its commands filled in."""
        return {
            "id": self.id,
            "title": self.said("title", lang),
            "texts": list(self.any),
            "exact": self.exact,
            "cause": self.said("cause", lang),
            "check": self.said("check", lang),
            "check_command": filled(self.check_command, file),
            "fix": self.said("fix", lang),
            "fix_command": filled(self.fix_command, file),
            "sources": list(self.sources),
        }

    def said(self, field: str, lang: str) -> str:
        """`title`, `cause`, `check` or `fix` in a language: en or zh."""
        text: str = getattr(self, f"{field}_zh" if lang == "zh" else field)
        return text


@dataclass(frozen=True, slots=True)
class Place:
    """Where a failure text stands in a log, and how much of it is literal."""

    start: int
    end: int
    literal: int


@cache
def symptoms() -> Mapping[str, Symptom]:
    """Every known failure, by its id."""
    return {name: _symptom(name, entry) for name, entry in package_table("facts/symptoms").items()}


def _symptom(name: str, entry: Mapping[str, Any]) -> Symptom:
    fields: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return Symptom(id=name, **fields)


def find(text: str) -> list[Symptom]:
    """The failures whose text stands in a log: most literal text first, then the one that stands last."""
    log = normal(text)
    found = dict[str, Place]()
    for symptom in symptoms().values():
        places = [place for fragment in symptom.any if (place := _place(log, fragment, symptom)) is not None]
        if places:
            found[symptom.id] = max(places, key=_rank)
    less = {name for known in found for name in symptoms()[known].over}
    order = sorted(found.keys() - less, key=lambda name: _rank(found[name]), reverse=True)
    return [symptoms()[name] for name in order]


def normal(text: str) -> str:
    """A text as it is searched: its end, without colours, in lower case, every run of blanks one space."""
    plain = _COLOUR.sub("", text[-MOST:])
    for escaped in "'", '"', "\\":  # as in a log of JSON lines
        plain = plain.replace(f"\\{escaped}", escaped)
    return " ".join(plain.lower().split())


def filled(template: str | None, file: str | Path) -> str | None:
    """A command with the adapter's path in it, quoted for a shell."""
    if template is None:
        return None
    return command(*(Path(file) if word == "{file}" else word for word in template.split()))


def language() -> str:
    """The language of the terminal, as far as this table has it: zh or en."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if os.environ.get(name):
            return "zh" if os.environ[name].lower().startswith("zh") else "en"
    return "en"


def _rank(place: Place) -> tuple[int, int]:
    return place.literal, place.end


@cache
def _pieces(fragment: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The literal pieces of a fragment, and how far apart neighbours may stand."""
    parts = _WILD.split(" ".join(fragment.lower().split()))
    return tuple(parts[::2]), tuple(GAPS[wild] for wild in parts[1::2])


def _place(log: str, fragment: str, symptom: Symptom) -> Place | None:
    """The last place of a fragment among the words it needs, and without those that excuse it."""
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
            return Place(start, end + len(pieces[-1]), sum(map(len, pieces)))
    return None


def _start(log: str, pieces: tuple[str, ...], gaps: tuple[int, ...], end: int) -> int | None:
    """Where a fragment begins whose last piece stands at `end`; None where the others do not stand before it."""
    for piece, gap in zip(reversed(pieces[:-1]), reversed(gaps), strict=True):
        end = log.rfind(piece, max(0, end - gap - len(piece)), end)
        if end < 0:
            return None
    return end


def _has(text: str, words: tuple[str, ...]) -> bool:
    return any(word.lower() in text for word in words)
