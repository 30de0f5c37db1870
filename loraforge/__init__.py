"""Convert LoRA adapters between frameworks, and prove that the result does what the adapter did where it was trained.

`convert`, `inspect`, `verify` and `stamp` take what the commands of the same name take; `read` and `write` are the two
halves of `convert`. Nothing here imports numpy before the first file is opened.
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
    from loraforge.diagnosis.result import Diagnosis as Diagnosis
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

_HOMES = {
    "Adapter": "adapter.adapter",
    "BaseReport": "base.convert_base",
    "Diagnosis": "diagnosis.result",
    "Format": "format.protocol",
    "FuseReport": "base.fuse",
    "FusionBackend": "fusion.backend",
    "Inspection": "conversion.inspect",
    "KeyStyle": "format.keys",
    "Loaded": "live.load_into",
    "LoraforgeError": "errors",
    "PushReport": "publishing.push",
    "Report": "conversion.report",
    "RunReport": "live.run",
    "Spelling": "format.keys",
    "Stamp": "conversion.stamp",
    "Storage": "adapter.adapter",
    "Verification": "conversion.verify",
    "convert": "conversion.convert",
    "convert_base": "base.convert_base",
    "doctor": "diagnosis.doctor",
    "formats": "format.registry",
    "fuse": "base.fuse",
    "hookimpl": "plugin.hooks",
    "inspect": "conversion.inspect",
    "load_into": "live.load_into",
    "push": "publishing.push",
    "read": "conversion.read",
    "run": "live.run",
    "skeleton": "conversion.inspect",
    "stamp": "conversion.stamp",
    "use_plugin": "plugin.registry",
    "verify": "conversion.verify",
    "write": "conversion.write",
}
"""Name -> the module it is loaded from when it is first asked for (PEP 562)."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'loraforge' has no attribute {name!r}")
    value = getattr(import_module(f"loraforge.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


__all__ = [
    "Adapter",
    "BaseReport",
    "Diagnosis",
    "Format",
    "FuseReport",
    "FusionBackend",
    "Inspection",
    "KeyStyle",
    "Loaded",
    "LoraforgeError",
    "PushReport",
    "Report",
    "RunReport",
    "Spelling",
    "Stamp",
    "Storage",
    "Verification",
    "__version__",
    "convert",
    "convert_base",
    "doctor",
    "formats",
    "fuse",
    "hookimpl",
    "inspect",
    "load_into",
    "push",
    "read",
    "run",
    "skeleton",
    "stamp",
    "use_plugin",
    "verify",
    "write",
]
