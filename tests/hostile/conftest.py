"""Runs the command line on a hostile file, here or in a process of its own, and checks the refusal in full."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hostile.base_builders import BASES
from hostile.refusal import LONGEST, MOST_MEMORY, listing, proper
from loraforge.cli.app import main

Words = Sequence[object] | Path
"""The words after `loraforge convert`; or the source alone."""
Check = Callable[..., str]


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
    """Run `loraforge convert`, and prove that it refuses as it should. Returns the message."""

    def check(words: Words, *fragments: str) -> str:
        before = listing(tmp_path)
        result = CliRunner().invoke(main, whole(words, out))
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        assert (result.exit_code, result.stdout) == (1, ""), result.output
        assert listing(tmp_path) == before, "something was left behind"
        return proper(result.stderr, fragments, tmp_path)

    return check


@pytest.fixture
def alone(out: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """Run `loraforge convert` in a process of its own. Returns how that ended, and what child.py saw."""
    report = tmp_path_factory.mktemp("report") / "report.json"

    def run(words: Words, seconds: int = 15, file_size: int | None = None) -> tuple[Any, dict[str, Any]]:
        child = [Path(__file__).with_name("child.py"), report, "" if file_size is None else file_size]
        command = [sys.executable, *map(str, child), *whole(words, out)]
        ended = subprocess.run(command, capture_output=True, timeout=seconds, encoding="utf-8")
        return ended, json.loads(report.read_text()) if report.exists() else {}

    return run


@pytest.fixture
def refused_alone(tmp_path: Path, alone: Callable[..., tuple[Any, dict[str, Any]]]) -> Check:
    """As `refused`, in a process of its own, which must execute nothing and stay small and quick."""

    def check(words: Words, *fragments: str, **limits: int) -> str:
        before = listing(tmp_path)
        ended, seen = alone(words, **limits)
        assert (ended.returncode, ended.stdout) == (1, ""), ended.stderr[-LONGEST:]
        assert listing(tmp_path) == before, "something was left behind"
        assert seen.get("events", []) == []
        assert seen.get("peak", 0) < MOST_MEMORY
        return proper(ended.stderr, fragments, tmp_path)

    return check


def whole(words: Words, out: Path) -> list[str]:
    """The command line, with a target and a destination where the words name none."""
    texts = [str(word) for word in ([words] if isinstance(words, Path) else words)]
    target = [] if "--to" in texts else ["--to", "diffusers"]
    return ["convert", *target, *([] if "-o" in texts else ["-o", str(out)]), *texts]


@pytest.fixture
def spares(tmp_path: Path) -> Check:
    """Prove that a command refuses as it should, changes nothing, and that what it proposes to add helps."""

    def check(words: tuple[object, ...], *fragments: str) -> str:
        before = listing(tmp_path), listing(BASES)
        result = CliRunner().invoke(main, [str(word) for word in words])
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        assert (result.exit_code, result.stdout) == (1, ""), result.output
        assert (listing(tmp_path), listing(BASES)) == before, "something was changed or left behind"
        notes, mark, message = result.stderr.rpartition("Error: ")
        assert all(line.startswith("note: ") for line in notes.splitlines()), result.stderr
        return proper(mark + message, fragments, tmp_path)

    return check
