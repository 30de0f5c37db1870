"""Checks a plugin's data file the way it will be loaded, and says everything that is wrong with it at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loraforge.errors import FormatError, LayoutError, LoraforgeError
from loraforge.names.bijection import parse
from loraforge.names.catalog import architecture_tables, architectures, joined
from loraforge.plugin.schema_check import Problem, line_of, look
from loraforge.text import command


def check(file: Path) -> tuple[list[str], list[Problem]]:
    """What a data file adds, and its problems. Raises LoraforgeError when there is no such file."""
    if not file.is_file():
        raise LoraforgeError(f"{file} is no file.", command("ls", "-l", file.parent))
    data, problems = look(file)
    if problems:  # what follows needs the types to be right
        return [], problems
    text = file.read_text("utf-8")
    problems += _layouts(data, text, file.name)
    problems += _format(data, text)
    adds = [f"layout {data['architecture']}/{name}" for name in data.get("layouts", {})]
    return adds + ([f"format {data['format']['name']}"] if "format" in data else []), problems


def _layouts(data: dict[str, Any], text: str, name: str) -> list[Problem]:
    if "layouts" not in data:
        return []
    try:
        parse(joined(data, architecture_tables(name)), str(data["architecture"]))
    except LayoutError as error:
        return [_fault(problem, text, data) for problem in error.problems]
    except FormatError as error:
        taken = next((name for name in data["layouts"] if f"layout {name} already" in error.message), None)
        place = ["layouts", taken] if taken else ["architecture"]
        return [Problem(line_of(text, place), f"{error.message}.", "")]
    return []


def _fault(problem: str, text: str, data: dict[str, Any]) -> Problem:
    """A load-time problem with the line of the first module it names."""
    for layout, table in data["layouts"].items():
        for module, stack in table["modules"].items():
            if repr(module) in problem or any(f"segment {s!r}" in problem and s in stack for s in stack):
                return Problem(line_of(text, ["layouts", layout, "modules", module]), f"{problem}.", "")
    named = next((name for name in data["layouts"] if problem.startswith(f"layout {name}:")), "")
    return Problem(line_of(text, ["layouts", named]), f"{problem}.", "")


def _format(data: dict[str, Any], text: str) -> list[Problem]:
    form = data.get("format", {})
    problems = []
    layouts = form.get("layouts", {})
    for arch, layout in layouts.items() if isinstance(layouts, dict) else ():
        if arch not in architectures() and data.get("architecture") != arch:
            continue  # of a plugin that need not be there
        known = set(architectures()[arch].layouts) if arch in architectures() else set()
        if data.get("architecture") == arch:
            known |= set(data.get("layouts", {}))
        if layout not in known:
            there = f"There are {', '.join(sorted(known))}." if known else f"There is no architecture {arch}."
            line = line_of(text, ["format", "layouts", arch])
            problems.append(Problem(line, f"format.layouts names {arch}/{layout}, which there is not.", there))
    return problems
