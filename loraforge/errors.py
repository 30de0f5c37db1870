"""What can go wrong in a way the user can mend: one base class, and the next command to type."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Try:
    """A remedy: a command line that runs as it is, and what it would do.

    A text that starts with `-` is an addition to the command that was refused;
    the command line prints the two as one line.
    """

    command: str
    why: str = ""
    instead: str = ""
    """The typed word that `command` takes the place of, where it is no line of its own."""

    def behind(self, words: Sequence[str | Path]) -> str:
        """The line that it makes of the command `words`."""
        if self.instead:
            return command(*(self.command if str(word).rstrip("/") == self.instead else word for word in words))
        return f"{command(*words)} {self.command}" if self.command.startswith("-") else self.command


_STANDS_FOR: dict[str, tuple[str, str]] = {}
"""Folder on this machine -> the address of the Hub whose files it holds, as it was typed and with its commit."""


def stands_for(folder: Path, address: str, pinned: str) -> None:
    """From now on users are told `address` where a message or a command would name `folder`."""
    _STANDS_FOR[str(folder)] = address, pinned


def told(text: str | Path) -> str:
    """A path, or a text with paths in it, as the user knows it."""
    text = str(text)
    for folder, (address, _) in _STANDS_FOR.items():
        text = text.replace(folder, address)
    return text


def recorded(path: Path) -> str:
    """What a written file may say of a path: its name without folders, or where on the Hub it came from."""
    for folder, (_, pinned) in _STANDS_FOR.items():
        if path.is_relative_to(folder):
            return "/".join([pinned, *path.relative_to(folder).parts])
    return Path(os.path.abspath(path)).name  # noqa: PTH100 - it takes `.` and `..` away, and follows no links


class LoraforgeError(Exception):
    """Base of every refusal. The text says what is wrong and where; `remedies` says what to type next."""

    state = ""
    """In what state something outside of this machine was left, where there is such a thing: the last line."""

    def __init__(self, message: str, *remedies: Try | str) -> None:
        super().__init__(told(message))
        self.remedies = tuple(r if isinstance(r, Try) else Try(r) for r in remedies)

    def __str__(self) -> str:
        return "\n".join(
            [super().__str__(), *(f"try: {r.command}{f'  # {r.why}' if r.why else ''}" for r in self.remedies)]
        )

    @property
    def message(self) -> str:
        """What and where, without the remedies."""
        return super().__str__()


def as_commands(error: LoraforgeError, *words: str | Path) -> LoraforgeError:
    """The same refusal, its additions put behind the command `words`: for a verb that has not got these options."""
    error.remedies = tuple(Try(remedy.behind(words), remedy.why) for remedy in error.remedies)
    return error


class LayoutError(LoraforgeError):
    """An architecture or layout file is not a one-to-one description; every problem is listed."""

    def __init__(self, where: str, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"{where}: {'; '.join(problems)}")


class FileError(LoraforgeError):
    """A file is damaged, hostile, or of another kind than the one asked for."""


class FormatError(LoraforgeError):
    """The tensors are readable, but they are not an adapter of the format asked for."""


class NoAdapterError(FormatError):
    """The file is whole, and is something else than an adapter of the format asked for."""


class VariantError(FormatError):
    """The adapter is whole, and its configuration makes it more than A and B: PEFT knows it, no format here does."""


class NamesError(FormatError):
    """Some of the keys are none of the format's, or of no module of the architecture."""


class BaseError(FormatError):
    """The adapter is whole, and no released base model of its width has all of what it adapts."""


class ScaleError(LoraforgeError):
    """The scale the adapter was trained at is unknown, contradictory or impossible."""


class ConversionError(LoraforgeError):
    """The adapter has no exact representation in the target."""


class VerificationError(LoraforgeError):
    """What was written does not do what the source does. Nothing was kept."""


class HubError(LoraforgeError):
    """The Hugging Face Hub has not got what was asked for, does not allow it, or cannot be reached."""


class OutputError(LoraforgeError):
    """The destination cannot be written."""


@contextmanager
def of_pipeline(what: str) -> Iterator[None]:
    """Around imports of what comes with `loraforge[pipeline]`: says how to get it, where it is missing."""
    try:
        yield
    except ImportError as error:
        raise LoraforgeError(
            f"{what} needs {error.name or error}, which is not installed here.",
            Try("pip install 'loraforge[pipeline]'", "it comes with this"),
        ) from error


def plain(text: str, most: int = 4000) -> str:
    """Text that came from a file, made fit for a terminal: one line, no control characters, an end."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: most + 1])
    return line if len(line) <= most else f"{line[:most]}..."


def shown(value: object) -> str:
    """A value of a file, for a message. Containers are named, not printed: a printed one may have no end."""
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "a number of too many digits"
    return f"{value!r:.40}" if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def command(*words: str | Path) -> str:
    """The words as one line for a shell, quoted where needed; a path is never mistaken for an option."""
    if words[0] in ("ls", "file") and (repo := _on_the_hub(words[-1])):
        return hf("models", "ls", repo, page=f"{repo}/tree/main")
    texts = [f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else told(word) for word in words]
    return shlex.join(texts)


HUB = "https://huggingface.co"
"""Where cards and pages lead, whichever mirror a user reads from."""


def hf(*words: str, page: str) -> str:
    """The line of the Hub's own client; where the one installed has no such command, the line that opens `page`."""
    return command("hf", *words) if hub_client() >= (1, 32) else f"python -m webbrowser {HUB}/{page}"


@cache
def hub_client() -> tuple[int, ...]:
    """The version of huggingface_hub that is installed."""
    from importlib.metadata import version

    return tuple(int(part) for part in version("huggingface_hub").split(".")[:2])


def _on_the_hub(path: str | Path) -> str:
    """The repository whose files a path on this machine stands for; empty where it is a path and no more."""
    for folder, (address, _) in _STANDS_FOR.items():
        if Path(path).is_relative_to(folder):
            return address.removeprefix("hf://").partition("@")[0]
    return ""


def leaving_out(paths: Iterable[str]) -> Try:
    """The addition that converts an adapter without these modules, in as few patterns as say it."""
    patterns = sorted({re.sub(r"\d+", "*", path) for path in paths}, key=lambda pattern: (len(pattern), pattern))
    fewest = [p for n, p in enumerate(patterns) if not any(fnmatchcase(p, other) for other in patterns[:n])]
    words = (word for pattern in fewest for word in ("--drop", pattern))
    return Try(command(*words), "convert the others without them")


def listed(items: list[str], most: int = 20) -> str:
    """`a, b, c`, cut after `most` with the count of what is left."""
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"
