"""Convert LoRA adapters between frameworks, and prove that the result does what the adapter did where it was trained.

`convert`, `inspect`, `verify` and `stamp` take the options of the commands of the same names; `read` and `write` are
the two halves of `convert`. Nothing here imports numpy before a name that needs it is used.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

from loraforge._version import __version__ as __version__

_STUB = Path(__file__).with_suffix(".pyi").read_text("utf-8")
_LINES = (line.split(" import ") for line in _STUB.splitlines() if line.startswith("from "))
_HOMES = {
    each.partition(" as ")[0]: start.removeprefix("from ") for start, names in _LINES for each in names.split(", ")
}
"""Name -> the module that it is loaded from when it is first asked for (PEP 562)."""
__all__ = sorted(_HOMES)  # noqa: PLE0605 - one table, not two


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'loraforge' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
