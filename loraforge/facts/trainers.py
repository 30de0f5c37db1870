"""Reads the table of training programs (trainers.toml)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import tomli


@cache
def trainers() -> dict[str, dict[str, Any]]:
    """Name (a value of `--trained-by`) -> the entry of that trainer."""
    return tomli.loads((Path(__file__).parent / "trainers.toml").read_text("utf-8"))
