"""The errors that a user can mend: one base class, and the next command to type."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import KW_ONLY, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from loraforge.text import command, listed, shown, told

Words = tuple[str | Path, ...]
_ALIKE = 0.6
"""How much two names must have in common, from 0 to 1, for one to be meant by the other."""


@dataclass(frozen=True, slots=True)
class Try:
    """A remedy: a line to type, or options to add to a command; and what that does."""

    line: str = ""
    """A whole line. It is never parsed: code decides by the other fields."""
    why: str = ""
    _: KW_ONLY
    options: Words = ()
    """The words that are added to the command."""
    instead: str = ""
    """The typed word that `line` replaces; empty if `line` is a whole line."""
    of: Words = ()
    """The command to change; empty if it is the one that was refused."""
    scale: float | None = None
    """The scale of training that the options state, or that the program they name applies."""

    @property
    def command(self) -> str:
        """The text to type: the command with its options, or only the options if they belong to what was typed."""
        if self.instead and self.of:
            return command(*self.of[:2], *map(self._replaced, self.of[2:]))
        return command(*self.of, *self.options) if self.options else self.line

    def _replaced(self, word: str | Path) -> str | Path:
        option, equals, value = str(word).rpartition("=")
        return f"{option}{equals}{self.line}" if Path(value) == Path(self.instead) else word

    @property
    def verb(self) -> str:
        """The subcommand of loraforge to change; empty if it is the one that was refused."""
        return str(self.of[1]) if self.of else ""

    @property
    def names(self) -> frozenset[str]:
        """Its options, without their values."""
        return frozenset(str(word) for word in self.options if str(word).startswith("-"))

    def gives_only(self, names: frozenset[str]) -> bool:
        """Whether it adds options, and only options with these names."""
        return bool(self.options) and self.names <= names

    def added_to(self, *words: str | Path) -> Try:
        """The same remedy for the command `words`; unchanged if it is a whole line or belongs to another command."""
        mends = self.options or (self.instead and any(self._replaced(word) != word for word in words))
        return replace(self, of=words) if mends and not self.of else self

    def __str__(self) -> str:
        return f"{self.command}   # {self.why}" if self.why else self.command


def adding(*options: str | Path, why: str = "", scale: float | None = None) -> Try:
    """A remedy that adds these options to the command that was refused."""
    return Try(why=why, options=options, scale=scale)


class LoraforgeError(Exception):
    """Base of every refusal. The text says what is wrong and where; `remedies` says what to type next."""

    state = ""
    """The state of the remote, if one was touched: the last line of the message."""

    def __init__(self, message: str, *remedies: Try | str) -> None:
        super().__init__(told(message))
        self.remedies = tuple(r if isinstance(r, Try) else Try(r) for r in remedies)

    def __str__(self) -> str:
        tries = [f"try: {r.command}{f'  # {r.why}' if r.why else ''}" for r in self.remedies]
        return "\n".join([super().__str__(), *tries])

    @property
    def message(self) -> str:
        """The text without the remedies."""
        return super().__str__()


def no_such(
    what: str, name: str, known: Iterable[str], *remedies: Try | str,
    kind: type[LoraforgeError] = LoraforgeError, which: str = "",
) -> LoraforgeError:  # fmt: skip
    """The refusal of a name that is none of the known ones, which it lists; to type the nearest is the first remedy.

    `which`: what all of the known ones are, if not every `what` is.
    """
    words = list(known)
    near = difflib.get_close_matches(name.lower(), words, 1)
    meant = "".join(f" Did you mean {one}?" for one in near)
    text = f"there is no {what} {shown(name)}{which and f' {which}'}; there are {', '.join(words)}.{meant}"
    return kind(text, *(Try(one, instead=name) for one in near), *remedies)


def names_in(path: str | Path) -> Try:
    """The remedy that shows what a file of tensors holds, if only its reader can tell what is wrong."""
    return Try(command("loraforge", "inspect", "--skeleton", path), "every name in it")


def absent(
    path: str | Path, *remedies: Try | str, what: str = "", kind: type[LoraforgeError] | None = None
) -> LoraforgeError:
    """The refusal of a path that is no file or does not exist; it gives the names most like it in the last folder.

    To type the nearest is the first remedy, if it is alike or the only one. `what`: the option that the path is of.
    """
    typed = Path(path)
    here = next((above for above in typed.parents if os.path.lexists(above)), Path())
    missing, names = here / typed.relative_to(here).parts[0], list[str]()
    text = f"{what and f'{what} '}{path} does not exist"
    if typed.exists():
        kept = "a folder, and a file is asked for" if typed.is_dir() else "no file that can be read"
        return (kind or FileError)(f"{what and f'{what} '}{path} is {kept}.", *remedies)
    if typed.is_symlink() or not here.is_dir():
        odd = "it is a link to nothing" if typed.is_symlink() else f"{here} is no folder"
        return (kind or FileError)(f"{text}: {odd}.", *remedies)
    with suppress(OSError):
        names = [child.name for child in here.iterdir() if not child.name.startswith(".")]
    alike = {name: difflib.SequenceMatcher(None, name.lower(), missing.name.lower()).ratio() for name in names}
    names.sort(key=lambda name: (-alike[name], name))
    near = names[:1] if len(names) == 1 or (names and alike[names[0]] >= _ALIKE) else []
    text += f", nor does {missing}" if missing != typed else ""
    text += f"; {'this folder' if here == Path() else here} has {listed(near or names, 3)}" if names else ""
    meant = [Try(str(here / name), instead=str(path)) for name in near if missing == typed]
    return (kind or FileError)(f"{text}.", *meant, *remedies)


def as_commands(error: LoraforgeError, *words: str | Path) -> LoraforgeError:
    """The same refusal, its options added to the command `words`: for a command that does not have these options."""
    error.remedies = tuple(remedy.added_to(*words) for remedy in error.remedies)
    return error


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault of an architecture or layout file."""

    text: str
    names: tuple[str, ...] = ()
    """The modules and segments that it is about, to find their line."""
    layout: str = ""
    """The layout that it is in; empty if it is about the whole file."""

    def __str__(self) -> str:
        return f"layout {self.layout}: {self.text}" if self.layout else self.text


