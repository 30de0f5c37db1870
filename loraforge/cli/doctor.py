"""The commands that say what is wrong: doctor, of an adapter; explain, of a failure text."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import click

import loraforge
from loraforge.cli.console import as_json, show
from loraforge.cli.options import declared
from loraforge.errors import LoraforgeError, Try
from loraforge.facts.symptoms import Symptom, filled, find, language, symptoms
from loraforge.text import command, listed, plain, short_fraction

_ID = re.compile(r"[dD]?([0-9]{1,6})")
_WORDS = {
    "en": {"text": "text", "like": "text like", "cause": "cause", "check": "check", "fix": "fix", "seen": "seen in"},
    "zh": {"text": "报错", "like": "大意", "cause": "原因", "check": "确认", "fix": "解决", "seen": "出处"},
}
_WIDTH = 11


@declared("doctor")
@click.pass_context
def doctor(ctx: click.Context, /, source: str, json_: bool, **options: Any) -> None:
    if options["error"] is not None:
        options["error"] = typed(options["error"])
    diagnosis = loraforge.doctor(source, **options)
    show(diagnosis, json_)
    if diagnosis.outlooks and not json_:
        from loraforge.cli.screen import table

        rows = [
            [
                o.runtime,
                "stops" if o.raises else f"{o.applied}/{o.modules}",
                ", ".join(short_fraction(scale) for scale in o.scalings),
                ", ".join(f"{ratio:.4g}" for ratio in o.ratios),
                o.raises or o.otherwise or listed(list(o.lost), 4),
                o.mark,
            ]
            for o in diagnosis.outlooks
        ]
        table(["runtime", "modules", "scale", "x trained", "passes over, or stops at", "known by"], rows)
    if not diagnosis.healthy:
        ctx.exit(1)


@declared("explain")
def explain(text: tuple[str, ...], file: Path, lang: str | None, json_: bool) -> None:
    lang = lang or language()
    entries = _asked(" ".join(text), file)
    if json_:
        document = {"schema": "loraforge.explain.v1", "lang": lang}
        click.echo(as_json({**document, "entries": [entry.to_dict(lang, file) for entry in entries]}))
    elif text:
        click.echo("\n\n".join("\n".join(_lines(entry, lang, file)) for entry in entries))
    else:
        click.echo("\n".join(f"{entry.id:<5}{entry.text('title', lang)}" for entry in entries))


def _asked(text: str, file: Path) -> list[Symptom]:
    """The entries asked for: all, one by its id, or those whose text is in the typed text or the piped log."""
    if not text:
        return list(symptoms().values())
    if number := _ID.fullmatch(text):
        if entry := symptoms().get(f"D{number[1]}"):
            return [entry]
        every = Try("loraforge explain", "list them")
        raise LoraforgeError(f"there is no entry D{number[1]}; they are D1 to D{len(symptoms())}.", every)
    if entries := find(typed(text)):
        return entries
    remedies = []
    if os.path.isfile(text):  # noqa: PTH113 - a text too long for a path is no error for it
        remedies.append(Try(f"loraforge explain - < {command(text)}", "read that file"))
    if file != Path("ADAPTER"):
        why = "many faults print nothing: look at the file itself"
        remedies.append(Try(command("loraforge", "inspect", file), why))
    remedies.append(Try("loraforge explain", "list the failures that are known"))
    raise LoraforgeError("no known failure text stands in it.", *remedies)


def typed(text: str) -> str:
    """The text; if it is `-`, all of standard input: UTF-8, or the UTF-16 that PowerShell writes."""
    if text != "-":
        return text
    data = sys.stdin.buffer.read()
    return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8", "replace")


def _lines(entry: Symptom, lang: str, file: Path) -> list[str]:
    words = _WORDS[lang]
    lines = [f"{entry.id}  {entry.text('title', lang)}"]
    lines += [_line(words["text" if entry.exact else "like"], shown(text)) for text in entry.any]
    lines.append(_line(words["cause"], entry.text("cause", lang)))
    for name, template in (("check", entry.check_command), ("fix", entry.fix_command)):
        lines.append(_line(words[name], entry.text(name, lang)))
        if typed := filled(template, file):
            lines.append(_line("", f"$ {typed}"))
    return [plain(line) for line in [*lines, _line(words["seen"], ", ".join(entry.sources))]]


def _line(label: str, text: str) -> str:
    wide = sum(1 for letter in label if ord(letter) > 0x2E80)  # a terminal gives these two columns
    return f"  {label:<{_WIDTH - wide}}{text}"


def shown(text: str) -> str:
    """A failure text for a reader, with an ellipsis for each part that varies."""
    return re.sub(r"\*\*?|#", "...", text)
