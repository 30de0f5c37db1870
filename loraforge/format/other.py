"""A format that is only read: adapters in a spelling of no other format, whose parts the grammar knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from loraforge.adapter.adapter import Adapter, Storage
from loraforge.errors import FormatError, names_in
from loraforge.files.tensorfile import TensorFile
from loraforge.format import checkpoints
from loraforge.format.grammar import described, grammar
from loraforge.format.keys import Hit, kinds
from loraforge.format.lorafile import read_lora_file
from loraforge.format.not_an_adapter import not_an_adapter, of_training
from loraforge.format.protocol import Found
from loraforge.names.catalog import architecture, architectures
from loraforge.names.layout import pattern
from loraforge.scale.rule import Choice


class OtherFormat:
    """Reads what no other format claims. `of` gives the format of one file, whose layouts are those of its names."""

    name = "other"
    summary = "any mixture of known prefixes, wrappers and factor words"
    like = "diffusers"
    """The format whose trainers and programs are looked at, where the modules have its names."""
    options: frozenset[str] = frozenset()
    storage = Storage()
    writer = None

    def __init__(self, layouts: Mapping[str, str] | None = None) -> None:
        self.style = grammar()
        self._layouts = layouts

    @property
    def layouts(self) -> Mapping[str, str]:
        """Architecture -> the layout whose names the file has; of no file, the first layout of each."""
        if self._layouts is None:
            return {arch: layouts[0] for arch, layouts in architectures().index.layouts.items()}
        return self._layouts

    def of(self, file: TensorFile) -> OtherFormat:
        """The format of this file: of each architecture, the layout that has most of its modules."""
        homes = architectures().index.homes({pattern(hit.path) for hit in self._hits(file)})
        most = dict[str, str]()
        for arch, layout in (home for home, _ in homes.most_common()):
            most.setdefault(arch, layout)
        return OtherFormat(most)

    def find(self, source: Path, choice: Choice) -> Found | None:
        return checkpoints.choose(source, (), choice) if source.is_file() else None

    def claims(self, file: TensorFile) -> bool:
        every = kinds(file)
        return not of_training(file) and 2 * sum(bool(self.style.parse(key)) for key in every) >= len(every) > 0

    def read(self, file: TensorFile, choice: Choice) -> Adapter:
        hits = self._hits(file)
        if not hits:
            raise not_an_adapter(file)
        for key in kinds(file):
            if len(every := self.style.every(key)) > 1:
                each = " and ".join(f"{factor} of {path}" for path, factor in every)
                text = f"{file.path}: {key} can be read in two ways, as {each}. Which is meant is not known."
                raise FormatError(text, names_in(file.path))
        layouts = self.layouts if self._layouts is not None else self.of(file).layouts
        stated = choice.architecture
        name = stated if stated and stated in layouts else self._best(hits, layouts)
        writes = self.like if layouts[name] == self.like and hits[0].sep == "." else self.name
        adapter = read_lora_file(file, choice, self.style, architecture(name), layouts[name], writes=writes)
        return replace(adapter, notes=(described(hits), *adapter.notes))

    def _hits(self, file: TensorFile) -> list[Hit]:
        return self.style.hits(kinds(file))

    def _best(self, hits: list[Hit], layouts: Mapping[str, str]) -> str:
        """The architecture that has the most of these modules."""

        def count(name: str) -> int:
            layout = architecture(name).layouts[layouts[name]]
            return sum(layout.locate(hit.path, hit.sep) is not None for hit in hits)

        return max(layouts, key=count)
