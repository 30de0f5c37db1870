"""The package's own data: TOML tables beside the modules that read them, and the JSON Schemas."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import tomli

_PACKAGE = Path(__file__).parent
SCHEMAS = ("plugin", "architecture")
"""The schema of a plugin's data file, and the one it refers to."""


@cache
def package_table(name: str) -> dict[str, Any]:
    """A TOML file of the package: `facts/trainers`. The result is shared, so do not change it."""
    return tomli.loads((_PACKAGE / f"{name}.toml").read_text("utf-8"))


def package_tables(folder: str) -> dict[str, dict[str, Any]]:
    """Every TOML file in a folder of the package, by its name without the suffix."""
    names = sorted(file.stem for file in (_PACKAGE / folder).glob("*.toml"))
    return {name: package_table(f"{folder}/{name}") for name in names}


def with_tuples(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of a table for a frozen dataclass: its lists as tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}


def schema(name: str) -> str:
    """The text of a JSON Schema, for example `plugin`, from the package or from the clone around it."""
    inside = _PACKAGE / "schemas"
    folder = inside if inside.is_dir() else _PACKAGE.parent / "schemas"
    return (folder / f"{name}.schema.json").read_text("utf-8")
