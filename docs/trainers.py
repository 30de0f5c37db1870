"""Write the table of record-the-scale.md anew from loraforge/facts/trainers.toml."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loraforge.tables import package_table

PAGE = Path(__file__).parent / "record-the-scale.md"


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


def renewed(text: str) -> str:
    """The page with its table as the data has it."""
    head = ["trainer", "`lora_alpha` (and what `--trained-by` takes)", "files without the scale", "files with it"]
    lines = [head, ["---"] * len(head), *rows()]
    table = "\n".join(f"| {' | '.join(line)} |".replace("|  |", "| |").replace("|  |", "| |") for line in lines)
    return re.sub(r"(<!-- trainers -->\n).*?(<!-- end -->)", lambda m: f"{m[1]}{table}\n{m[2]}", text, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text("utf-8")), "utf-8")
