"""What the commands share: printing of errors, lines and JSON; memory, threads and signals of the process."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import click

from loraforge.cli.fault import UnforeseenError, unforeseen
from loraforge.document import Document
from loraforge.errors import LoraforgeError, Try
from loraforge.text import command, plain

PATH = click.Path(path_type=Path)


class Cli(click.Group):
    """A group that prints every LoraforgeError as a message and the commands to type next, with exit code 1.

    Any other exception is a fault of ours: one message with what a report needs, and exit code 70 (EX_SOFTWARE).
    """

    typed: Sequence[str] = ()

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        self.typed = list(sys.argv[1:] if args is None else args)
        if not sys.stderr.isatty():  # the client of the Hub draws its bars even into logs
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        return super().main(_plugin_first(self.typed), *rest, **options)

    def invoke(self, ctx: click.Context) -> Any:
        from loraforge.hub import client

        client.waiting = lambda text: say("note: ", text)
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # click's own, and a reader of our output that has gone
        except Exception as error:
            refusal = error if isinstance(error, LoraforgeError) else unforeseen(error, self.typed)
        say("Error: ", refusal.message, colour="red")
        lines = {self.line(remedy, ctx): remedy.why for remedy in refusal.remedies}
        for remedy in refusal.remedies:  # in place of a word that was not typed
            lines.pop(remedy.line if remedy.instead else "", None)
        lines.pop(command("loraforge", *self.typed), None)  # the command that just failed
        for line, why in lines.items():
            say("  try: ", line, f"   # {why}" if why else "")
        if refusal.state:
            say("", refusal.state)
        return ctx.exit(70 if isinstance(refusal, UnforeseenError) else 1)

    def line(self, remedy: Try, ctx: click.Context) -> str:
        """The remedy as a whole command: added options replace the typed ones that they contradict."""
        if remedy.of or not remedy.options:
            return remedy.added_to("loraforge", *self.typed).command
        typed = _without(self.typed, remedy.names, self.get_command(ctx, ctx.invoked_subcommand or ""))
        end = typed.index("--") if "--" in typed else len(typed)
        return command("loraforge", *typed[:end], *remedy.options, *typed[end:])


def _plugin_first(typed: Sequence[str]) -> list[str]:
    """The words with every `--plugin FILE` before the verb, so that it may be typed anywhere."""
    plugins, others = list[str](), list[str]()
    words = iter(typed)
    for word in words:
        if word == "--":
            others += [word, *words]
        elif word == "--plugin":
            plugins += [word, *islice(words, 1)]
        else:
            (plugins if word.startswith("--plugin=") else others).append(word)
    return [*plugins, *others]


_ONE_OF = (
    {"--alpha", "--trained-scale", "--trained-by", "--as-in", "--as-loaded"}, {"--in-place", "-o"},
    {"--base", "--lora-only"}, {"--to", "--for"},
)  # fmt: skip
"""Options of which only one may be given."""
_ONE_EACH = {"--strength", "--settings"}
"""Repeatable options that an added one replaces as a whole."""


def _without(typed: Sequence[str], new: frozenset[str], verb: click.Command | None) -> list[str]:
    """The typed words without the `new` options, which are added again, and without those that they exclude."""
    new = new.union(*(group for group in _ONE_OF if new & group))
    replaced = {  # option -> whether a value follows
        option: not getattr(parameter, "is_flag", False)
        for parameter in (verb.params if verb else ())
        if new & set(parameter.opts) and (_ONE_EACH & set(parameter.opts) or not getattr(parameter, "multiple", False))
        for option in parameter.opts
    }
    kept, words = list[str](), iter(typed)
    for word in words:
        option, equals, _ = word.partition("=")
        option = option.replace("_", "-")
        if option not in replaced:
            kept.append(word)
        elif replaced[option] and not equals:
            next(words, None)
    return kept


def say(label: str, *text: str, colour: str | None = None) -> None:
    """One line to stderr, never wrapped or cut, so that a command in it can be copied."""
    if sys.stderr.isatty() and "NO_COLOR" not in os.environ:
        label = click.style(label, fg=colour, bold=True)
    click.echo(label, nl=False, err=True)
    click.echo("".join(plain(part) for part in text), err=True)


def show(report: Document, json_: bool, lines: Sequence[str] | None = None) -> None:
    """A report: its notes to stderr; to stdout the JSON document, or lines for a terminal."""
    for note in getattr(report, "notes", ()):
        say("note: ", note)
    texts = [as_json(report.to_dict())] if json_ else map(plain, report.lines() if lines is None else lines)
    click.echo("\n".join(texts))


def as_json(document: Any) -> str:
    """A document for programs. What no terminal should get, and half a surrogate pair, is an escape in it."""
    text = json.dumps(document, indent=2, ensure_ascii=False)
    return re.sub(r"[^ -~\n]", lambda match: match[0] if match[0].isprintable() else json.dumps(match[0])[1:-1], text)


def settle_process() -> None:
    """Tune this process for many short-lived arrays on our own threads. Only for the command line, which owns it.

    BLAS threads on top of ours wait in busy loops: ten times slower on a loaded machine. glibc returns every freed
    array to the system and faults it in again: half of the CPU time. Nothing here makes reference cycles that matter,
    and a checkpoint's pickle makes many small objects, which the garbage collector would visit again and again.
    Must be called before numpy is imported.
    """
    gc.disable()
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    for library in ("OPENBLAS", "MKL", "OMP"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    if sys.platform == "linux":
        import ctypes

        with suppress(AttributeError, OSError):  # the C library is not glibc
            libc = ctypes.CDLL(None)
            libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
            libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD


class Numeric(click.Command):
    """A command that computes. Its process is settled before its options are checked, which may load numpy."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        settle_process()
        return super().make_context(*args, **extra)
