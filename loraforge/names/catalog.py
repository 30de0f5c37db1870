"""The known architectures: the built-in ones, and what plugins add to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from loraforge.errors import FormatError, LoraforgeError, no_such
from loraforge.names import bijection
from loraforge.names.index import built_in
from loraforge.names.layout import Architecture, Layout, pattern
from loraforge.plugin.datafile import read
from loraforge.plugin.host import load
from loraforge.plugin.registry import Reading, Registry, current
from loraforge.tables import package_table
from loraforge.text import command

Table = dict[str, Any]
FOLDER = "names/architectures"


class Catalog(Mapping[str, Architecture]):
    """Architectures by name. A built-in one is read when it is asked for; those of plugins are read already."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = dict.fromkeys(names)
        self._read = dict[str, Architecture]()
        self._tables = dict[str, Table]()
        self.index = built_in()

    def __getitem__(self, name: str) -> Architecture:
        if name in self._names and name not in self._read:
            self._read[name] = bijection.built(self.table(name))
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def table(self, name: str) -> Table:
        """The tables of an architecture."""
        return self._tables[name] if name in self._tables else package_table(f"{FOLDER}/{name}")

    def add(self, table: Table, where: str) -> None:
        """Add an architecture, or a known one with more layouts. Raises LayoutError if it has a fault."""
        arch = bijection.parse(table, where)
        self._names[arch.name] = None
        self._read[arch.name], self._tables[arch.name] = arch, table
        self.index = self.index.adding([arch])


class DataTables(NamedTuple):
    """A data file without faults: the plugin that it comes from, its content and its name."""

    owner: str
    tables: Table
    name: str


def read_data_files(registry: Registry) -> Reading[list[DataTables]]:
    """The data files that plugins add. A file with a fault, or an object of another kind, is noted and left out."""
    reading = Reading(list[DataTables]())
    for hook in ("loraforge_architectures", "loraforge_formats"):
        for owner, item in registry.read(load).value.returned[hook]:
            if hasattr(item, "read_text"):
                try:
                    reading.value.append(DataTables(owner, read(item), item.name))
                except LoraforgeError as error:
                    reading.fault(owner, error.message)
            elif hook == "loraforge_architectures":
                reading.fault(owner, f"{hook} returned {type(item).__name__}, which is no TOML file")
    return reading


def read_architectures(registry: Registry) -> Reading[Catalog]:
    """The built-in architectures and what plugins add to them."""
    return _assembled(registry.read(read_data_files).value)


def _assembled(files: Iterable[DataTables]) -> Reading[Catalog]:
    """The built-in architectures with the layouts of data files. A file with a fault is noted and left out."""
    reading = Reading(Catalog(built_in().layouts))
    with_layouts = (file for file in files if "layouts" in file.tables)
    for file in sorted(with_layouts, key=lambda file: "segments" not in file.tables):  # whole architectures first
        try:
            reading.value.add(whole := joined(file.tables, reading.value), file.name)
            reading.adds += [(file.owner, f"layout {whole['architecture']}/{new}") for new in file.tables["layouts"]]
        except LoraforgeError as error:
            reading.fault(file.owner, error.message)
    return reading


def joined(data: Mapping[str, Any], known: Catalog) -> Table:
    """The tables of an architecture with the layouts of a data file, or the tables of the file if it is a new one.

    Raises FormatError if the name of the architecture or of a layout is taken, or the architecture is not known.
    """
    name, own = data["architecture"], {key: value for key, value in data.items() if key != "format"}
    if "segments" in data:
        if name in known:
            raise FormatError(f"there is an architecture {name} already")
        return own
    if name not in known:
        raise FormatError(f"there is no architecture {name}; there are {', '.join(known)}")
    table = known.table(name)
    if taken := sorted(data["layouts"].keys() & table["layouts"].keys()):
        raise FormatError(f"{name} has a layout {', '.join(taken)} already")
    return {**table, "layouts": table["layouts"] | data["layouts"]}


def architectures() -> Catalog:
    """Every architecture by name, with the layouts that plugins add."""
    return current().read(read_architectures).value


