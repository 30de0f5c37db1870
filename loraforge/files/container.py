"""What a container of tensors is: a file, or a folder, whose beginning or name tells how it is read."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from loraforge.files.tensorfile import TensorFile


class Container(Protocol):
    """One way to store tensors. To add one: a class like this, and its place in the table of files/opening.py."""

    kind: str
    """What messages call it, and `TensorFile.kind`."""
    suffixes: tuple[str, ...]
    """Lower case. A file of another suffix is read all the same, with a warning."""

    def recognises(self, head: bytes, path: Path) -> bool:
        """Whether `path` is one, by its first 64 bytes (none for a folder) and its name. Raises nothing."""

    def open(self, path: Path) -> TensorFile:
        """Its names, shapes and metadata; tensors are mapped when asked for. Runs and imports nothing of the file.

        Raises FileError, with a remedy or without, when it is damaged, unsupported or hostile.
        """
