"""Which architectures there are: the built-in ones, and what plugins add to them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import tomli

from loraforge.errors import FormatError, LoraforgeError
from loraforge.names import bijection
from loraforge.names.layout import Architecture
from loraforge.plugin.datafile import read
from loraforge.plugin.host import depends_on_plugins, host
from loraforge.text import command


@depends_on_plugins
@cache
def data_files() -> tuple[tuple[str, dict[str, Any], str], ...]:
    """Every healthy data file: whose it is, its tables, and its name. Faults are noted with the plugin."""
    found = []
    for hook in ("loraforge_architectures", "loraforge_formats"):
        for owner, item in host().results(hook):
            if not hasattr(item, "read_text"):
                if hook == "loraforge_architectures":
                    host().fault(owner, f"{hook} returned {type(item).__name__}, which is no TOML file")
                continue
            try:
                found.append((owner, read(item), item.name))
            except LoraforgeError as error:
                host().fault(owner, error.message)
    return tuple(found)


@depends_on_plugins
@cache
def _known(without: str | None = None) -> tuple[dict[str, Architecture], dict[str, dict[str, Any]]]:
    """Every architecture by name, and the tables it is made of. A layout with a fault is left out and noted.

    `without`: the name of a data file whose layouts do not count.
    """
    files = sorted((Path(__file__).parent / "architectures").glob("*.toml"))
    tables = {file.stem: tomli.loads(file.read_text("utf-8")) for file in files}
    known = {name: bijection.parse(data, f"{name}.toml") for name, data in tables.items()}
    for owner, data, where in layout_files():
        if where == without:
            continue
        try:
            table = joined(data, tables)
            known[table["architecture"]], tables[table["architecture"]] = bijection.parse(table, where), table
            if without is None:
                host().plugins[owner].adds += [f"layout {table['architecture']}/{new}" for new in data["layouts"]]
        except LoraforgeError as error:
            if without is None:
                host().fault(owner, error.message)
    return known, tables


def joined(data: Mapping[str, Any], tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The tables of an architecture with the layouts of a data file, or those of the file where it is a new one.

    Raises FormatError when the name of the architecture or of a layout is taken, or there is nothing to add to.
    """
    name, own = data["architecture"], {key: value for key, value in data.items() if key != "format"}
    if "segments" in data:
        if name in tables:
            raise FormatError(f"there is an architecture {name} already")
        return own
    if name not in tables:
        raise FormatError(f"there is no architecture {name}; there are {', '.join(tables)}")
    if taken := sorted(data["layouts"].keys() & tables[name]["layouts"].keys()):
        raise FormatError(f"{name} has a layout {', '.join(taken)} already")
    return {**tables[name], "layouts": tables[name]["layouts"] | data["layouts"]}


def architectures() -> Mapping[str, Architecture]:
    """Every architecture by name, with the layouts plugins add."""
    return _known()[0]


def architecture_tables(without: str) -> Mapping[str, Mapping[str, Any]]:
    """The tables each architecture is made of, less what the data file of this name adds."""
    return _known(without)[1]


def layout_files() -> list[tuple[str, dict[str, Any], str]]:
    """The data files that add layouts: those of whole architectures first."""
    files = [entry for entry in data_files() if "layouts" in entry[1]]
    return sorted(files, key=lambda entry: "segments" not in entry[1])


def architecture(name: str) -> Architecture:
    """An architecture by name. Raises FormatError with the names there are."""
    if name not in architectures():  # what --architecture was given, or a plugin names
        text = f"there is no architecture {name!r}; there are {', '.join(architectures())}."
        raise FormatError(text, command("loraforge", "layouts"))
    return architectures()[name]


def having(name: str) -> dict[str, str]:
    """Every architecture that has a layout of this name -> that name, as a format's `layouts` has it."""
    return {arch: name for arch, known in architectures().items() if name in known.layouts}


def matching(
    paths: Collection[str], layouts: Mapping[str, str], sep: str = ".", wanted: str | None = None
) -> str | None:
    """The architecture, of those a format has a layout for, that knows at least half of the module paths, if any.

    Not all: a key that is not understood is to be named, not to make a file nobody's. Not one: layouts share names.
    With `wanted`: that one, whether or not another knows more.
    """
    counts = _known_of(paths, layouts, sep)
    best = wanted if wanted in counts else max(counts, key=lambda name: counts[name], default=None)
    return best if best is not None and 2 * counts[best] >= len(paths) > 0 else None


def best_known(paths: Collection[str], layouts: Mapping[str, str], wanted: str | None) -> Architecture:
    """The architecture, of those a format has a layout for, that knows most of the paths; `wanted` if it is one."""
    counts = _known_of(paths, layouts, ".")
    return architecture(wanted if wanted in counts else max(counts, key=lambda name: counts[name]))


def holding(paths: Collection[str], layouts: Mapping[str, str]) -> list[str]:
    """Every architecture, of those a format has a layout for, that has all of the modules."""
    return [name for name, count in _known_of(paths, layouts, ".").items() if count == len(paths)]


def _known_of(paths: Collection[str], layouts: Mapping[str, str], sep: str) -> dict[str, int]:
    return {
        name: sum(layout.locate(path, sep) is not None for path in paths)
        for name, used in layouts.items()
        if name in architectures() and (layout := architectures()[name].layouts.get(used))
    }


def outdone(paths: Collection[str], layouts: Mapping[str, str], sep: str = ".") -> bool:
    """Whether a layout that a format does not follow knows more kinds of the modules than those it follows.

    Then another format's names are meant, even where the prefix and some of the names are the same.
    """
    kinds = {re.sub(r"\d+", "", path, count=1): path for path in paths}.values()  # of many blocks, one
    mine, others = 0, 0
    for name, arch in architectures().items():
        for known in arch.layouts.values():
            count = sum(known.locate(path, sep) is not None for path in kinds)
            if layouts.get(name) == known.name:
                mine = max(mine, count)
            else:
                others = max(others, count)
    return others > mine
