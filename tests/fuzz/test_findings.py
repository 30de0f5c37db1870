"""Every fault that was found so: its input, made small, in findings/PARSER.what.suffix."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from fuzz.parsers import PARSERS
from loraforge.errors import LoraforgeError

FINDINGS = sorted((Path(__file__).parent / "findings").iterdir())


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_what_was_found_is_refused_or_read(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "place").mkdir()
    with contextlib.suppress(LoraforgeError):
        PARSERS[path.name.partition(".")[0]].read(path.read_bytes(), tmp_path / "place")
