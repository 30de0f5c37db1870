"""A format that is only data: how it spells names, which layouts it follows, where it stores its scale."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from loraforge.adapter.adapter import Adapter, Storage
from loraforge.files.tensorfile import TensorFile
from loraforge.format import checkpoints
from loraforge.format.keys import KeyStyle, Spelling, kinds
from loraforge.format.lorafile import LoraFileWriter, read_lora_file
from loraforge.format.not_an_adapter import not_an_adapter, of_training
from loraforge.format.protocol import NOT_TWICE, Found, Target, Use, Wanted, Writer
from loraforge.names.catalog import Catalog, architecture, architectures, matching, outdone
from loraforge.scale.rule import Choice


class DataWriter(LoraFileWriter):
    """Writes one file: the scale in alpha tensors if the format has them, otherwise folded into A and B."""

    def __init__(self, form: DataFormat, _: Wanted) -> None:
        self.form, self.style = form, form.style
        self.files: tuple[str, ...] = (form.file,)
        self.native = bool(form.style.spellings[0].alpha)
        self.stored: Literal["tensors", "metadata", "config"] = "config" if self.native else "tensors"

    def scaling(self, _: int) -> float | None:
        return None if self.native else 1.0

    def use(self, path: Path, _: Target) -> Use:
        provided = f", in loaders that read {self.form.style.spellings[0].alpha}" if self.native else ""
        return Use(self.form.load.replace("{path}", str(path)), self.form.not_with, provided)


class DataFormat:
    """The format that the [format] table of a data file describes."""

    options: frozenset[str] = frozenset()

    def __init__(self, table: Mapping[str, Any]) -> None:
        """`table` follows schemas/plugin.schema.json."""
        self.name: str = table["name"]
        self.summary: str = table["summary"]
        self.aliases: Mapping[str, str] = table.get("aliases", {})
        self.like: str | None = table.get("like")
        self.shares: str = table.get("shares", "")
        layouts: Mapping[str, Any] | str = table["layouts"]
        self._layouts = layouts if isinstance(layouts, Mapping) else {"*": layouts}
        self.others: Mapping[str, str] = table.get("others", {})
        spellings = tuple(Spelling(**entry) for entry in table["spellings"])
        prefixes, column = tuple(table.get("prefixes", [""])), table.get("magnitude") == "column"
        self.separator: str = table.get("separator", ".")
        self.style = KeyStyle(spellings, prefixes, sep=self.separator, column=column)
        self.storage = Storage(magnitude=bool(spellings[0].magnitude), differences=table.get("differences", {}))
        self.file: str = table.get("file", f"{self.name}.safetensors")
        self.load: str = table.get("load", "{path}")
        self.not_with: str = table.get("not_with", NOT_TWICE)
        writes: bool = table.get("writes", True)
        self.writer: Callable[[Wanted], Writer] | None = partial(DataWriter, self) if writes else None

    @property
    def layouts(self) -> Mapping[str, str]:
        """Architecture -> layout, for the installed architectures."""
        return self.layouts_in(architectures())

    def layouts_in(self, known: Catalog) -> Mapping[str, str]:
        """The same, for these architectures: the first of the layouts that the table names which each of them has."""
        named = {arch: layout for arch, layout in self._layouts.items() if arch != "*" and isinstance(layout, str)}
        rest = self._layouts.get("*", ())

        def first(arch: str, own: Sequence[str]) -> str:
            names = self._layouts.get(arch, rest)
            return next((name for name in ([names] if isinstance(names, str) else names) if name in own), "")

        every = {arch: first(arch, own) for arch, own in sorted(known.index.layouts.items())}
        return {arch: name for arch, name in every.items() if name} | named

    def find(self, source: Path, choice: Choice) -> Found | None:
        return checkpoints.choose(source, (self.file,), choice)

    def claims(self, file: TensorFile) -> bool:
        known = not of_training(file) and self._architecture(file) is not None
        return known and not outdone(self._paths(file), self.layouts, self.shares)

    def read(self, file: TensorFile, choice: Choice) -> Adapter:
        name = self._architecture(file, choice.architecture) or self._architecture(file)
        if name is None:
            raise not_an_adapter(file, f"{self.name} adapter")
        arch, layout, writes = architecture(name), self.layouts[name], self.like or self.name
        return read_lora_file(file, choice, self.style, arch, layout, writes=writes, others=self.others)

    def _architecture(self, file: TensorFile, wanted: str | None = None) -> str | None:
        return matching(self._paths(file), self.layouts, self.style.sep, wanted)

    def _paths(self, file: TensorFile) -> list[str]:
        return [hit.path for hit in self.style.hits(kinds(file))]
