"""Finds known failure texts in the output of a program, by plain substring search: logs may be hostile and long."""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from loraforge.facts.logs import Log, log_of
from loraforge.tables import package_tables, with_tuples
from loraforge.text import command

SHORT = 600
"""A text of at most this many characters has no room for the words of `near`: it matches without them, unsurely."""
QUOTE = 240
"""The most characters of the user's own lines that are quoted."""
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
    program: str
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

    def text(self, field: str, lang: str) -> str:
        """The field `title`, `cause`, `check` or `fix` in a language: en or zh."""
        return str(getattr(self, f"{field}_zh" if lang == "zh" else field))


@dataclass(frozen=True, slots=True)
class Found:
    """A failure that a log shows, or that was asked for by its id: then without lines."""

    symptom: Symptom
    lines: tuple[int, int] | None = None
    """The numbers of the first and the last line of its text."""
    quote: str | None = None
    """What stands there."""
    is_sure: bool = True
    """False if the text is too short to hold the words of `near`."""

    def to_dict(self, lang: str = "en", file: str | Path = "ADAPTER") -> dict[str, Any]:
        """The entry of the JSON document in one language; `file` is the adapter in its commands."""
        entry = self.symptom
        return {
            "id": entry.id,
            "program": entry.program,
            "title": entry.text("title", lang),
            "texts": list(entry.any),
            "exact": entry.exact,
            "lines": self.lines and list(self.lines),
            "quote": self.quote,
            "sure": self.is_sure,
            "near": list(entry.near),
            "cause": entry.text("cause", lang),
            "check": entry.text("check", lang),
            "check_command": filled(entry.check_command, file),
            "fix": entry.text("fix", lang),
            "fix_command": filled(entry.fix_command, file),
            "sources": list(entry.sources),
        }


@cache
def symptoms() -> Mapping[str, Symptom]:
    """Every known failure, by its id: D1, D2, ..."""
    files = package_tables("facts/symptoms").values()
    rows = {name: (file["program"], row) for file in files for name, row in file.items() if name != "program"}
    return {
        name: Symptom(name, rows[name][0], **with_tuples(rows[name][1]))
        for name in sorted(rows, key=lambda name: int(name[1:]))
    }


def find(log: str | Log) -> list[Found]:
    """The failures whose text occurs in a log: the longest literal text first, then the last in the log."""
    parts = [_Searched(part.line, part.content) for part in (log_of(log) if isinstance(log, str) else log)]
    sure = _found(parts, is_sure=True)
    return sure if sure or sum(len(part.log) for part in parts) > SHORT else _found(parts, is_sure=False)


def _found(parts: list[_Searched], *, is_sure: bool) -> list[Found]:
    ranks = dict[str, tuple[int, int, int, int]]()
    for symptom in symptoms().values():
        for number, part in enumerate(parts):
            for fragment in symptom.any:
                if match := _match(part.log, fragment, symptom.near if is_sure else (), symptom.unless):
                    literal, start, end = match
                    ranks[symptom.id] = max(ranks.get(symptom.id, (0, 0, 0, 0)), (literal, number, end, start))
    less_specific = {name for match in ranks for name in symptoms()[match].over}
    order = sorted(ranks.keys() - less_specific, key=lambda name: ranks[name], reverse=True)
    return [
        Found(symptoms()[name], *parts[number].quoted(start, end), is_sure)
        for name, (_, number, end, start) in ((name, ranks[name]) for name in order)
    ]


class _Searched:
    """A part of a log as it is searched: without colour codes, in lower case, with single spaces."""

    def __init__(self, line: int, text: str) -> None:
        plain = _COLOUR.sub("", text)
        for escaped in "'", '"', "\\":  # logs of JSON lines escape these
            plain = plain.replace(f"\\{escaped}", escaped)
        self.log = " ".join(plain.lower().split())
        self._line, self._plain = line, plain
        self._lines = list[str]()
        self._words = list[int]()

    def quoted(self, start: int, end: int) -> tuple[tuple[int, int], str]:
        """The numbers of the first and last line of `log[start:end]`, and what stands there, with single spaces."""
        if not self._lines:
            self._lines = self._plain.split("\n")
            self._words = list(accumulate(len(line.split()) for line in self._lines))  # words to the end of each line
        word = self.log.count(" ", 0, start)
        first = bisect_right(self._words, word)
        last = bisect_right(self._words, word + self.log.count(" ", start, end - 1))
        words = " ".join(self._lines[first : last + 1]).split()
        number = word - (self._words[first - 1] if first else 0)
        before = max(0, number - 8)
        text = " ".join(words[before : number + QUOTE])
        at = len(" ".join(words[before:number])) + start - self.log.rfind(" ", 0, start) - 1
        cut = max(0, at - QUOTE // 4) if len(text) > QUOTE else 0
        quote = text[cut : cut + QUOTE]
        is_begin, is_end = not before and not cut, number + QUOTE >= len(words) and cut + QUOTE >= len(text)
        return (self._line + first, self._line + last), f"{'' if is_begin else '...'}{quote}{'' if is_end else '...'}"


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


def _match(log: str, fragment: str, near: tuple[str, ...], unless: tuple[str, ...]) -> tuple[int, int, int] | None:
    """The last occurrence with a `near` word and no `unless` word around it: its literal characters, start and end."""
    pieces, gaps = _pieces(fragment)
    limit = len(log)
    for _ in range(TRIES):
        last = log.rfind(pieces[-1], 0, limit)
        if last < 0:
            return None
        limit = last + len(pieces[-1]) - 1
        start = _start(log, pieces, gaps, last)
        if start is None:
            continue
        around = log[max(0, start - NEAR) : last + NEAR]
        if (not near or _has(around, near)) and not _has(around, unless):
            return sum(map(len, pieces)), start, last + len(pieces[-1])
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
