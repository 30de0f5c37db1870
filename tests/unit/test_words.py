"""README and --help say no `any`, `every` or `all` of which no test is named here."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from loraforge.cli.app import main

WIDE = re.compile(r"\b(any|every|all|everything|anything)\b", re.IGNORECASE)
SHOWN = {
    "in all six directions": "interop/test_six_directions.py",
    "Or every trainer known": "unit/scale/test_writers.py",
    "without any load_lora_weights": "interop/test_fuse.py",
}
"""Phrase of README -> the test that shows it."""


def verbs() -> dict[str, click.Command]:
    found: dict[str, click.Command] = {"": main}
    for name, command in main.commands.items():
        found[name] = command
        found |= {f"{name} {inner}": c for inner, c in getattr(command, "commands", {}).items()}
    return found


@pytest.mark.parametrize("name", verbs())
def test_help_promises_no_more_than_is_shown(name: str) -> None:
    command = verbs()[name]
    text = command.get_help(click.Context(command, info_name=name))
    assert not WIDE.findall(text), text


def test_readme_promises_no_more_than_is_shown() -> None:
    root = Path(__file__).parents[2]
    text = re.sub(r"```.*?```", "", (root / "README.md").read_text("utf-8"), flags=re.DOTALL)
    for phrase, test in SHOWN.items():
        assert (root / "tests" / test).is_file()
        text = text.replace(phrase, "")
    assert not [line for line in text.splitlines() if WIDE.search(line)]
