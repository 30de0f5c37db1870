"""Loads plugins: installed packages, files named with --plugin, and the user's own folder.

A plugin that fails to import, misspells a hook or returns nonsense is named, with its package, and takes nobody down.
Only this file knows pluggy.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pluggy
from platformdirs import user_config_path

from loraforge.errors import LoraforgeError
from loraforge.plugin import hooks
from loraforge.text import command, plain

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "loraforge"
ENVIRONMENT = "LORAFORGE_PLUGINS"
"""A list of names, separated by commas: only those are loaded. Empty: none."""

BUILT_IN = "loraforge"


class DataFile(Protocol):
    """A TOML file: a path, or a resource of a package."""

    @property
    def name(self) -> str:
        """Its name, without folders."""

    def read_text(self, encoding: str) -> str:
        """Its text."""


@dataclass(slots=True)
class Plugin:
    """One plugin, and what became of it."""

    name: str
    package: str
    """Distribution and version; the path of a file."""
    remove: str
    """How to get rid of it."""
    adds: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Host:
    """Every plugin that was found, loaded as far as possible."""

    def __init__(self, files: tuple[Path, ...]) -> None:
        self.plugins = {BUILT_IN: Plugin(BUILT_IN, BUILT_IN, "")}
        self._returned: dict[str, list[tuple[str, Any]]] = {}
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hooks)
        wanted = os.environ.get(ENVIRONMENT)
        only = None if wanted is None else {name.strip() for name in wanted.split(",")}
        for point in _entry_points():
            plugin = _of_package(point)
            if only is None or only & {point.name, plugin.name, point.dist.name if point.dist else ""}:
                self._load(plugin, point.load)
        for path in _user_files():
            if only is None or path.stem in only:
                self._load(Plugin(path.stem, str(path), command("rm", path)), lambda path=path: Toml(path))
        for path in files:
            plugin = Plugin(path.stem, str(path), f"leave out --plugin {command(path)}")
            self._load(plugin, lambda path=path: _from_file(path))

    def _load(self, plugin: Plugin, load: Any) -> None:
        if plugin.name in self.plugins:
            plugin.name = f"{plugin.name} ({plugin.package})"
        self.plugins[plugin.name] = plugin
        try:
            self._manager.register(load(), name=plugin.name)
            self._manager.check_pending()  # a misspelt hook is an error, not a silence
            if not self._manager.get_hookcallers(self._manager.get_plugin(plugin.name)):
                plugin.errors.append("it implements no hook, so it adds nothing")
        except (Exception, SystemExit) as error:
            self.fault(plugin.name, error)
            if self._manager.has_plugin(plugin.name):
                self._manager.unregister(name=plugin.name)

    def fault(self, name: str, error: BaseException | str) -> None:
        """Note what is wrong with a plugin."""
        text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
        self.plugins[name].errors.append(plain(" ".join(text.split()), 600))

    def results(self, hook: str) -> list[tuple[str, Any]]:
        """What the plugins return for a hook, item by item, each with its plugin's name; each is asked once."""
        if hook not in self._returned:
            self._returned[hook] = list(self._ask(hook))
        return self._returned[hook]

    def _ask(self, hook: str) -> Iterator[tuple[str, Any]]:
        calls = {call.plugin_name: call for call in getattr(self._manager.hook, hook).get_hookimpls()}
        for name in self.plugins:
            if name not in calls:
                continue
            try:
                items = list(calls[name].function())
            except (Exception, SystemExit) as error:
                self.fault(name, error)
                continue
            for item in items:
                yield name, item

    def broken(self) -> list[Plugin]:
        """The plugins with something wrong."""
        return [plugin for plugin in self.plugins.values() if plugin.errors]


class Toml:
    """A data file as a plugin: it adds what its tables say."""

    def __init__(self, file: DataFile) -> None:
        self.file = file

    @hooks.hookimpl
    def loraforge_formats(self) -> list[DataFile]:
        """The file itself; whoever reads the results looks inside."""
        return [self.file]


_files: list[Path] = []


def use_plugin(path: str | Path) -> None:
    """Load a plugin file (.toml or .py) besides the installed ones, from now on.

    Raises LoraforgeError when it is neither. What is wrong inside it is reported by `loraforge plugins list`.
    """
    file = Path(path)
    if file.suffix not in (".toml", ".py") or not file.is_file():
        raise LoraforgeError(f"--plugin {file}: no .toml or .py file of that name.", command("ls", "-l", file.parent))
    _files.append(file)
    forget()


def forget_files() -> bool:
    """Take back every `use_plugin`. Says whether there was one."""
    had = bool(_files)
    _files.clear()
    return had


def forget() -> None:
    """Load plugins anew when they are next asked for."""
    host.cache_clear()
    for listener in _listeners:
        listener.cache_clear()


_listeners: list[Any] = []
Cached = TypeVar("Cached")


def depends_on_plugins(function: Cached) -> Cached:
    """Marks a cached function whose result changes with the plugins."""
    _listeners.append(function)
    return function


@cache
def host() -> Host:
    """The plugins of this process, loaded when first asked for."""
    return Host(tuple(_files))


def _entry_points() -> list[EntryPoint]:
    """The entry points of our group, by package. Their reader takes 20 ms to load, so only where there are any."""
    if not any(map(_may_have_plugins, sys.path)):
        return []
    from importlib.metadata import entry_points

    return sorted(entry_points(group=GROUP), key=lambda p: (p.dist.name if p.dist else "", p.name))


def _may_have_plugins(place: str) -> bool:
    """Whether a package in this folder of the search path names our group; so too where that cannot be told fast."""
    folder = Path(place or ".")
    if not folder.is_dir():
        return folder.is_file()  # an archive: let the reader that knows archives look
    for described in folder.iterdir():
        if described.suffix not in (".dist-info", ".egg-info", ".egg"):
            continue
        try:
            named = f"[{GROUP}]".encode() in (described / "entry_points.txt").read_bytes()
        except OSError:
            named = False
        if named or described.suffix == ".egg":
            return True
    return False


def _of_package(point: EntryPoint) -> Plugin:
    if point.dist is None:
        return Plugin(point.name, "unknown package", "")
    package = point.dist.name
    name = package if package == f"loraforge-{point.name}" or package == point.name else f"{package}:{point.name}"
    return Plugin(name, f"{package} {point.dist.version}", command("pip", "uninstall", package))


def _user_files() -> list[Path]:
    folder = user_config_path("loraforge") / "plugins"
    try:
        return sorted(folder.glob("*.toml"))
    except OSError:
        return []


def _from_file(path: Path) -> ModuleType | Toml:
    if path.suffix == ".toml":
        return Toml(path)
    spec = importlib.util.spec_from_file_location(f"loraforge_plugin_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
