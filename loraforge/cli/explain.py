"""The command about failure texts: explain."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import click

from loraforge.cli.console import PATH, as_json
from loraforge.errors import LoraforgeError, Try
from loraforge.facts.symptoms import Symptom, filled, find, language, symptoms
from loraforge.text import command, plain

_ID = re.compile(r"[dD]\d{1,6}")
_WORDS = {
    "en": {"text": "text", "like": "text like", "cause": "cause", "check": "check", "fix": "fix", "seen": "seen in"},
    "zh": {"text": "报错", "like": "大意", "cause": "原因", "check": "确认", "fix": "解决", "seen": "出处"},
}
_WIDTH = 11


@click.command(short_help="Explain an error message, or a whole log.")
@click.argument("text", metavar="[ID|TEXT|-]", nargs=-1)
@click.option("--file", "file", type=PATH, default="ADAPTER", help="Adapter to name in the commands that are shown.")
@click.option("--lang", type=click.Choice(["en", "zh"]), help="Language. Default: the terminal's.")
@click.option("--json", "json_", is_flag=True, help="Print JSON (schemas/explain.schema.json).")
def explain(text: tuple[str, ...], file: Path, lang: str | None, json_: bool) -> None:
    """Say what a failure of a trainer, loader or converter means for the adapter, and what to type next.

    TEXT is what a program printed; - reads a whole log from standard input, ID is an entry's number. Without
    one of them, the known failures are listed. Nothing is sent anywhere. Exit code 1 when nothing matches.

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
    """The entries meant: all, one by its id, or those whose text stands in what was typed or piped in."""
    if not text:
        return list(symptoms().values())
    if _ID.fullmatch(text):
        if text.upper() not in symptoms():
            raise LoraforgeError(
                f"there is no entry {text}; they are D1 to D{len(symptoms())}.", Try("loraforge explain", "list them")
            )
        return [symptoms()[text.upper()]]
    if not set(text) - set("0123456789"):
        return _asked(f"D{text}", file)
    found = find(typed(text))
    if not found:
        ways = [Try("loraforge explain", "list the failures that are known")]
        if file != Path("ADAPTER"):
            ways.insert(
                0, Try(command("loraforge", "inspect", file), "many faults print nothing: look at the file itself")
            )
        if _is_file(text):
            ways.insert(0, Try(f"loraforge explain - < {command(text)}", "read that file"))
        raise LoraforgeError("no known failure text stands in it.", *ways)
    return found


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def typed(text: str) -> str:
    """What was typed; `-` stands for all of standard input."""
    return _decoded(sys.stdin.buffer.read()) if text == "-" else text


def _decoded(data: bytes) -> str:
    """A log as text: UTF-8, or the UTF-16 that PowerShell writes."""
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
    """A failure text for a reader: what varies is an ellipsis."""
    return re.sub(r"\*\*?|#", "...", text)
