"""The hooks a plugin implements. Each returns what it adds; the registry knows whose it is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from loraforge.formats import Format

hookspec = pluggy.HookspecMarker("loraforge")
hookimpl = pluggy.HookimplMarker("loraforge")


@hookspec
def loraforge_formats() -> Iterable[Format]:
    """Return the adapter formats this plugin reads or writes."""
    raise RuntimeError("a specification is not called")
