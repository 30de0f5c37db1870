"""TODO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tomli

from loraforge.errors import LoraforgeError, Try
from loraforge.names.catalog import architectures
from loraforge.names.layout import Template

if TYPE_CHECKING:
    from loraforge.files.tensorfile import TensorFile

Outcome = Literal["applied", "ignored", "warned", "raises"]


@dataclass(frozen=True, slots=True)
class Run:
    """One version or commit in which files were really loaded."""

    version: str
    date: str
    files: int
    agreed: int
    """How many of the files did what the table says."""
    beside: str = ""
    """The libraries it ran on."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """One program, or some versions of it. What the fields mean stands in programs.toml."""

    name: str
    title: str
    format: str
    prefixes: tuple[str, ...]
    others: Outcome
    keys: Mapping[str, Outcome]
    sees: frozenset[str]
    times: float | str = 1.0
    needs: str = ""
    files: tuple[str, ...] = ()
    header_prefix: str = ""
    header_fields: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    named_times: float | str = 1.0
    instead: str = ""
    source: str = ""
    program: str = ""
    architecture: str = ""
    layout: str = ""
    modules: tuple[str, ...] = ()
    starts: str = ""
    alone: bool = False
    only: bool = False
    not_with: str = ""
    every_key: str = ""
    nothing: str = ""
    always: str = ""
    rest: Outcome | None = None
    convolution: Outcome = "applied"
    mixed_ranks: str = ""
    rank: int = 0
    whole: bool = False
    header_needs: tuple[str, ...] = ()
    config_fields: tuple[str, ...] = ()
    config_needs: tuple[str, ...] = ()
    without: Mapping[str, Any] | None = None
    run: tuple[Run, ...] = ()

    def module(self, key: str, architecture: str = "") -> str:
        """The module path in a key, as the key spells it; empty where it is none of the program's.

        Of an adapter of another architecture than the row speaks of, any path behind a prefix counts.
        """
        end = min((key.index(fragment) for fragment in self.keys if fragment in key), default=0)
        stem = key[:end].removesuffix(".")
        names = (self.modules, self.architecture, self.layout) if architecture in ("", self.architecture) else ()
        for prefix in self.prefixes:
            path = stem.removeprefix(prefix) if stem.startswith(prefix) else ""
            if path and (not names or _known(*names, path, "_" if prefix.endswith("_") else ".")):
                return path
        return ""

    def outcome(self, key: str, architecture: str = "") -> Outcome:
        """What becomes of a tensor of this name."""
        if not key.startswith(self.starts) or not key.startswith(self.prefixes):
            return self.others
        found = next((found for fragment, found in self.keys.items() if fragment in key), self.rest or self.others)
        return found if found != "applied" or self.module(key, architecture) else self.others

    def factor(self, rank: int, path: Path) -> float:
        """What it multiplies an update of this rank with, besides the scale it sees."""
        named = any(word in str(path).lower() for word in self.names)
        times = self.named_times if named else self.times
        return 1.0 / rank if times == "1/rank" else float(times)

    def of(self, file: TensorFile) -> Runtime:
        """The same, as it treats this file: some programs have a second way for files that lack a word."""
        if self.alone and any(key.startswith(self.prefixes[0]) for key in file.tensors):
            return replace(self, prefixes=self.prefixes[:1], others="ignored", alone=False)
        if not self.without or any(self.without["key"] in key for key in file.tensors):
            return self
        other = {key: value for key, value in self.without.items() if key != "key"}
        cleared: dict[str, Any] = {"header_fields": (), "header_needs": (), "header_prefix": "", "without": None}
        return replace(self, **cleared | _values(other))


@lru_cache(8192)
def _known(modules: tuple[str, ...], family: str, layout: str, path: str, sep: str) -> bool:
    """Whether the model of a program has a module of that path: by its own list, else by a layout we know."""
    if modules:
        return any(Template(text).match(path, sep) is not None for text in modules)
    return not layout or architectures()[family].layouts[layout].locate(path, sep) is not None


@cache
def runtimes() -> Mapping[str, Runtime]:
    """Every program by name."""
    table: dict[str, dict[str, Any]] = tomli.loads((Path(__file__).parent / "programs.toml").read_text("utf-8"))
    return {name: _made(name, _inherited(table, name)) for name in table}


def _inherited(table: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """An entry with what the one it is `like` has and it has not. `run` is nobody's but its own."""
    entry = table[name]
    if "like" not in entry:
        return entry
    older = {key: value for key, value in _inherited(table, entry["like"]).items() if key != "run"}
    return {**older, **entry, "keys": {**older["keys"], **entry.get("keys", {})}}


def _made(name: str, entry: dict[str, Any]) -> Runtime:
    return Runtime(name=name, **_values({key: value for key, value in entry.items() if key != "like"}))


def _values(entry: Mapping[str, Any]) -> dict[str, Any]:
    """TOML's lists and dates as a Runtime has them."""
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    if "run" in entry:
        values["run"] = tuple(Run(**run) for run in entry["run"])
    if "sees" in entry:
        values["sees"] = frozenset(entry["sees"])
    return values


def runtime(name: str) -> Runtime:
    """A program by name. Raises LoraforgeError with the names there are."""
    if name not in runtimes():
        text = f"there is no runtime {name!r}; there are {', '.join(runtimes())}."
        raise LoraforgeError(text, *(Try(f"--runtime {known}", entry.title) for known, entry in runtimes().items()))
    return runtimes()[name]


def running(architecture: str) -> list[Runtime]:
    """The programs that run models of an architecture, as far as is known."""
    return [program for program in runtimes().values() if not program.only or program.architecture == architecture]


def not_with(architecture: str, format: str) -> str:  # noqa: A002 - the field's name
    """What is known to scale a file of this format once more; empty if nothing is."""
    return next((p.not_with for p in running(architecture) if p.not_with and p.format == format), "")


def named(path: Path) -> tuple[str, ...]:
    """What the words in a path make a program do to the file there, one sentence each."""
    found = ((program, word) for program in runtimes().values() for word in program.names if word in str(path).lower())
    return tuple(f"the path has {word!r} in it. {program.title}: {program.instead}" for program, word in found)


def is_factor(key: str) -> bool:
    return any(word in key for word in (".lora_A", ".lora_B", ".lora_up", ".lora_down", ".lora.up", ".lora.down"))
