"""Write the tables of record-the-scale.md anew from loraforge/facts/trainers.toml and docs/trainer_runs.toml."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tomli

from loraforge.tables import package_table

PAGE = Path(__file__).parent / "record-the-scale.md"
RUNS = Path(__file__).parent / "trainer_runs.toml"


def rows() -> list[list[str]]:
    """One line per trainer, those that leave the scale out first."""
    entries = sorted(package_table("facts/trainers").items(), key=lambda entry: "writes" not in entry[1])
    return [
        [trainer["title"], _alpha(name, trainer), _files(trainer.get("writes", {})), _files(trainer.get("records", {}))]
        for name, trainer in entries
    ]


def _alpha(name: str, trainer: Mapping[str, Any]) -> str:
    if "alpha" not in trainer:
        return ""
    if trainer["alpha"] == "recorded":
        return f"as recorded (`{name}`)"
    value = (
        "the rank"
        if trainer["alpha"] == "rank"
        else f"{trainer['alpha']}, at rank {' or '.join(map(str, trainer['ranks']))}"
    )
    return f"{value}{', always' if trainer.get('fixed') else ''} (`{name}`)"


def _files(forms: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"`{form}`: {', '.join(sorted(names)).replace('*', 'any model')}" for form, names in forms.items())


def runs() -> list[list[str]]:
    """One line per trainer whose saving function was run: its revision, and what became of its files."""
    lines = []
    for run in tomli.loads(RUNS.read_text("utf-8"))["runs"]:
        counts = "; ".join(f"{name} {right}/{right + refused}" for name, (right, refused) in run["files"].items())
        lines.append([run["trainer"], f"{run['commit']}, {run['date']}", counts, run.get("refused", "")])
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |").replace("|  |", "| |") for line in lines)


def renewed(text: str) -> str:
    """The page with its tables as the data has it."""
    head = ["trainer", "`lora_alpha` (and what `--trained-by` takes)", "files without the scale", "files with it"]
    ran = ["trainer", "commit, date", "right without a flag / files", "refused"]
    for name, table in (("trainers", _table(head, rows())), ("runs", _table(ran, runs()))):
        text = re.sub(
            rf"(<!-- {name} -->\n).*?(<!-- end -->)", lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.DOTALL
        )
    return text


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text("utf-8")), "utf-8")
