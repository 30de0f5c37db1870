"""What the programs that run adapters make of a file: which keys, at what scale. Data; see runtimes.toml.

A program is taken for a reader that sees less: what it applies is what our own reader finds in a file from which
everything the program does not look at has been taken away.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tomli

from loraforge.adapter import Adapter
from loraforge.errors import LoraforgeError, Try
from loraforge.formats import Choice, Format

if TYPE_CHECKING:
    from loraforge.tensorfile import TensorFile

Outcome = Literal["applied", "ignored", "warned", "raises"]


@dataclass(frozen=True, slots=True)
class Runtime:
    """One program, or one version of it."""

    name: str
    title: str
    format: str
    prefixes: tuple[str, ...]
    others: Outcome
    keys: Mapping[str, Outcome]
    sees: frozenset[str]
    times: float | str = 1.0
    needs: str = ""
    header_prefix: str = ""
    header_fields: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    named_times: float | str = 1.0
    instead: str = ""
    source: str = ""

    def outcome(self, key: str) -> Outcome:
        """What becomes of a tensor of this name."""
        if not key.startswith(self.prefixes):
            return self.others
        return next((found for fragment, found in self.keys.items() if fragment in key), self.others)

    def factor(self, rank: int, path: Path) -> float:
        """What it multiplies an update of this rank with, besides the scale it sees."""
        named = any(word in str(path).lower() for word in self.names)
        times = self.named_times if named else self.times
        return 1.0 / rank if times == "1/rank" else float(times)


@dataclass(frozen=True, slots=True)
class Outlook:
    """What one program would make of a file."""

    runtime: str
    title: str
    raises: str
    """The key, or the missing file, at which it stops; empty where it does not."""
    applied: int
    modules: int
    ratios: tuple[float, ...]
    """The distinct ratios of the scale it applies to the scale of training; empty where that is not known."""
    scalings: tuple[float, ...]
    """The distinct scales it applies."""
    lost: tuple[str, ...]
    """Keys it passes over, by kind: fragment x count."""
    instead: str


@cache
def runtimes() -> Mapping[str, Runtime]:
    """Every program by name."""
    table: dict[str, dict[str, Any]] = tomli.loads((Path(__file__).parent / "runtimes.toml").read_text("utf-8"))
    return {name: _made(name, {**table.get(entry.get("like", ""), {}), **entry}) for name, entry in table.items()}


def _made(name: str, entry: dict[str, Any]) -> Runtime:
    values = {key: value for key, value in entry.items() if key != "like"}
    for key in ("prefixes", "names", "header_fields"):
        values[key] = tuple(entry.get(key, ()))
    values["name"], values["sees"] = name, frozenset(entry["sees"])
    return Runtime(**values)


def runtime(name: str) -> Runtime:
    """A program by name. Raises LoraforgeError with the names there are."""
    if name not in runtimes():
        text = f"there is no runtime {name!r}; there are {', '.join(runtimes())}."
        raise LoraforgeError(text, *(Try(f"--runtime {known}", entry.title) for known, entry in runtimes().items()))
    return runtimes()[name]


def named(path: Path) -> tuple[str, ...]:
    """What the words in a path make a program do to the file there, one sentence each."""
    found = ((program, word) for program in runtimes().values() for word in program.names if word in str(path).lower())
    return tuple(f"the path has {word!r} in it. {program.title}: {program.instead}" for program, word in found)


def outlook(program: Runtime, form: Format, file: TensorFile, adapter: Adapter) -> Outlook:
    """What the program would make of the file, given how we read it: its modules, and their scale in training."""
    outcomes = {key: program.outcome(key) for key in file.tensors if key in adapter.keys}
    raising = next((key for key, found in outcomes.items() if found == "raises"), "")
    if any(key.startswith(program.prefixes) for key in outcomes):  # without one, Diffusers returns before the header
        raising = raising or _stops_at_header(program, file)
    if not raising and program.needs and not (file.path.parent / program.needs).is_file():
        raising = program.needs
    applied = _applied_scalings(program, form, file, [k for k, found in outcomes.items() if found == "applied"])
    known = adapter.scale.provenance != "ambiguous"
    trained = {path: delta[0].scaling for path, delta in adapter.modules.items()}
    ratios = {applied[path] / trained[path] for path in applied if trained[path]} if known and not raising else set()
    lost: dict[str, int] = {}
    for key, found in outcomes.items():
        if found in ("ignored", "warned"):
            kind = next((f for f in program.keys if f in key and key.startswith(program.prefixes)), key.split(".")[0])
            lost[kind] = lost.get(kind, 0) + 1
    return Outlook(
        program.name,
        program.title,
        raising,
        0 if raising else len(applied),
        len(adapter.modules),
        tuple(sorted({float(f"{ratio:.12g}") for ratio in ratios})),
        () if raising else tuple(sorted(set(applied.values()))),
        tuple(f"{kind} x{count}" for kind, count in lost.items()),
        program.instead,
    )


def _stops_at_header(program: Runtime, file: TensorFile) -> str:
    """The name in the header entry that the program cannot take, or the entry itself where nothing in it is for it."""
    for entry in program.sees & file.metadata.keys():
        try:
            said = json.loads(file.metadata[entry])
        except (ValueError, RecursionError):
            return entry
        prefix = program.header_prefix
        mine = [name.removeprefix(prefix) for name in said if name.startswith(prefix)] if isinstance(said, dict) else []
        if program.header_fields and not mine:
            return entry
        if unknown := [name for name in mine if program.header_fields and name not in program.header_fields]:
            return f"{unknown[0]} in {entry}"
    return ""


def _applied_scalings(program: Runtime, form: Format, file: TensorFile, keys: list[str]) -> dict[str, float]:
    """Module -> the scale the program applies. Read from what it sees of the file, and nothing else."""
    blind = () if "alpha" in program.sees else (".alpha",)
    kept = {key: file.tensors[key] for key in keys if not key.endswith(blind)}
    if not kept:
        return {}
    metadata = {key: text for key, text in file.metadata.items() if key in program.sees}
    beside = program.sees & {"adapter_config.json", "training_config.yaml"}
    path = file.path if beside else Path("elsewhere", file.path.name)
    seen = file.hiding(tensors=kept, metadata=metadata, path=path)
    try:
        adapter = form.read(seen, Choice())
    except LoraforgeError:  # what is left of the file is no adapter
        return {}
    return {
        name: delta[0].scaling * program.factor(delta[0].rank, file.path) for name, delta in adapter.modules.items()
    }
