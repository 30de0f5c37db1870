"""What is built in, registered through the same hooks as anybody's."""

from __future__ import annotations

from collections.abc import Iterable

from loraforge.formats import Format
from loraforge.formats.diffusers import DiffusersFormat
from loraforge.formats.peft import PeftFormat
from loraforge.formats.sat import SatFormat
from loraforge.fusion import FusionBackend
from loraforge.fusion.with_numpy import NumpyBackend
from loraforge.fusion.with_torch import TorchBackend
from loraforge.hookspecs import hookimpl


@hookimpl
def loraforge_formats() -> Iterable[Format]:
    return [SatFormat(), DiffusersFormat(), PeftFormat()]


@hookimpl
def loraforge_fusion_backends() -> Iterable[FusionBackend]:
    return [NumpyBackend(), TorchBackend()]
