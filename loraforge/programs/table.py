"""Reads the table of programs that run adapters (programs.toml)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

from loraforge.errors import no_such
from loraforge.files.tensorfile import TensorFile
from loraforge.names.catalog import architectures
from loraforge.names.layout import Template
from loraforge.tables import package_table, with_tuples

Outcome = Literal["applied", "ignored", "warned", "raises"]


@dataclass(frozen=True, slots=True)
class Run:
    """One version or commit of a program that was run on adapter files."""

    version: str
    date: str
    files: int
    agreed: int
    """Number of files that did what the table says."""
    beside: str = ""
    """The libraries that it was run with."""


@dataclass(frozen=True, slots=True)
class Runtime:
    """One program, or some versions of it. The fields are explained in programs.toml."""

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
    common_alpha: str = ""
    rank: int = 0
    whole: bool = False
    header_needs: tuple[str, ...] = ()
    config_fields: tuple[str, ...] = ()
    config_needs: tuple[str, ...] = ()
    without: Mapping[str, Any] | None = None
    run: tuple[Run, ...] = ()

    def module(self, key: str, architecture: str = "") -> str:
        """The module path in a key, spelled as in the key; empty if the program has no such module.

        If the adapter is of another architecture than the row, any path after a prefix counts.
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
        """What the program does with a tensor of this name."""
        if not key.startswith(self.starts) or not key.startswith(self.prefixes):
            return self.others
        rest = self.rest or self.others
        outcome = next((outcome for fragment, outcome in self.keys.items() if fragment in key), rest)
        return outcome if outcome != "applied" or self.module(key, architecture) else self.others

    def factor(self, rank: int, path: Path) -> float:
        """The factor on an update of this rank, besides the scale that the program sees in the file."""
        named = any(word in str(path).lower() for word in self.names)
        times = self.named_times if named else self.times
        return 1.0 / rank if times == "1/rank" else float(times)

    def of(self, file: TensorFile) -> Runtime:
        """The same program as it treats this file: some have other rules for files without a certain key."""
        if self.alone and any(key.startswith(self.prefixes[0]) for key in file.tensors):
            return replace(self, prefixes=self.prefixes[:1], others="ignored", alone=False)
        if not self.without or any(self.without["key"] in key for key in file.tensors):
            return self
        cleared: dict[str, Any] = {"header_fields": (), "header_needs": (), "header_prefix": "", "without": None}
        rules = cleared | _values(self.without)
        del rules["key"]
        return replace(self, **rules)


@lru_cache(8192)
def _known(modules: tuple[str, ...], family: str, layout: str, path: str, sep: str) -> bool:
    """Whether the model of a program has a module of that path: by the program's own list, else by a layout of ours."""
    if modules:
        return any(Template(text).match(path, sep) is not None for text in modules)
    return not layout or architectures()[family].layouts[layout].locate(path, sep) is not None


@cache
def runtimes() -> Mapping[str, Runtime]:
    """Name -> program."""
    table = package_table("programs/programs")
    return {name: Runtime(name, **_values(_inherited(table, name))) for name in table}


def _inherited(table: Mapping[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """An entry with the missing fields of the entry that it is `like`; `run` is not inherited."""
    entry = dict(table[name])
    if "like" not in entry:
        return entry
    parent = _inherited(table, entry.pop("like"))
    parent.pop("run", None)
    return {**parent, **entry, "keys": {**parent["keys"], **entry.get("keys", {})}}


def _values(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Values of TOML converted to the types of the fields of Runtime."""
    kinds: dict[str, Any] = {"run": lambda runs: tuple(Run(**run) for run in runs), "sees": frozenset}
    return with_tuples(entry) | {key: kind(entry[key]) for key, kind in kinds.items() if key in entry}


def runtime(name: str) -> Runtime:
    """A program by name. Raises LoraforgeError, which lists the known names, if it is unknown."""
    if name not in runtimes():
        raise no_such("program", name, runtimes())
    return runtimes()[name]


def running(architecture: str) -> list[Runtime]:
    """The programs that run models of an architecture; of a format for which none is known, those of other models."""
    every = runtimes().values()
    own = {program.format for program in every if program.architecture == architecture}
    return [p for p in every if p.architecture == architecture or not (p.only or p.format in own)]


def not_with(architecture: str, format: str) -> str:  # noqa: A002 - the field's name
    """What is known to scale a file of this format once more; empty if nothing is."""
    return next((p.not_with for p in running(architecture) if p.not_with and p.format == format), "")


def named(path: Path) -> tuple[str, ...]:
    """One sentence for each program that treats a file differently because of a word in its path."""
    pairs = ((program, word) for program in runtimes().values() for word in program.names if word in str(path).lower())
    return tuple(f"the path has {word!r} in it. {program.title}: {program.instead}" for program, word in pairs)


def is_factor(key: str) -> bool:
    """Whether a key is named like an A or a B."""
    words = (".lora_A", ".lora_B", ".lora_up", ".lora_down", ".lora.up", ".lora.down")
    return not key.endswith(".bias") and any(word in key for word in words)


def is_down(key: str) -> bool:
    """Whether a key is named like an A."""
    return any(word in key for word in (".lora_A", ".lora_down", ".lora.down"))
