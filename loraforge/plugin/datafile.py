"""Reads a plugin's TOML file that follows the schema."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import tomli
from platformdirs import user_cache_path

from loraforge.plugin.host import DataFile
from loraforge.tables import SCHEMAS, schema


def read(file: DataFile) -> dict[str, Any]:
    """The tables of a data file that follows the schema. Raises PluginDataError with every problem.

    The user's cache remembers by its digest that a text has no fault.
    """
    mark = _mark(file)
    if mark and mark.exists():
        return tomli.loads(file.read_text("utf-8"))
    from loraforge.plugin.schema_check import PluginDataError, look  # with the validator, which takes 100 ms

    data, problems = look(file)
    if problems:
        raise PluginDataError(file.name, problems)
    if mark:
        with suppress(OSError):
            mark.parent.mkdir(parents=True, exist_ok=True)
            mark.touch()
    return data


def _mark(file: DataFile) -> Path | None:
    """The file that exists if this text has no fault by this schema; None if the text cannot be read."""
    try:
        texts = [file.read_text("utf-8"), *map(schema, SCHEMAS)]
    except (OSError, ValueError):
        return None
    return user_cache_path("loraforge") / "sound" / hashlib.sha256("\0".join(texts).encode()).hexdigest()
