"""Leaves out modules of an adapter that the user names."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import replace

from loraforge.adapter import Adapter
from loraforge.errors import ConversionError


def without(adapter: Adapter, patterns: Sequence[str]) -> tuple[Adapter, tuple[str, ...]]:
    """The adapter without the modules that match a pattern, and their names.

    Raises ConversionError when a pattern matches nothing, or nothing is left.
    """
    dropped = {module for pattern in patterns for module in fnmatch.filter(adapter.modules, pattern)}
    held = adapter.source.file.tensors if adapter.source else ()
    gone = set(held) - set(adapter.keys)  # what `read` has left out already
    useless = [p for p in patterns if not fnmatch.filter(adapter.modules, p) and not fnmatch.filter(gone, p)]
    if useless:
        raise ConversionError(
            f"--drop {useless[0]} matches no module (they are called like {next(iter(adapter.modules))})."
        )
    if len(dropped) == len(adapter.modules):
        raise ConversionError(f"--drop leaves none of the {len(dropped)} modules.")
    kept = {module: delta for module, delta in adapter.modules.items() if module not in dropped}
    return replace(adapter, modules=kept), tuple(sorted(dropped))
