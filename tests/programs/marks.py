"""The marks of runtimes.toml, `run = [...]`, for the programs that are measured here."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import loraforge
from programs.doctors import mark, row_of

TABLE = Path(loraforge.__file__).parent / "programs" / "programs.toml"


def marked(text: str, results: dict[str, Any]) -> str:
    """The table with each measured version in the mark of its row."""
    rows: dict[str, list[str]] = {}
    for title, found in sorted(results["programs"].items(), key=lambda item: _version(item[0])):
        said = {key: value for key, value in mark(title, found).items() if value != ""}
        line = ", ".join(f"{key} = {json.dumps(value)}" for key, value in said.items())
        rows.setdefault(row_of(title), []).append(f"{{ {line} }}")
    for row, runs in rows.items():
        head = re.escape(f"[{row}]" if row.isalpha() else f'["{row}"]')
        section = re.compile(rf"(^{head}\n(?:(?!\[).*\n)*?)run = .*$", re.MULTILINE)
        text, count = section.subn(lambda found, runs=runs: f"{found[1]}run = [{', '.join(runs)}]", text)
        assert count == 1, f"{row} has no mark yet"
    return text


def _version(title: str) -> tuple[int, ...]:
    return tuple(map(int, title.rpartition(" ")[2].split(".")))
