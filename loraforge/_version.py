"""The version, in its own file: code that records it does not import the whole package."""

from __future__ import annotations

__version__ = "0.1.0.dev0"
