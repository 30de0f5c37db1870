"""What a format is. To add one, see CONTRIBUTING.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from loraforge.adapter.adapter import Adapter, Storage
from loraforge.algebra.lora import Array, Delta
from loraforge.files.tensorfile import TensorFile
from loraforge.names.layout import COMPONENT
from loraforge.scale.rule import Choice


@dataclass(frozen=True, slots=True)
class Found:
    """The file of a source that holds the tensors."""

    path: Path
    run: str
    """The default name of the result: `lora-disney-1000`."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the user wants the file written. A format lists the fields it knows in `options`; the others are refused."""

    scale_in: Literal["tensors", "metadata"] = "tensors"
    target_alpha: float | None = None
    base: Path | None = None
    lora_only: bool = False
    pad_ranks: bool = False
    component: str = COMPONENT
    """What Diffusers calls the model in its pipelines; never typed."""


@dataclass(frozen=True, slots=True)
class Target:
    """An adapter that fits the format, before its tensors are computed: names, shapes and scaling."""

    outlines: Mapping[str, Delta]
    """Module path -> weights of the final shape, type and scaling, without numbers."""
    metadata: Mapping[str, str]
    """The origin of the written file, and the entries of the source's header that are still true."""
    base_model: str | None
    """A Hub id; None if not known."""
    bias: bool = False
    """Whether its LoRAs have biases of their own (PEFT's lora_bias)."""

    @property
    def ranks(self) -> dict[str, int]:
        return {path: max(w.rank for w in delta) for path, delta in self.outlines.items()}

    @property
    def scalings(self) -> dict[str, float]:
        return {path: delta[0].scaling for path, delta in self.outlines.items()}

    @property
    def dora(self) -> bool:
        return any(w.magnitude is not None for delta in self.outlines.values() for w in delta)


NOT_TWICE = "a second scale: the file is right at strength 1.0"


@dataclass(frozen=True, slots=True)
class Use:
    """How to use a written file, for the report."""

    load: str
    """The line that loads it at strength 1.0."""
    not_with: str
    """The well-known way that would load it wrongly."""
    provided: str = ""
    """The condition under which strength 1.0 is right; empty if it always is."""
    notes: tuple[str, ...] = ()


Header = Mapping[str, tuple[str, tuple[int, ...]]]
"""Key -> element type and shape."""


class Writer(Protocol):
    """How a format is written. The core does the algebra first: a writer spells names and lays files out."""

    files: tuple[str, ...]
    """The files of a written folder, the tensor file first. A single file may also get another name."""
    governs: tuple[str, ...]
    """Patterns of other tensor files in the folder, whose scale a written configuration would change."""
    stored: Literal["tensors", "metadata", "config"]
    """Where the scale is stored."""

    def scaling(self, rank: int) -> float | None:
        """The scaling that readers apply to a module of this rank; None if each module's own scaling is stored."""

    def encode(self, path: str, delta: Delta) -> Iterator[tuple[str, Array]]:
        """The keys and tensors of one module."""

    def difference(self, path: str, suffix: str) -> str:
        """The key of a whole difference in a module, with this ending; called if `storage.differences` has it."""

    def header(self, target: Target) -> dict[str, str]:
        """The metadata of the tensor file. Raises ConversionError if the adapter does not fit its base."""

    def beside(self, target: Target) -> dict[str, str]:
        """The texts of the other files, by name."""

    def size(self, header: Header) -> int:
        """The size of the tensor file in bytes."""

    def write(
        self, path: Path, header: Header, tensors: Iterable[tuple[str, Array]], metadata: Mapping[str, str]
    ) -> dict[str, int]:
        """Write the tensor file; returns the CRC-32 of each tensor's bytes."""

    def use(self, path: Path, target: Target) -> Use:
        """How to load what was written at `path`."""


class Format(Protocol):
    """One way of storing adapters."""

    name: str
    """The value of `--from` and `--to`."""
    summary: str
    """One phrase for `loraforge formats`."""
    options: frozenset[str]
    """The fields of Wanted that its writer knows."""
    storage: Storage
    """What a written file can hold."""

    @property
    def layouts(self) -> Mapping[str, str]:
        """Architecture -> the layout of its module paths."""

    @property
    def writer(self) -> Callable[[Wanted], Writer] | None:
        """Makes the writer of one file; None if the format is only read."""

    def find(self, source: Path, choice: Choice) -> Found | None:
        """The file to read in a folder of this format; None if the folder is of another kind."""

    def claims(self, file: TensorFile) -> bool:
        """Whether this file is of this format, judged by keys and header alone."""

    def read(self, file: TensorFile, choice: Choice) -> Adapter:
        """The adapter in the file. Raises FormatError that says what the file is instead."""
