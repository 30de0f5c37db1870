"""Words users read: paths as they know them, commands they can type, lists and sizes."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from functools import cache
from pathlib import Path

_STANDS_FOR: dict[str, tuple[str, str]] = {}
"""Folder on this machine -> the address of the Hub that its files came from, as it was typed and with its commit."""


def stands_for(folder: Path, address: str, pinned: str) -> None:
    """From now on, messages and commands name `address` instead of `folder`."""
    _STANDS_FOR[str(folder)] = address, pinned


def told(text: str | Path) -> str:
    """A path, or a text with paths in it, as the user typed them."""
    text = str(text)
    for folder, (address, _) in _STANDS_FOR.items():
        text = text.replace(folder, address)
    return text


def recorded(path: Path) -> str:
    """A path as a written file may record it: its name without folders, or its address on the Hub."""
    for folder, (_, pinned) in _STANDS_FOR.items():
        if path.is_relative_to(folder):
            return "/".join([pinned, *path.relative_to(folder).parts])
    return Path(os.path.abspath(path)).name  # noqa: PTH100 - it removes `.` and `..`, and follows no links


def plain(text: str, most: int = 4000) -> str:
    """Text from a file, made safe for a terminal: one line, no control characters, at most `most` characters."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: most + 1])
    return line if len(line) <= most else f"{line[:most]}..."


_MARKDOWN = re.compile(r"[\\`*\[\]<>|~&$#]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.|@")
"""What makes Markdown or HTML of a text: links, pictures, emphasis, cells, entities, addresses that become links."""


def markdown(text: str, most: int = 4000) -> str:
    """Text from a file for a line or a cell of Markdown, in which it stands as it is."""
    return _MARKDOWN.sub(lambda match: "&#64;" if match[0] == "@" else f"\\{match[0]}", plain(text, most))


def code(text: str, most: int = 4000) -> str:
    """Text from a file as code within a line of Markdown."""
    line = plain(text, most)
    fence = "`" * (max(map(len, re.findall("`+", line)), default=0) + 1)
    return f"{fence} {line} {fence}" if "`" in line else f"`{line}`"


def shown(value: object) -> str:
    """A value of a file, for a message. Containers are named, not printed: a printed one may have no end."""
    if isinstance(value, int) and abs(value) >= 1 << 64:
        return "a number of too many digits"
    return f"{value!r:.40}" if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"


def command(*words: str | Path) -> str:
    """The words as one line for a shell, quoted if needed. A path is never mistaken for an option."""
    texts = [f"./{word}" if isinstance(word, Path) and str(word).startswith("-") else told(word) for word in words]
    return shlex.join(texts)


HUB = "https://huggingface.co"
"""The address in cards and pages, even if the user reads from a mirror."""


def hf(*words: str, page: str) -> str:
    """A command of the Hub's client; if the installed version is too old for it, the command that opens `page`."""
    return command("hf", *words) if hub_client() >= (1, 32) else f"python -m webbrowser {HUB}/{page}"


@cache
def hub_client() -> tuple[int, ...]:
    """The version of huggingface_hub that is installed."""
    from importlib.metadata import version

    return tuple(int(part) for part in version("huggingface_hub").split(".")[:2])


def options(values: Mapping[str, object]) -> list[str]:
    """The given values as options of a recorded command line: no defaults, and paths without folders."""
    words = list[str]()
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        for one in value if isinstance(value, list | tuple) else [value]:
            if one is None or one is False or one in ("tensors", "keep"):  # by identity: a stated scale of 0 is one
                continue
            words.append(flag)
            if isinstance(one, Path):
                words.append(one.name)
            elif one is not True:
                words.append(f"{one:.12g}" if isinstance(one, float) else str(one))
    return words


def listed(items: list[str], most: int = 20) -> str:
    """`a, b, c`; after `most` items, the number of the others."""
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


def fraction(value: float) -> str:
    """`1/128 = 0.0078125`, or the plain number if it is no short fraction."""
    number, short = f"{value:.6g}", short_fraction(value)
    return number if short == number else f"{short} = {number}"


def short_fraction(value: float) -> str:
    """`1/128`, or the plain number if it is no short fraction."""
    inverse = 1 / value if value else 0.0
    is_short = 2 <= inverse <= 4096 and abs(inverse - round(inverse)) < 1e-9
    return f"1/{inverse:.0f}" if is_short else f"{value:.6g}"


def megabytes(count: int) -> str:
    """A number of bytes in MB or kB."""
    return f"{count / 1e6:,.0f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} kB"
