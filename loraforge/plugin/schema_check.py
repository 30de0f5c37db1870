"""Finds every fault of a document by its schema. In its own file because the validator loads slowly."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import tomli
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry, Resource

from loraforge.errors import LoraforgeError
from loraforge.foreign import reason
from loraforge.plugin.host import DataFile
from loraforge.tables import SCHEMAS, schema
from loraforge.text import plain

MOST_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Problem:
    """One fault of a data file."""

    line: int | None
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{f'line {self.line}: ' if self.line else ''}{self.what} {self.remedy}".strip()


class PluginDataError(LoraforgeError):
    """A data file does not follow the schema; every problem is listed."""

    def __init__(self, name: str, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(f"{name}: " + "; ".join(map(str, self.problems)))


def look(file: DataFile) -> tuple[dict[str, Any], list[Problem]]:
    """The tables of a data file, and its problems by the schema."""
    try:
        text = file.read_text("utf-8")
    except (OSError, ValueError) as error:
        return {}, [Problem(None, f"it cannot be read ({reason(error)}).", "")]
    if len(text) > MOST_BYTES:
        return {}, [Problem(None, "it has more than 1 MB.", "A plugin is a page of names.")]
    try:
        data = tomli.loads(text)
    except Exception as error:  # a parser of foreign bytes
        line, what = re.search(r"at line (\d+)", str(error)), re.sub(r" \(at line.*", "", reason(error))
        hint = "TOML quotes names that have dots or braces." if what.startswith("Expected") else ""
        return {}, [Problem(int(line[1]) if line else None, f"{what}.", hint)]
    problems = list(dict.fromkeys(_problem(text, error) for error in _errors(data)))  # one error per missing entry
    return data, problems or list(_alike(data, text))


def _alike(data: Mapping[str, Any], text: str) -> Iterator[Problem]:
    """Suffixes of one spelling that the same key could end with."""
    for spelling in data.get("format", {}).get("spellings", ()):
        for one, other in permutations(spelling, 2):
            if spelling[one].endswith(spelling[other]) and (one < other or spelling[one] != spelling[other]):
                line = line_of(text, ["format", "spellings"])
                ends = f"the suffix of {one}, {spelling[one]!r}, ends in that of {other}, {spelling[other]!r}."
                yield Problem(line, ends, "A key could be either.")


def line_of(text: str, path: Iterable[str | int]) -> int | None:
    """The line of the deepest part of `path` that is in a TOML text; None if no part is."""
    names = [part for part in path if isinstance(part, str)]
    best, depth, table = None, 0, list[str]()
    for number, line in enumerate(text.splitlines(), 1):
        bare = line.strip()
        if header := re.match(r"\[+([^\]]+)\]", bare):
            entry = table = _names(header[1])
        elif assigned := re.match(r"""((?:[\w.-]|"[^"]*"|'[^']*')+)\s*=""", bare):
            entry = [*table, *_names(assigned[1])]
        else:
            continue
        if names[: len(entry)] == entry and len(entry) > depth:
            best, depth = number, len(entry)
    return best


def _names(key: str) -> list[str]:
    return [quoted or single or bare for quoted, single, bare in re.findall(r'"([^"]*)"|\'([^\']*)\'|([\w-]+)', key)]


def _errors(data: Mapping[str, Any]) -> list[Any]:
    documents = [json.loads(schema(name)) for name in SCHEMAS]
    registry: Any = Registry().with_resources((d["$id"], Resource.from_contents(d)) for d in documents)
    validator = Draft202012Validator(documents[0], registry=registry)
    return sorted(validator.iter_errors(data), key=lambda error: [str(part) for part in error.absolute_path])


def _problem(text: str, error: Any) -> Problem:
    path, rule, instance = list(error.absolute_path), error.validator_value, error.instance
    place, hint = ".".join(map(str, path)) or "the file", error.schema.get("description", "")
    value = plain(json.dumps(instance, default=str), 60)
    what = f"is {value}, which does not go with {error.validator} {plain(str(rule), 80)}"
    if error.validator == "additionalProperties":
        known = sorted(error.schema.get("properties", ()))
        unknown = sorted(set(instance) - set(known))
        path, what, hint = [*path, unknown[0]], f"has no {', '.join(unknown)}", f"It has {', '.join(known)}."
    elif error.validator == "dependentRequired":
        given = [(one, keys) for one, keys in rule.items() if one in instance]
        missing = [f"{key} (for {one})" for one, keys in given for key in keys if key not in instance]
        path, what, hint = [given[0][0]], f"lacks {', '.join(missing)}", "It stands above every [table]."
    elif error.validator == "required":
        what, hint = f"lacks {', '.join(sorted(set(rule) - set(instance)))}", ""
    elif error.validator == "type":
        what, hint = f"is {value}, and must be of type {rule}", f"Write [{value}]." if rule == "array" else hint
    return Problem(line_of(text, path), f"{place} {what}.", hint)


def first_fault(document: object, name: str) -> str:
    """The first fault of a document by the schema of this name, with its path, in one line; empty if there is none."""
    error = best_match(Draft202012Validator(json.loads(schema(name))).iter_errors(document))
    if error is None:
        return ""
    where = "/".join(map(str, error.absolute_path))
    return f"{where + ': ' if where else ''}{error.message}".partition("\n")[0][:200]
