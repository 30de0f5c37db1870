"""The registry: the plugins of this process, and what readers make of them, whatever their order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from loraforge.errors import LoraforgeError
from loraforge.text import plain

T = TypeVar("T")


@dataclass(slots=True)
class Reading(Generic[T]):
    """The result of one reader: a value, and what each plugin adds or does wrong."""

    value: T
    adds: list[tuple[str, str]] = field(default_factory=list)
    """Plugin and what it adds: `format kohya`."""
    faults: list[tuple[str, str]] = field(default_factory=list)
    """Plugin and its fault."""

    def fault(self, plugin: str, error: BaseException | str) -> None:
        """Note a fault of a plugin, in one line."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self.faults.append((plugin, plain(" ".join(text.split()), 600)))


class Registry:
    """The installed plugins, those of the user's folder, and `files`. They are loaded when a reader needs them."""

    def __init__(self, files: tuple[Path, ...] = ()) -> None:
        self.files = files
        self._readings: dict[Any, Any] = {}

    def read(self, reader: Callable[[Registry], Reading[T]]) -> Reading[T]:
        """The result of `reader`, which depends on the registry alone and is called once."""
        if reader not in self._readings:
            self._readings[reader] = reader(self)
        reading: Reading[T] = self._readings[reader]
        return reading


_in_use = [Registry()]


def current() -> Registry:
    """The registry of this process."""
    return _in_use[0]


def use(registry: Registry) -> None:
    """Make this the registry of the process."""
    _in_use[0] = registry


def use_plugin(path: str | Path) -> None:
    """Load a plugin file (.toml or .py) besides the installed ones, from now on.

    Raises LoraforgeError if it is neither. `loraforge plugins list` reports the faults inside it.
    """
    file = Path(path)
    if file.suffix not in (".toml", ".py") or not file.is_file():
        raise LoraforgeError(f"--plugin {file}: no .toml or .py file of that name.")
    use(Registry((*current().files, file)))
