"""Checks a plugin's data file the way it will be loaded, and lists all its faults at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loraforge.errors import Fault, FormatError, LayoutError, LoraforgeError, absent
from loraforge.names.bijection import parse
from loraforge.names.catalog import architectures, joined, known_without
from loraforge.plugin.schema_check import Problem, line_of, look


def check(file: Path) -> tuple[list[str], list[Problem]]:
    """What a data file adds, and its problems. Raises LoraforgeError if the file does not exist."""
    if not file.is_file():
        raise LoraforgeError(f"{file} is no file.") if file.exists() else absent(file)
    data, problems = look(file)
    if problems:  # what follows needs the types to be right
        return [], problems
    text = file.read_text("utf-8")
    adds = [f"layout {data['architecture']}/{name}" for name in data.get("layouts", {})]
    adds += [f"format {data['format']['name']}"] if "format" in data else []
    return adds, [*(_layouts(data, text, file.name) if "layouts" in data else ()), *_format(data, text)]


def _layouts(data: dict[str, Any], text: str, name: str) -> list[Problem]:
    known = known_without(name)
    try:
        parse(joined(data, known), str(data["architecture"]))
    except LayoutError as error:
        return [Problem(line_of(text, _where(fault, data)), f"{fault}.", "") for fault in error.problems]
    except FormatError as error:
        own = () if "segments" in data else known.index.layouts.get(data["architecture"], ())
        taken = sorted(data["layouts"].keys() & {*own})[:1]
        entry = ["layouts", *taken] if taken else ["architecture"]
        return [Problem(line_of(text, entry), f"{error.message}.", "")]
    return []


def _where(fault: Fault, data: dict[str, Any]) -> list[str]:
    """The path in the file of the first module that a fault names, or of its layout."""
    every = ((layout, *item) for layout, table in data["layouts"].items() for item in table["modules"].items())
    named = ((layout, module) for layout, module, stack in every if {module, *stack} & {*fault.names})
    return next((["layouts", layout, "modules", module] for layout, module in named), ["layouts", fault.layout])


def _format(data: dict[str, Any], text: str) -> list[Problem]:
    problems, layouts = list[Problem](), data.get("format", {}).get("layouts", {})
    for arch, layout in layouts.items() if isinstance(layouts, dict) else ():
        own = data.get("architecture") == arch
        known = {*(data.get("layouts", ()) if own else ())}
        known |= architectures()[arch].layouts.keys() if arch in architectures() else set()
        names = [layout] if isinstance(layout, str) else layout
        if not known.intersection(names) and (known or own):  # any other is of a plugin that need not be installed
            line = line_of(text, ["format", "layouts", arch])
            what = f"format.layouts names {arch}/{' or '.join(names)}, which there is not."
            hint = f"There are {', '.join(sorted(known))}." if known else f"There is no architecture {arch}."
            problems.append(Problem(line, what, hint))
    return problems
