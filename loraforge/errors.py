"""What can go wrong in a way the user can mend: one base class, and the next command to type."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from loraforge.text import command, told


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


def leaving_out(paths: Iterable[str]) -> Try:
    """The addition that converts an adapter without these modules, in as few patterns as say it."""
    patterns = sorted({re.sub(r"\d+", "*", path) for path in paths}, key=lambda pattern: (len(pattern), pattern))
    fewest = [p for n, p in enumerate(patterns) if not any(fnmatchcase(p, other) for other in patterns[:n])]
    words = (word for pattern in fewest for word in ("--drop", pattern))
    return Try(command(*words), "convert the others without them")
