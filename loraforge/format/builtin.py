"""The formats that are built in."""

from __future__ import annotations

from loraforge.format.diffusers import DiffusersFormat
from loraforge.format.peft import PeftFormat
from loraforge.format.protocol import Format
from loraforge.format.sat import SatFormat

FORMATS: tuple[Format, ...] = (SatFormat(), DiffusersFormat(), PeftFormat())
