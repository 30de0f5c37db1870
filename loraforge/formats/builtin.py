"""The built-in formats, registered through the same hook as anybody's."""

from __future__ import annotations

from collections.abc import Iterable

from loraforge.formats import Format
from loraforge.formats.diffusers import DiffusersFormat
from loraforge.formats.peft import PeftFormat
from loraforge.formats.sat import SatFormat
from loraforge.hookspecs import hookimpl


@hookimpl
def loraforge_formats() -> Iterable[Format]:
    return [SatFormat(), DiffusersFormat(), PeftFormat()]
