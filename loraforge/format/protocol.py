"""What a format is, and the formats that are built in. To add one, see CONTRIBUTING.md."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from loraforge.adapter.adapter import Adapter, Storage
from loraforge.algebra.lora import Array, Delta
from loraforge.files.tensorfile import TensorFile
from loraforge.scale.rule import Choice


@dataclass(frozen=True, slots=True)
class Found:
    """The one file of a source that holds the tensors."""

    path: Path
    run: str
    """What to call the result by default: `lora-disney-1000`."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the user wants of the written file. A format names in `options` those it knows; the others are refused."""

    scale_in: Literal["tensors", "metadata"] = "tensors"
    target_alpha: float | None = None
    base: Path | None = None
    lora_only: bool = False
    pad_ranks: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """The names and numbers of an adapter that fits the format, before its tensors are at hand."""

    outlines: Mapping[str, Delta]
    """Module path -> weights of the final shape, type and scaling, without numbers."""
    metadata: Mapping[str, str]
    """What the written file says of its origin, and what stays true of the source's header."""
    base_model: str | None
    """A Hub id, as far as it is known."""

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
    """What the report says of a written file."""

    load: str
    """The line that loads it at strength 1.0."""
    not_with: str
    """The well-known way that would not."""
    provided: str = ""
    """What must hold for strength 1.0 to be right; empty where it always is."""
    notes: tuple[str, ...] = ()


Header = Mapping[str, tuple[str, tuple[int, ...]]]
"""Key -> element type and shape."""


class Writer(Protocol):
    """How a format is written. The core does the algebra first: a writer spells names and lays files out."""

    files: tuple[str, ...]
    """What a written folder holds, the tensor file first. A lone one may also be written under another name."""
    governs: tuple[str, ...]
    """Patterns of tensor files in a folder whose scale a written configuration would state too."""
    stored: Literal["tensors", "metadata", "config"]
    """Where the scale goes."""

    def scaling(self, rank: int) -> float | None:
        """What readers apply to a module of this rank; None where each module's own scaling is stored."""

    def encode(self, path: str, delta: Delta) -> Iterator[tuple[str, Array]]:
        """The keys and tensors of one module."""

    def header(self, target: Target) -> dict[str, str]:
        """The metadata of the tensor file. Raises ConversionError when the adapter does not fit where it goes."""

    def beside(self, target: Target) -> dict[str, str]:
        """The texts of the other files, by name."""

    def size(self, header: Header) -> int:
        """Bytes the tensor file takes."""

    def write(
        self, path: Path, header: Header, tensors: Iterable[tuple[str, Array]], metadata: Mapping[str, str]
    ) -> dict[str, int]:
        """Write the tensor file; returns the CRC-32 of each tensor's bytes."""

    def use(self, path: Path, target: Target) -> Use:
        """How to load what was written at `path`."""


class Format(Protocol):
    """One way of storing adapters. Implementations import numpy, if at all, inside their methods."""

    name: str
    """What `--from` and `--to` take."""
    summary: str
    """One phrase for `loraforge formats`."""
    options: frozenset[str]
    """The fields of Wanted its writer knows."""
    storage: Storage
    """What a written file can hold."""

    @property
    def layouts(self) -> Mapping[str, str]:
        """Architecture -> the layout its module paths follow."""

    @property
    def writer(self) -> Callable[[Wanted], Writer] | None:
        """Makes the writer of one file; None where the format is only read."""

    def find(self, source: Path, choice: Choice) -> Found | None:
        """The file to read in a folder of this format; None where the folder is not one."""

    def claims(self, file: TensorFile) -> bool:
        """Say whether this file is of this format, judged by keys and header alone."""

    def read(self, file: TensorFile, choice: Choice) -> Adapter:
        """The adapter in the file. Raises FormatError saying what the file is instead."""
