"""The formats that are installed, and the plugins they come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from loraforge.errors import FormatError, Try, no_such
from loraforge.format.data import DataFormat
from loraforge.format.diffusers import DiffusersFormat
from loraforge.format.other import OtherFormat
from loraforge.format.peft import PeftFormat
from loraforge.format.protocol import Format
from loraforge.format.sat import SatFormat
from loraforge.fusion.choose import read_backends
from loraforge.names.catalog import read_architectures, read_data_files
from loraforge.plugin.host import BUILT_IN, Plugin, load
from loraforge.plugin.registry import Reading, Registry, current
from loraforge.tables import package_tables
from loraforge.text import command

FORMATS: tuple[Format, ...] = (
    SatFormat(),
    DiffusersFormat(),
    PeftFormat(),
    *map(DataFormat, (table["format"] for table in package_tables("format/flavours").values())),
    OtherFormat(),
)
"""The formats that are built in: three in code, the flavours, which are data, and what reads the rest."""
_MEMBERS = ("name", "summary", "layouts", "options", "storage", "writer", "find", "claims", "read")
"""What a format must have; see `loraforge.formats.Format`."""
Formats = tuple[dict[str, Format], dict[str, str]]
"""Every format by name, and the plugin that each comes from."""


def read_formats(registry: Registry) -> Reading[Formats]:
    """Every format. An object that is no format, or has a name already taken, is left out and noted as a fault."""
    by_name, owners = dict[str, Format](), dict[str, str]()
    reading = Reading((by_name, owners))

    def add(owner: str, form: Format) -> None:
        if form.name in owners:
            reading.fault(owner, f"format {form.name!r} is already added by {owners[form.name]}; this one is left out")
        else:
            by_name[form.name], owners[form.name] = form, owner
            reading.adds.append((owner, f"format {form.name}"))

    ours = [(BUILT_IN, form) for form in FORMATS]
    for owner, item in [*ours, *registry.read(load).value.returned["loraforge_formats"]]:
        if hasattr(item, "read_text"):
            continue
        lacking = [member for member in _MEMBERS if not hasattr(item, member)]
        name = getattr(item, "name", None)
        if lacking or not isinstance(name, str) or re.fullmatch(r"[a-z0-9][a-z0-9-]*", name) is None:
            why = f"without {', '.join(lacking)}" if lacking else f"with the name {name!r:.60}"
            reading.fault(owner, f"loraforge_formats returned {type(item).__name__} {why}: that is no format")
        else:
            add(owner, item)
    known = registry.read(read_architectures).value
    for file in registry.read(read_data_files).value:
        if "format" not in file.tables:
            continue
        form = DataFormat(file.tables["format"])
        layouts = form.layouts_in(known)
        unknown = [f"{arch}/{n}" for arch, n in layouts.items() if arch in known and n not in known[arch].layouts]
        if not layouts.keys() & known.keys():
            unknown = [f"{arch}/{n}" for arch, n in layouts.items()] or ["of the name it gives"]
        if unknown:
            reading.fault(file.owner, f"{file.name}: there is no layout {', '.join(unknown)}")
        else:
            add(file.owner, form)
    return reading


_READERS = (load, read_data_files, read_architectures, read_formats, read_backends)


def known_plugins() -> dict[str, Plugin]:
    """Every plugin by name, with everything it adds and all its faults."""
    readings: list[Reading[Any]] = [current().read(reader) for reader in _READERS]
    return {
        name: replace(
            plugin,
            adds=tuple(what for reading in readings for owner, what in reading.adds if owner == name),
            errors=tuple(what for reading in readings for owner, what in reading.faults if owner == name),
        )
        for name, plugin in current().read(load).value.plugins.items()
    }


def broken() -> list[Plugin]:
    """The plugins that have faults."""
    return [plugin for plugin in known_plugins().values() if plugin.errors]


def formats() -> Mapping[str, Format]:
    """Every format by name."""
    return current().read(read_formats).value[0]


def owners() -> Mapping[str, str]:
    """The plugin that each format comes from."""
    return current().read(read_formats).value[1]


def renamed(name: str) -> tuple[str, str]:
    """The present name of the format that had this name earlier, and what is said of that; the name itself and ""."""
    if name in formats():
        return name, ""
    earlier = {
        old: (form.name, note) for form in formats().values() for old, note in getattr(form, "aliases", {}).items()
    }
    return earlier.get(name, (name, ""))


def named(name: str, *, written: bool = False) -> Format:
    """The format of that name, present or earlier. Raises FormatError with the known names and faulty plugins.

    `written`: only those that are written count.
    """
    known = {each: form for each, form in formats().items() if form.writer or not written}
    if (present := renamed(name.lower())[0]) not in known:
        faulty = [Try(command("loraforge", "plugins", "list"), f"{p.name}: {p.errors[0]}") for p in broken()]
        remedies = faulty[:3] or [Try(command("loraforge", "formats"))]
        raise no_such("format", name, known, *remedies, kind=FormatError, which="that is written" if written else "")
    return known[present]
