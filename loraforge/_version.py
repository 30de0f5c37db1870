"""The version, in a file of its own so that what stamps it into files need not import the front door."""

from __future__ import annotations

__version__ = "0.1.0.dev0"
