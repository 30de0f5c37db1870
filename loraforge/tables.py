"""The package's own data: tables that lie beside the modules that read them, and the JSON Schemas."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import tomli

_PACKAGE = Path(__file__).parent
SCHEMAS = ("plugin", "architecture")
"""The schema of a plugin's data file, and the one it refers to."""


@cache
def package_table(name: str) -> dict[str, Any]:
    """A TOML file of the package, as `facts/trainers`. Shared: it is not to be changed."""
    return tomli.loads((_PACKAGE / f"{name}.toml").read_text("utf-8"))


def package_tables(folder: str) -> dict[str, dict[str, Any]]:
    """Every TOML file of a folder of the package, by its name without the ending."""
    names = sorted(file.stem for file in (_PACKAGE / folder).glob("*.toml"))
    return {name: package_table(f"{folder}/{name}") for name in names}


def schema(name: str) -> str:
    """The text of a JSON Schema, as `plugin`: of the package, or of the clone it lies in."""
    inside = _PACKAGE / "schemas"
    folder = inside if inside.is_dir() else _PACKAGE.parent / "schemas"
    return (folder / f"{name}.schema.json").read_text("utf-8")
