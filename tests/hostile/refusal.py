"""What a refusal is, and what must be left as it was."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from click.testing import CliRunner

from loraforge.cli.app import main

LONGEST = 20_000
"""Characters of a message; nobody reads more, and a file must not be able to fill the terminal."""

MOST_MEMORY = 400
"""Megabytes; a conversion of a small file has 60."""

PROGRAMS = ("loraforge", "cat", "df", "git", "grep", "head", "mv", "python", "rm", "unzip")
"""What a remedy may ask a user to type; any other comes from the hostile file."""


def proper(stderr: str, fragments: tuple[str, ...], folder: Path) -> str:
    """The message of a refusal: one sentence on one line, then what to do next, if that helps. Each command runs.

    The fragments must stand in it, outside the name of the folder the test works in.
    """
    assert "Traceback" not in stderr, stderr[-LONGEST:]
    assert len(stderr) < LONGEST
    assert all(character.isprintable() or character == "\n" for character in stderr), ascii(stderr)
    message, *remedies = stderr.removesuffix("\n").split("\n")
    assert message.startswith("Error: "), stderr
    for remedy in remedies:
        assert remedy.startswith("  try: "), stderr
        program, *words = shlex.split(remedy.removeprefix("  try: "), comments=True)
        assert program in PROGRAMS, stderr
        if program == "python":
            assert words[0] == "-c", stderr
            compile(words[1], remedy, "exec")
        if program == "loraforge":
            result = CliRunner().invoke(main, words)
            assert result.exit_code in (0, 1), f"{remedy} -> {result.output}"
            assert isinstance(result.exception, SystemExit | None), f"{remedy}: {result.exception!r}"
            for line in (line for line in result.stderr.splitlines() if line.startswith("Error: ")):
                assert not same(line, message), f"{remedy} is refused in the same words: {message}"
    for fragment in fragments:
        assert fragment.lower() in message.replace(str(folder), "").lower(), message
    return message


def same(one: str, other: str) -> bool:
    """Whether two refusals say the same, one perhaps with more words around it."""
    one, other = (re.sub(r"[\s.]+$", "", re.sub(r"\s+", " ", text)) for text in (one, other))
    short, long = sorted((one, other), key=len)
    return short == long or (len(short) > 40 and short in long)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path under a folder, and the size and time of change of its files."""
    return {
        str(path): (0, 0) if path.is_dir() else (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }
