"""The command about failure texts: explain."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import click

from loraforge.cli.console import PATH, as_json
from loraforge.cli.options import choice, flag, value
from loraforge.errors import LoraforgeError, Try
from loraforge.facts.symptoms import Symptom, filled, find, language, symptoms
from loraforge.text import command, plain

_ID = re.compile(r"[dD]?([0-9]{1,6})")
_WORDS = {
    "en": {"text": "text", "like": "text like", "cause": "cause", "check": "check", "fix": "fix", "seen": "seen in"},
    "zh": {"text": "报错", "like": "大意", "cause": "原因", "check": "确认", "fix": "解决", "seen": "出处"},
}
_WIDTH = 11


@click.command(short_help="Explain an error message, or a whole log.")
@click.argument("text", metavar="[ID|TEXT|-]", nargs=-1)
@value("--file", "PATH", "Adapter to name in the printed commands.", type=PATH, default="ADAPTER")
@choice("--lang", ["en", "zh"], "Language. Default: the terminal's.")
@flag("--json json_", "Print JSON (schemas/explain.schema.json).")
def explain(text: tuple[str, ...], file: Path, lang: str | None, json_: bool) -> None:
    """Say what a failure of a trainer, loader or converter means for the adapter, and what to type next.

    TEXT is what a program printed; - reads a whole log from standard input; ID is the number of an entry. Without
    an argument, the known failures are listed. Nothing is sent anywhere. Exit code 1 if nothing matches.

    \b
    Examples:
      loraforge explain "Adapter name(s) {'style'} not in the list of present adapters: set()"
      python infer.py 2>&1 | loraforge explain - --file pytorch_lora_weights.safetensors
      loraforge explain D7 --lang zh
    """
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
    """An entry for a terminal."""
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
