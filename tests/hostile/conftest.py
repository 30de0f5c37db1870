"""What a refusal is: checked in full, for every hostile file, by the two fixtures `refused` and `refused_alone`."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from loraforge.cli import main

Check = Callable[..., str]
LONGEST = 8_000
"""Characters of a message; nobody reads more, and a file must not be able to fill the terminal."""

PROGRAMS = ("loraforge", "cat", "df", "file", "git", "grep", "head", "ls", "mv", "rm", "unzip")
"""What a remedy may ask a user to type; any other comes from the hostile file."""


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Remedies may write to the current folder and to the home folder: both are temporary."""
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path_factory.mktemp("home")))
    monkeypatch.chdir(tmp_path_factory.mktemp("current"))
    return Path.home()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A destination folder that does not exist."""
    return tmp_path / "out"


@pytest.fixture
def refused(tmp_path: Path, out: Path) -> Check:
    """Run `loraforge convert` with these words, and prove that it refuses them as it should. Returns the message."""

    def check(words: Sequence[object] | Path, *fragments: str) -> str:
        words = [words] if isinstance(words, Path) else list(words)
        before = listing(tmp_path)
        result = CliRunner().invoke(main, ["convert", *completed(words, out)])
        assert isinstance(result.exception, SystemExit), result.exception
        assert (result.exit_code, result.stdout) == (1, ""), result.output
        assert listing(tmp_path) == before, "something was left behind"
        return proper(result.stderr, *fragments)

    return check


@pytest.fixture
def alone(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Run `loraforge convert` in a process of its own. Returns how that ended, and what child.py saw."""
    report = tmp_path_factory.mktemp("report") / "report.json"

    def run(
        words: Sequence[object] | Path, seconds: int = 15, file_size: int | None = None
    ) -> tuple[Any, dict[str, Any]]:
        words = [words] if isinstance(words, Path) else list(words)
        child = [
            sys.executable,
            str(Path(__file__).with_name("child.py")),
            str(report),
            "" if file_size is None else str(file_size),
        ]
        ended = subprocess.run(
            [*child, "convert", *completed(words, out)], capture_output=True, timeout=seconds, encoding="utf-8"
        )
        return ended, json.loads(report.read_text()) if report.exists() else {}

    return run


@pytest.fixture
def refused_alone(tmp_path: Path, alone: Callable[..., tuple[Any, dict[str, Any]]]) -> Check:
    """As `refused`, in a process of its own, which must execute nothing and stay small and quick."""

    def check(words: Sequence[object] | Path, *fragments: str, **limits: int) -> str:
        before = listing(tmp_path)
        ended, seen = alone(words, **limits)
        assert (ended.returncode, ended.stdout) == (1, ""), ended.stderr[-LONGEST:]
        assert listing(tmp_path) == before, "something was left behind"
        assert seen.get("events", []) == []
        assert seen.get("peak", 0) < 400, "megabytes of memory"
        return proper(ended.stderr, *fragments)

    return check


def completed(words: Sequence[object], out: Path) -> list[str]:
    """The words, with a target and a destination where they name none."""
    texts = [str(word) for word in words]
    return [*(() if "--to" in texts else ("--to", "diffusers")), *(() if "-o" in texts else ("-o", str(out))), *texts]


def proper(stderr: str, *fragments: str) -> str:
    """The message of a refusal: one sentence on one line, then what to do next, and each of those commands runs."""
    assert "Traceback" not in stderr
    assert len(stderr) < LONGEST
    assert all(character.isprintable() or character == "\n" for character in stderr), ascii(stderr)
    message, *remedies = stderr.removesuffix("\n").split("\n")
    assert message.startswith("Error: "), stderr
    assert remedies, f"no remedy: {stderr}"
    for remedy in remedies:
        assert remedy.startswith("  try: "), stderr
        words = shlex.split(remedy.removeprefix("  try: "), comments=True)
        assert words, stderr
        assert words[0] in PROGRAMS, stderr
        if words[0] == "loraforge":
            result = CliRunner().invoke(main, words[1:])
            assert result.exit_code in (0, 1), f"{remedy} -> {result.output}"
            assert result.exception is None or isinstance(result.exception, SystemExit), (
                f"{remedy}: {result.exception!r}"
            )
    for fragment in fragments:
        assert fragment.lower() in message.lower(), message
    return message


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path under a folder, and the size and time of change of its files."""
    return {
        str(path): (0, 0) if path.is_dir() else (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
    }
