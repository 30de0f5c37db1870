"""Convert LoRA adapters between frameworks, and prove that the result does what the adapter did where it was trained.

`convert`, `inspect`, `verify` and `stamp` take the options of the commands of the same names; `read` and `write` are
the two halves of `convert`. Nothing here imports numpy before a name that needs it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from loraforge._version import __version__ as __version__

if TYPE_CHECKING:
    from loraforge.adapter.adapter import Adapter as Adapter
    from loraforge.adapter.adapter import Storage as Storage
    from loraforge.base.convert_base import BaseReport as BaseReport
    from loraforge.base.convert_base import convert_base as convert_base
    from loraforge.base.fuse import FuseReport as FuseReport
    from loraforge.base.fuse import fuse as fuse
    from loraforge.conversion.convert import convert as convert
    from loraforge.conversion.inspect import Inspection as Inspection
    from loraforge.conversion.inspect import inspect as inspect
    from loraforge.conversion.inspect import skeleton as skeleton
    from loraforge.conversion.read import read as read
    from loraforge.conversion.report import Report as Report
    from loraforge.conversion.stamp import Stamp as Stamp
    from loraforge.conversion.stamp import stamp as stamp
    from loraforge.conversion.verify import Verification as Verification
    from loraforge.conversion.verify import verify as verify
    from loraforge.conversion.write import write as write
    from loraforge.diagnosis.doctor import doctor as doctor
    from loraforge.diagnosis.verdict import Diagnosis as Diagnosis
    from loraforge.errors import LoraforgeError as LoraforgeError
    from loraforge.format.keys import KeyStyle as KeyStyle
    from loraforge.format.keys import Spelling as Spelling
    from loraforge.format.protocol import Format as Format
    from loraforge.format.registry import formats as formats
    from loraforge.fusion.backend import FusionBackend as FusionBackend
    from loraforge.live.load_into import Loaded as Loaded
    from loraforge.live.load_into import load_into as load_into
    from loraforge.live.run import RunReport as RunReport
    from loraforge.live.run import run as run
    from loraforge.plugin.hooks import hookimpl as hookimpl
    from loraforge.plugin.registry import use_plugin as use_plugin
    from loraforge.publishing.push import PushReport as PushReport
    from loraforge.publishing.push import push as push

_EXPORTS = {
    "adapter.adapter": "Adapter Storage",
    "base.convert_base": "BaseReport convert_base",
    "base.fuse": "FuseReport fuse",
    "conversion.convert": "convert",
    "conversion.inspect": "Inspection inspect skeleton",
    "conversion.read": "read",
    "conversion.report": "Report",
    "conversion.stamp": "Stamp stamp",
    "conversion.verify": "Verification verify",
    "conversion.write": "write",
    "diagnosis.doctor": "doctor",
    "diagnosis.verdict": "Diagnosis",
    "errors": "LoraforgeError",
    "format.keys": "KeyStyle Spelling",
    "format.protocol": "Format",
    "format.registry": "formats",
    "fusion.backend": "FusionBackend",
    "live.load_into": "Loaded load_into",
    "live.run": "RunReport run",
    "plugin.hooks": "hookimpl",
    "plugin.registry": "use_plugin",
    "publishing.push": "PushReport push",
}
"""Module -> the names that are loaded from it when one is first asked for (PEP 562)."""
_HOMES = {name: module for module, names in _EXPORTS.items() for name in names.split()}

__all__ = sorted([*_HOMES, "__version__"])  # noqa: PLE0605 - one table, not two


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'loraforge' has no attribute {name!r}")
    value = getattr(import_module(f"loraforge.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
