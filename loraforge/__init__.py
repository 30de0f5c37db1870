"""Convert LoRA adapters between frameworks, and prove that the result does what the adapter did where it was trained.

`convert`, `inspect`, `verify` and `stamp` take what the commands of the same name take; `read` and `write` are the two
halves of `convert`. Nothing here imports numpy before the first file is opened.
"""

from __future__ import annotations

from loraforge._version import __version__ as __version__
from loraforge.adapter import Adapter as Adapter
from loraforge.adapter import Storage as Storage
from loraforge.convert import convert as convert
from loraforge.convertbase import BaseReport as BaseReport
from loraforge.convertbase import convert_base as convert_base
from loraforge.doctor import Diagnosis as Diagnosis
from loraforge.doctor import doctor as doctor
from loraforge.errors import LoraforgeError as LoraforgeError
from loraforge.formats import Format as Format
from loraforge.fuse import FuseReport as FuseReport
from loraforge.fuse import fuse as fuse
from loraforge.fusion import FusionBackend as FusionBackend
from loraforge.hookspecs import hookimpl as hookimpl
from loraforge.inspect import Inspection as Inspection
from loraforge.inspect import inspect as inspect
from loraforge.inspect import skeleton as skeleton
from loraforge.keys import KeyStyle as KeyStyle
from loraforge.keys import Spelling as Spelling
from loraforge.pipeline import Loaded as Loaded
from loraforge.pipeline import load_into as load_into
from loraforge.plugins import use_plugin as use_plugin
from loraforge.push import PushReport as PushReport
from loraforge.push import push as push
from loraforge.read import read as read
from loraforge.registry import formats as formats
from loraforge.report import Report as Report
from loraforge.run import RunReport as RunReport
from loraforge.run import run as run
from loraforge.stamp import Stamp as Stamp
from loraforge.stamp import stamp as stamp
from loraforge.verify import Verification as Verification
from loraforge.verify import verify as verify
from loraforge.write import write as write

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
