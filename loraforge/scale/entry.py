"""An entry of a training configuration or launch script that states alpha, rank or patterns, and its names."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from loraforge.errors import ScaleError
from loraforge.text import command

SAT_DEFAULT = "SAT's default lora_alpha"
ALPHAS = ("lora_alpha", "network_alpha", SAT_DEFAULT, "alpha")
RANKS = ("lora_rank", "lora_r", "network_dim", "network_rank", "rank", "r")
RSLORA = ("use_rslora", "rslora")
PATTERNS = ("alpha_pattern", "rank_pattern")
NAMES = frozenset((*ALPHAS, *RANKS, *RSLORA, *PATTERNS))
BARE = ("alpha", "rank", "r")
"""Names with other meanings too (a blend, a process): ignored if the same mapping has a clearer name."""


class _Entry(NamedTuple):
    name: str
    value: object
    place: str


def _wrong(path: Path, what: str) -> ScaleError:
    look = command("grep", "-n", "-i", "-E", "alpha|rank|lora", path)
    return ScaleError(f"{path}: {what} State what this run used with --alpha.", look)
