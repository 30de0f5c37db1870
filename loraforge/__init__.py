"""Convert LoRA adapters between frameworks, and prove that the result does what the adapter did where it was trained.

`convert`, `inspect`, `verify` and `stamp` take what the commands of the same name take. Nothing here imports numpy
before the first file is opened.
"""

from __future__ import annotations

__version__ = "0.1.0.dev0"

from loraforge.convert import convert as convert
from loraforge.errors import LoraforgeError as LoraforgeError
from loraforge.inspect import Inspection as Inspection
from loraforge.inspect import inspect as inspect
from loraforge.inspect import skeleton as skeleton
from loraforge.report import Report as Report
from loraforge.stamp import Stamp as Stamp
from loraforge.stamp import stamp as stamp
from loraforge.verify import Verification as Verification
from loraforge.verify import verify as verify

__all__ = [
    "Inspection",
    "LoraforgeError",
    "Report",
    "Stamp",
    "Verification",
    "__version__",
    "convert",
    "inspect",
    "skeleton",
    "stamp",
    "verify",
]
