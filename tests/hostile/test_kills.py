"""A few kills at random moments; tests/hostile/kills.json keeps what hundreds of them did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

KILLS = Path(__file__).with_name("kills.py")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="it forks, and folders change places on Linux alone")
LONG = ("convert-force-peft", "convert", "fuse", "convert-base", "push", "pairs")


@pytest.mark.parametrize(
    "name", ["convert-force", "stamp", *(pytest.param(name, marks=pytest.mark.long) for name in LONG)]
)
def test_old_or_new_and_no_rest(name: str) -> None:
    done = subprocess.run([sys.executable, KILLS, name, "--kills", "6"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_long_run_was_clean() -> None:
    kept = json.loads(KILLS.with_suffix(".json").read_text("utf-8"))
    assert {"convert-force", "stamp", "fuse", "convert-base", "push", "pairs"} <= kept.keys()
    for name, counts in kept.items():
        assert not counts.get("mixed") and not counts.get("rest"), name
