"""TODO."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import tomli


@cache
def trainers() -> dict[str, dict[str, Any]]:
    """The table of trainers, by the name `--trained-by` takes."""
    return tomli.loads((Path(__file__).parent / "trainers.toml").read_text("utf-8"))
