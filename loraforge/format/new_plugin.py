"""Writes a ready plugin package: a data file, three lines of Python, a conformance test."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from loraforge.errors import LoraforgeError, OutputError, Try
from loraforge.format.registry import formats
from loraforge.tables import package_table
from loraforge.text import command


def new_plugin(name: str, out: str | Path | None = None) -> Path:
    """Write the package of a format called `name` and return its folder.

    Raises LoraforgeError if the name is malformed or taken, OutputError if the folder exists or cannot be written.
    """
    if re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) is None:
        other = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "my-format"
        text = f"{name!r} is no name of a format: small letters, digits, hyphens."
        raise LoraforgeError(text, command("loraforge", "plugins", "new", other))
    if name in formats():
        other = command("loraforge", "plugins", "new", f"my-{name}")
        raise LoraforgeError(f"there is a format {name} already.", Try(other, "another name"))
    folder = Path(out) if out else Path(f"loraforge-{name}")
    if folder.exists():
        again = command("loraforge", "plugins", "new", name, "-o", Path(f"{folder}-2"))
        raise OutputError(f"{folder} exists.", again)
    module = f"loraforge_{name.replace('-', '_')}"
    words = {"name": name, "module": module, "test": name.replace("-", "_")}
    try:
        for path, text in package_table("format/new_plugin").items():
            file = folder / Template(path).substitute(words)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(Template(text).substitute(words), "utf-8")
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror}.") from error
    return folder
