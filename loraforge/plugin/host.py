"""Loads plugins: installed packages, files named with --plugin, and the user's own folder.

A plugin that fails to import, misspells a hook or returns nonsense is reported with its package, and stops nothing.
Only this file and hooks.py use pluggy.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import pluggy
from platformdirs import user_config_path

from loraforge.plugin import hooks
from loraforge.plugin.registry import Reading, Registry
from loraforge.text import command

GROUP = "loraforge"
ENVIRONMENT = "LORAFORGE_PLUGINS"
"""The names of the plugins to load, separated by commas. Empty: none."""

BUILT_IN = "loraforge"
HOOKS = ("loraforge_formats", "loraforge_architectures", "loraforge_fusion_backends")


class DataFile(Protocol):
    """A TOML file: a path, or a resource of a package."""

    @property
    def name(self) -> str:
        """Its name, without folders."""

    def read_text(self, encoding: str) -> str:
        """Its text."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A plugin, what it adds, and its faults."""

    name: str
    package: str
    """Distribution and version, or the path of a file."""
    remove: str
    """How to remove it."""
    adds: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Host:
    """Every plugin, loaded as far as possible, and everything they add."""

    plugins: dict[str, Plugin]
    returned: dict[str, list[tuple[str, Any]]]
    """Hook -> the items that the plugins return for it, each with its plugin's name."""


def load(registry: Registry) -> Reading[Host]:
    """Load every plugin, and call each of its hooks once."""
    plugins = {BUILT_IN: Plugin(BUILT_IN, BUILT_IN, "")}
    reading = Reading(Host(plugins, {}))
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hooks)
    for plugin, loader in _wanted(registry.files):
        name = plugin.name if plugin.name not in plugins else f"{plugin.name} ({plugin.package})"
        plugins[name] = replace(plugin, name=name)
        try:
            manager.register(loader(), name=name)
            manager.check_pending()  # raises for a misspelt hook
            if not manager.get_hookcallers(manager.get_plugin(name)):
                reading.fault(name, "it implements no hook, so it adds nothing")
        except (Exception, SystemExit) as error:
            reading.fault(name, error)
            if manager.has_plugin(name):
                manager.unregister(name=name)
    for hook in HOOKS:
        calls = {call.plugin_name: call for call in getattr(manager.hook, hook).get_hookimpls()}
        items = reading.value.returned[hook] = []
        for name in (name for name in plugins if name in calls):
            try:
                items += [(name, item) for item in list(calls[name].function())]
            except (Exception, SystemExit) as error:
                reading.fault(name, error)
    return reading


def _wanted(files: tuple[Path, ...]) -> Iterator[tuple[Plugin, Callable[[], Any]]]:
    """Each plugin to load, and the function that loads it."""
    listed = os.environ.get(ENVIRONMENT)
    only = None if listed is None else {name.strip() for name in listed.split(",")}
    points = sorted(entry_points(group=GROUP), key=lambda p: (p.dist.name if p.dist else "", p.name))
    for point in points:
        plugin = _of_package(point)
        if only is None or only & {point.name, plugin.name, point.dist.name if point.dist else ""}:
            yield plugin, point.load
    for path in _user_files():
        if only is None or path.stem in only:
            yield Plugin(path.stem, str(path), command("rm", path)), partial(Toml, path)
    for path in files:
        plugin = Plugin(path.stem, str(path), f"leave out --plugin {command(path)}")
        yield plugin, partial(_from_file, path)


class Toml:
    """A data file as a plugin: it adds what its tables describe."""

    def __init__(self, file: DataFile) -> None:
        self.file = file

    @hooks.hookimpl
    def loraforge_formats(self) -> list[DataFile]:
        """The file itself; its tables are read later."""
        return [self.file]


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
