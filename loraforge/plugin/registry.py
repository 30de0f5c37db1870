"""The registry: the plugins of this process, and what is made of them. Whoever asks first changes no answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from loraforge.errors import LoraforgeError
from loraforge.text import command, plain

T = TypeVar("T")


@dataclass(slots=True)
class Reading(Generic[T]):
    """What one reader makes of the plugins: a value, and what it has to say of each plugin by name."""

    value: T
    adds: list[tuple[str, str]] = field(default_factory=list)
    """Plugin and what it adds, as `format kohya`."""
    faults: list[tuple[str, str]] = field(default_factory=list)
    """Plugin and what is wrong with it."""

    def fault(self, plugin: str, error: BaseException | str) -> None:
        """Note what is wrong with a plugin, in one line."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self.faults.append((plugin, plain(" ".join(text.split()), 600)))


class Registry:
    """The installed plugins, those of the user's folder, and `files`. Nothing is loaded before a reader asks."""

    def __init__(self, files: tuple[Path, ...] = ()) -> None:
        self.files = files
        self._readings: dict[Any, Any] = {}

    def read(self, reader: Callable[[Registry], Reading[T]]) -> Reading[T]:
        """What `reader`, a function of the registry alone, makes of it; each is run once."""
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

    Raises LoraforgeError when it is neither. What is wrong inside it is reported by `loraforge plugins list`.
    """
    file = Path(path)
    if file.suffix not in (".toml", ".py") or not file.is_file():
        raise LoraforgeError(f"--plugin {file}: no .toml or .py file of that name.", command("ls", "-l", file.parent))
    use(Registry((*current().files, file)))
