"""`loraforge explain`: what a failure text means. The whole answer is in one language, its refusals too."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import unicodedata
from pathlib import Path

import click

from loraforge.cli.console import as_json, say
from loraforge.cli.options import declared
from loraforge.errors import FileError, LoraforgeError, Try
from loraforge.facts.logs import Log, log_of, read_log
from loraforge.facts.symptoms import Found, filled, find, language, symptoms
from loraforge.tables import package_table
from loraforge.text import command, plain

_ID = re.compile(r"[dD]?([0-9]{1,6})")
_PATH = re.compile(r"\S*(?:[/\\]|\.(?:txt|log|out|err|json|jsonl)$)\S*")
"""What is meant as a path, though there is no such file."""
_TOKENS = r"\s*(?:[^\s\u2e80-\uffff]+|[\u2e80-\uffff])[，。；：、）」]*"
"""Where a line may break: after a word, and after every Chinese character that no mark follows."""
_WIDTH = 11
_WORDS = package_table("cli/explain")


@declared("explain")
def explain(text: tuple[str, ...], file: Path, lang: str | None, json_: bool) -> None:
    lang = lang or language()
    if len(text) > 1 and all(map(os.path.isfile, text)):
        raise LoraforgeError(
            _WORDS[lang]["several"], *(command("loraforge", "explain", Path(log)) for log in text[:20])
        )
    entries = _asked(" ".join(text), file, lang)
    if json_:
        document = {"schema": "loraforge.explain.v1", "lang": lang}
        click.echo(as_json({**document, "entries": [entry.to_dict(lang, file) for entry in entries]}))
    elif text:
        click.echo("\n\n".join("\n".join(_lines(entry, lang, file)) for entry in entries))
    else:
        for program in dict.fromkeys(entry.symptom.program for entry in entries):
            rows = (entry.symptom for entry in entries if entry.symptom.program == program)
            click.echo("\n".join([program, *(f"  {row.id:<5}{row.text('title', lang)}" for row in rows), ""]))


def _asked(text: str, file: Path, lang: str) -> list[Found]:
    """The entries asked for: all, one by its id, or those whose text is in the typed text or the log."""
    words = _WORDS[lang]
    every = Try("loraforge explain", words["list"])
    if not text:
        return [Found(symptom) for symptom in symptoms().values()]
    if number := _ID.fullmatch(text):
        if entry := symptoms().get(f"D{int(number[1])}"):
            return [Found(entry)]
        raise LoraforgeError(words["no_id"].format(f"D{number[1]}", len(symptoms())), every)
    log = typed_log(text, lang)
    if len(log) > 1:
        say("note: ", words["ends_only"].format(log[0].content.count("\n") + 1, log[1].line))
    if entries := find(log):
        return entries
    adapter, message = file, words["nothing"]
    if log[0].content != text and any("\0" in part.content for part in log):
        adapter, message = Path(text), words["binary"].format(text)
    elif os.path.isdir(text):  # noqa: PTH112 - a text too long for a path is no error for it
        message = words["folder"].format(text)
    elif _PATH.fullmatch(text) and not os.path.exists(text):  # noqa: PTH110 - the same
        message = words["no_file"].format(text)
    looks = {"doctor": ["doctor"], "inspect": ["inspect"], "report": ["inspect", "--skeleton"]}
    tries = [Try(command("loraforge", *v, adapter), words[why]) for why, v in looks.items() if adapter.exists()]
    raise LoraforgeError(message, *tries[:2], every, *tries[2:])


def typed_log(text: str, lang: str = "en") -> Log:
    """The log that was typed: a text, a file, or `-`, which is all of standard input. Raises FileError."""
    if text == "-":
        if sys.stdin.isatty():
            click.echo(_WORDS[lang]["waiting"], err=True)
        return read_log(sys.stdin.buffer)
    try:
        mode = Path(text).stat().st_mode
    except (OSError, ValueError):  # it is a text; too long for a path is no error for it
        return log_of(text)
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):  # devices may have no end
        return log_of(text)
    try:
        with Path(text).open("rb") as stream:
            return read_log(stream)
    except OSError as error:
        message = _WORDS[lang]["unreadable"].format(text, error.strerror)
        raise FileError(message) from error


def _lines(entry: Found, lang: str, file: Path) -> list[str]:
    words, symptom = _WORDS[lang], entry.symptom
    lines = [f"{symptom.id}  {symptom.text('title', lang)}"]
    if entry.lines and entry.quote:
        first, last = entry.lines
        lines += _row(words["line"].format(first if first == last else f"{first}-{last}"), plain(entry.quote))
    else:
        for text in symptom.any:
            lines += _row(words["text" if symptom.exact else "like"], shown(text))
    if not entry.is_sure:
        lines += _row(words["unsure"], words["near"].format(", ".join(symptom.near)))
    lines += _row(words["cause"], symptom.text("cause", lang))
    for name, template in (("check", symptom.check_command), ("fix", symptom.fix_command)):
        lines += _row(words[name], symptom.text(name, lang))
        if typed := filled(template, file):
            lines.append(f"{'':<{_WIDTH + 2}}$ {typed}")  # never broken, so that it can be copied
    lines += _row(words["seen"], ", ".join(symptom.sources))
    return [plain(line) for line in lines]


def _row(label: str, text: str) -> list[str]:
    """A label and a text, broken between words behind a hanging indent if a terminal shows it."""
    room = max(20, shutil.get_terminal_size().columns - _WIDTH - 2) if sys.stdout.isatty() else sys.maxsize
    lines, used = [""], 0
    for token in re.findall(_TOKENS, text):
        if used and used + _cells(token) > room:
            lines, used, token = [*lines, ""], 0, token.lstrip()
        lines[-1], used = lines[-1] + token, used + _cells(token)
    label += " " * (_WIDTH - _cells(label))
    return [f"  {label if not n else ' ' * _WIDTH}{line}" for n, line in enumerate(lines)]


def _cells(text: str) -> int:
    """The columns that a terminal gives a text: two for a wide character."""
    return sum(2 if unicodedata.east_asian_width(letter) in "WF" else 1 for letter in text)


def shown(text: str) -> str:
    """A failure text for a reader, with an ellipsis for each part that varies."""
    return re.sub(r"\*\*?|#", "...", text)