def known_without(file: str) -> Catalog:
    """The architectures without those that the data file of this name adds."""
    return _assembled(one for one in current().read(read_data_files).value if one.name != file).value


def architecture(name: str) -> Architecture:
    """An architecture by its name or title, in letters of any case. Raises FormatError with the known names."""
    if name not in architectures():  # a value of --architecture, or of a plugin
        titles = architectures().index.titles.items()
        if meant := next((known for known, title in titles if name.lower() in (known, title.lower())), ""):
            return architectures()[meant]
        raise no_such("architecture", name, architectures(), command("loraforge", "layouts"), kind=FormatError)
    return architectures()[name]


def having(layout: str) -> dict[str, str]:
    """Architecture -> this layout, for those that have it: the `layouts` of a format."""
    return {arch: layout for arch, own in architectures().index.layouts.items() if layout in own}


def counts(paths: Collection[str], layouts: Mapping[str, str], sep: str = ".") -> Counter[str]:
    """Architecture -> how many of the modules its layout in `layouts` has, for the architectures that have the most.

    The index tells which these are; only they are read.
    """
    used, rough, exact = {*layouts.items()}, Counter[str](), Counter[str]()
    for kind, number in Counter(map(pattern, paths)).items():
        rough.update({name: number for name, _ in architectures().index.homes([kind], used)})
    for name, number in rough.most_common():
        if number < max(exact.values(), default=1):
            break
        layout = architectures()[name].layouts[layouts[name]]
        exact[name] = sum(layout.locate(path, sep) is not None for path in paths)
    return +exact


def matching(
    paths: Collection[str], layouts: Mapping[str, str], sep: str = ".", wanted: str | None = None
) -> str | None:
    """The architecture in `layouts` that knows the most module paths, and at least half of them; None if none does.

    Half, not all: a file with a strange key still has a format, which names that key. Half, not one: layouts share
    names. With `wanted`: that architecture, even if another knows more.
    """
    most = counts(paths, _only(layouts, wanted), sep).most_common(1)
    return most[0][0] if most and 2 * most[0][1] >= len(paths) else None


def best_known(paths: Collection[str], layouts: Mapping[str, str], wanted: str | None) -> Architecture:
    """The architecture in `layouts` that knows the most paths; `wanted` if it knows any."""
    known = counts(paths, _only(layouts, wanted)) or counts(paths, layouts)
    return architecture(known.most_common(1)[0][0] if known else next(iter(layouts)))


def _only(layouts: Mapping[str, str], wanted: str | None) -> Mapping[str, str]:
    """The layout of the architecture that is wanted, if it is there; otherwise all."""
    return {wanted: layouts[wanted]} if wanted and wanted in layouts else layouts


def holding(paths: Collection[str], layouts: Mapping[str, str], sep: str = ".") -> list[str]:
    """Every architecture in `layouts` that has all of the modules, as a format that joins words by `sep` has them."""
    spelled = [path.replace(".", sep) for path in paths]
    return [name for name, count in counts(spelled, layouts, sep).items() if count == len(paths)]


def outdone(paths: Collection[str], layouts: Mapping[str, str], first: str = "") -> bool:
    """Whether a layout outside of `layouts` knows more module kinds than those in it; as many, if it is called `first`.

    Then the names are another format's, even if the prefix and some of the names are the same.
    """
    rough = architectures().index.homes({pattern(path) for path in paths})
    best = [home for home, count in rough.items() if count == max(rough.values())]
    known = {home: _located(paths, architectures()[home[0]].layouts[home[1]]) for home in best}
    own = {home: count for home, count in known.items() if layouts.get(home[0]) == home[1]}
    shared = max((count for home, count in known.items() if home[1] == first), default=-1)
    return max(max(known.values(), default=0), shared + 1) > max(own.values(), default=0)


def _located(paths: Collection[str], layout: Layout) -> int:
    """How many of these modules, whose words are joined by dots or underscores, a layout has."""
    return sum(bool(layout.locate(path) or layout.locate(path, "_")) for path in paths)
