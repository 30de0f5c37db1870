"""What a format is, and the formats that are built in. To add one, see CONTRIBUTING.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from loraforge.adapter import Adapter, Storage
from loraforge.scale import Statement

if TYPE_CHECKING:
    from loraforge.lora import Array, Delta
    from loraforge.tensorfile import TensorFile


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of several checkpoints the user wants, and what they say of its scale."""

    iteration: int | None = None
    ema: bool = False
    training_config: Path | None = None
    stated: Statement = field(default_factory=Statement)


@dataclass(frozen=True, slots=True)
class Found:
    """The one file of a source that holds the tensors."""

    path: Path
    run: str
    """What to call the result by default: `lora-disney-1000`."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """The names and numbers of an adapter that fits the format, before its tensors are at hand."""

    ranks: Mapping[str, int]
    scalings: Mapping[str, float]


class Writer(Protocol):
    """How a format is written. The core does the algebra first: a writer spells names and nothing else."""

    storage: Storage
    file_name: str
    """The canonical name of a written file."""

    def header(self, target: Target) -> dict[str, str]:
        """The metadata a written file carries for its loaders."""

    def encode(self, path: str, delta: Delta) -> Iterator[tuple[str, Array]]:
        """The keys and tensors of one module."""

    def how_to_load(self, path: Path) -> tuple[str, str]:
        """The line that loads a written file at strength 1.0, and what not to load it with."""


class Format(Protocol):
    """One way of storing adapters. Implementations import numpy, if at all, inside their methods."""

    name: str
    """What `--from` and `--to` take."""
    summary: str
    """One phrase for `loraforge formats`."""
    layouts: Mapping[str, str]
    """Architecture -> the layout its module paths follow."""
    writer: Writer | None
    """None where the format is only read."""

    def find(self, source: Path, choice: Choice) -> Found | None:
        """The file to read in a folder of this format; None where the folder is not one."""

    def claims(self, file: TensorFile) -> bool:
        """Say whether this file is of this format, judged by keys and header alone."""

    def read(self, file: TensorFile, choice: Choice) -> Adapter:
        """The adapter in the file. Raises FormatError saying what the file is instead."""
