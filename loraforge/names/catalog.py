"""The known architectures: the built-in ones, and what plugins add to them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from loraforge.errors import FormatError, LoraforgeError
from loraforge.names import bijection
from loraforge.names.layout import Architecture
from loraforge.plugin.datafile import read
from loraforge.plugin.host import load
from loraforge.plugin.registry import Reading, Registry, current
from loraforge.tables import package_tables
from loraforge.text import command

Table = dict[str, Any]
Known = tuple[dict[str, Architecture], dict[str, Table]]
"""Architectures by name, and the tables of each."""


@dataclass(frozen=True, slots=True)
class DataTables:
    """A data file without faults."""

    owner: str
    """The plugin that it comes from."""
    tables: Table
    name: str
    """The file's name."""


def read_data_files(registry: Registry) -> Reading[list[DataTables]]:
    """The data files that plugins add. A file with a fault, or an object of another kind, is noted and left out."""
    reading = Reading(list[DataTables]())
    returned = registry.read(load).value.returned
    for hook in ("loraforge_architectures", "loraforge_formats"):
        for owner, item in returned[hook]:
            if hasattr(item, "read_text"):
                try:
                    reading.value.append(DataTables(owner, read(item), item.name))
                except LoraforgeError as error:
                    reading.fault(owner, error.message)
            elif hook == "loraforge_architectures":
                reading.fault(owner, f"{hook} returned {type(item).__name__}, which is no TOML file")
    return reading


def read_architectures(registry: Registry) -> Reading[Known]:
    """The built-in architectures and what plugins add to them."""
    return _assembled(registry.read(read_data_files).value)


def _assembled(files: Iterable[DataTables]) -> Reading[Known]:
    """The built-in architectures with the layouts of data files. A file with a fault is noted and left out."""
    tables = package_tables("names/architectures")
    known = {name: bijection.parse(data, f"{name}.toml") for name, data in tables.items()}
    reading = Reading((known, tables))
    with_layouts = (file for file in files if "layouts" in file.tables)
    for file in sorted(with_layouts, key=lambda file: "segments" not in file.tables):  # whole architectures first
        try:
            whole = joined(file.tables, tables)
            name = whole["architecture"]
            known[name], tables[name] = bijection.parse(whole, file.name), whole
            reading.adds += [(file.owner, f"layout {name}/{new}") for new in file.tables["layouts"]]
        except LoraforgeError as error:
            reading.fault(file.owner, error.message)
    return reading


class TakenError(FormatError):
    """A data file uses the name of an existing architecture or layout."""

    def __init__(self, message: str, layouts: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.layouts = layouts


def joined(data: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The tables of an architecture with the layouts of a data file, or the tables of the file if it is a new one.

    Raises FormatError if the name of the architecture or of a layout is taken, or the architecture is not known.
    """
    name, own = data["architecture"], {key: value for key, value in data.items() if key != "format"}
    if "segments" in data:
        if name in tables:
            raise TakenError(f"there is an architecture {name} already")
        return own
    if name not in tables:
        raise FormatError(f"there is no architecture {name}; there are {', '.join(tables)}")
    if taken := sorted(data["layouts"].keys() & tables[name]["layouts"].keys()):
        raise TakenError(f"{name} has a layout {', '.join(taken)} already", tuple(taken))
    return {**tables[name], "layouts": tables[name]["layouts"] | data["layouts"]}


def data_files() -> list[DataTables]:
    """Every data file without faults."""
    return current().read(read_data_files).value


def architectures() -> Mapping[str, Architecture]:
    """Every architecture by name, with the layouts that plugins add."""
    return current().read(read_architectures).value[0]


def architecture_tables(without: str) -> Mapping[str, Mapping[str, Any]]:
    """The tables of each architecture, without those that the data file of this name adds."""
    return _assembled(file for file in data_files() if file.name != without).value[1]


def architecture(name: str) -> Architecture:
    """An architecture by name. Raises FormatError with the known names."""
    if name not in architectures():  # a value of --architecture, or of a plugin
        text = f"there is no architecture {name!r}; there are {', '.join(architectures())}."
        raise FormatError(text, command("loraforge", "layouts"))
    return architectures()[name]


def having(name: str, known: Mapping[str, Architecture] | None = None) -> dict[str, str]:
    """Every architecture (of `known`) with a layout of this name -> that name: the `layouts` of a format."""
    known = architectures() if known is None else known
    return {arch: name for arch, entry in known.items() if name in entry.layouts}


def matching(
    paths: Collection[str], layouts: Mapping[str, str], sep: str = ".", wanted: str | None = None
) -> str | None:
    """The architecture in `layouts` that knows the most module paths, and at least half of them; None if none does.

    Half, not all: a file with a strange key still has a format, which names that key. Half, not one: layouts share
    names. With `wanted`: that architecture, even if another knows more.
    """
    counts = _known_of(paths, layouts, sep)
    best = wanted if wanted in counts else max(counts, key=lambda name: counts[name], default=None)
    return best if best is not None and 2 * counts[best] >= len(paths) > 0 else None


def best_known(paths: Collection[str], layouts: Mapping[str, str], wanted: str | None) -> Architecture:
    """The architecture in `layouts` that knows the most paths; `wanted` if it knows any."""
    counts = _known_of(paths, layouts, ".")
    return architecture(wanted if wanted and counts.get(wanted) else max(counts, key=lambda name: counts[name]))


def holding(paths: Collection[str], layouts: Mapping[str, str]) -> list[str]:
    """Every architecture in `layouts` that has all of the modules."""
    return [name for name, count in _known_of(paths, layouts, ".").items() if count == len(paths)]


def _known_of(paths: Collection[str], layouts: Mapping[str, str], sep: str) -> dict[str, int]:
    return {
        name: sum(layout.locate(path, sep) is not None for path in paths)
        for name, used in layouts.items()
        if name in architectures() and (layout := architectures()[name].layouts.get(used))
    }


def outdone(paths: Collection[str], layouts: Mapping[str, str], sep: str = ".") -> bool:
    """Whether a layout outside of `layouts` knows more module kinds than those in it.

    Then the names are another format's, even if the prefix and some of the names are the same.
    """
    kinds = {re.sub(r"\d+", "", path, count=1): path for path in paths}.values()  # of many blocks, one
    own, others = [0], [0]
    for name, arch in architectures().items():
        for known in arch.layouts.values():
            count = sum(known.locate(path, sep) is not None for path in kinds)
            (own if layouts.get(name) == known.name else others).append(count)
    return max(others) > max(own)
