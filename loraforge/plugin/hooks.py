"""The hooks that a plugin implements. Each returns what the plugin adds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pluggy

hookspec = pluggy.HookspecMarker("loraforge")
hookimpl = pluggy.HookimplMarker("loraforge")


@hookspec
def loraforge_formats() -> Iterable[Any]:
    """Return the adapter formats this plugin reads or writes: `loraforge.formats.Format`s, or TOML files."""
    raise RuntimeError("a specification is not called")


@hookspec
def loraforge_architectures() -> Iterable[Any]:
    """Return TOML files (paths, or resources of the package) that add architectures, or layouts of known ones."""
    raise RuntimeError("a specification is not called")


@hookspec
def loraforge_fusion_backends() -> Iterable[Any]:
    """Return ways to add updates to base weights: `loraforge.fusion.FusionBackend`s."""
    raise RuntimeError("a specification is not called")
