"""One guard for every parser of foreign bytes: whatever goes wrong inside it becomes one refusal with a next step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loraforge.errors import FileError, LoraforgeError, Try
from loraforge.text import plain


@contextmanager
def reading(
    where: str | Path, what: str, *remedies: Try | str, kind: type[LoraforgeError] = FileError, then: str = ""
) -> Iterator[None]:
    """Around a parser, and the checks of the shape of what it parsed: any error in it becomes one of `kind`.

    `where` the bytes are, `what` they are read as. `then`: the last sentence.
    Refusals pass as they are, and MemoryError, which is no fault of the file.
    """
    try:
        yield
    except (LoraforgeError, MemoryError):
        raise
    except Exception as error:  # parsers raise what they like: PyYAML an IndexError for `!!int ""`
        text = f"{where} cannot be read as {what}: {reason(error)}."
        raise kind(f"{text} {then}" if then else text, *remedies) from error


def reason(error: BaseException) -> str:
    """What an error says, in one line; with its name, if it was not made to be read."""
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    text = plain(str(getattr(error, "strerror", None) or error).strip().partition("\n")[0], 200).rstrip(".")
    mark = getattr(error, "problem_mark", None)  # of PyYAML, whose first line says what, and not where
    text += f" (line {mark.line + 1})" if mark else ""
    meant = text and (isinstance(error, OSError | ValueError) or type(error).__module__ != "builtins")
    return text if meant else ": ".join(filter(None, (type(error).__name__, text)))


def content(path: Path, most: int) -> bytes:
    """The bytes of a file of at most `most` bytes. Raises OSError or ValueError: call it inside `reading`."""
    if path.exists() and not path.is_file():  # opening a pipe would wait for ever
        raise ValueError("it is no file")
    with path.open("rb") as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most >> 20} MB" if most >> 20 else f"it has more than {most >> 10} kB")
    return data