class LayoutError(LoraforgeError):
    """An architecture or layout file is not a one-to-one description; every problem is listed."""

    def __init__(self, where: str, problems: Sequence[Fault]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"{where}: {'; '.join(map(str, problems))}")


class FileError(LoraforgeError):
    """A file is damaged, hostile, or of another kind than the one asked for."""


class FolderError(FileError):
    """A folder in which no adapter was found."""


class SeveralError(FolderError):
    """A folder holds several adapters: the user chooses."""


class FormatError(LoraforgeError):
    """The tensors are readable, but they are not an adapter of the format asked for."""


class NoAdapterError(FormatError):
    """The file is whole, but it is not an adapter of the format asked for."""


class VariantError(FormatError):
    """The adapter is whole, but its configuration makes it more than A and B, which only PEFT can apply."""


class NamesError(FormatError):
    """Some of the keys do not belong to the format, or to no module of the architecture."""


class BaseError(FormatError):
    """The adapter is whole, but no released base model of its width has all modules that it adapts."""


class ScaleError(LoraforgeError):
    """The scale at which the adapter was trained is unknown, contradictory or impossible."""


class ReadingsError(ScaleError):
    """A recorded scale has two meanings, and nothing in the file shows the right one."""


class ConversionError(LoraforgeError):
    """The adapter has no exact representation in the target."""


class VerificationError(LoraforgeError):
    """The result does not do what the source does. Nothing was kept."""


class HubError(LoraforgeError):
    """The Hugging Face Hub does not have what was asked for, does not allow it, or cannot be reached."""


class OutputError(LoraforgeError):
    """The destination cannot be written."""


PIPELINE = (
    "torch>=2.6", "diffusers>=0.34", "peft>=0.17", "transformers>=4.50", "imageio[ffmpeg]>=2.37", "imageio-ffmpeg>=0.6",
    "pillow>=11.1", "psutil>=5.9", "scikit-image>=0.25",
)  # fmt: skip
"""What the extra `pipeline` of pyproject.toml installs: by these names it is found wherever loraforge is not."""


@contextmanager
def of_pipeline(what: str) -> Iterator[None]:
    """Around imports of the extra `pipeline`: raises LoraforgeError with the command to install what is missing."""
    try:
        yield
    except ImportError as error:
        text = f"{what} needs {error.name or error}, which is not installed here."
        raise LoraforgeError(text, command("pip", "install", *PIPELINE)) from error


def leaving_out(paths: Iterable[str]) -> Try:
    """The options that convert an adapter without these modules of all blocks, in as few patterns as possible."""
    blocks = re.compile(r"(?<![^.])\d+(?=\.)")  # no other number: linear1 may be dropped, and linear2 kept
    patterns = sorted({blocks.sub("*", path) for path in paths}, key=lambda pattern: (len(pattern), pattern))
    fewest = [p for n, p in enumerate(patterns) if not any(fnmatchcase(p, other) for other in patterns[:n])]
    words = (word for pattern in fewest for word in ("--drop", pattern))
    return adding(*words, why="convert the others without them")
