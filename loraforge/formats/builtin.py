"""The formats that are built in."""

from __future__ import annotations

from loraforge.formats import Format
from loraforge.formats.diffusers import DiffusersFormat
from loraforge.formats.peft import PeftFormat
from loraforge.formats.sat import SatFormat

FORMATS: tuple[Format, ...] = (SatFormat(), DiffusersFormat(), PeftFormat())
