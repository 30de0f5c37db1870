"""Adapters trained by sd-scripts with split_qkv: alpha counts over the rank of a part, and the file says another rank.

Source: sd-scripts networks/lora_flux.py, lora_sd3.py, lora_lumina.py, lora_hunyuan_image.py (LoRANetwork.state_dict:
q, k and v, and the MLP of Flux's linear1, are trained apart at alpha / r and saved as one block-diagonal pair of n
times the rank, with alpha unchanged); kohya-ss/sd-scripts#2204. networks/convert_flux_lora.py writes such pairs too,
and sets alpha to the new rank: there nothing is wrong.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from loraforge.algebra.lora import Array
from loraforge.errors import ReadingsError, ScaleError, adding
from loraforge.text import listed

WHOLE, APART = "sd-scripts", "sd-scripts-split-qkv"
"""The trainers of `--trained-by` whose alpha counts over the stored rank, and over the rank of a part."""


@dataclass(frozen=True, slots=True)
class Stacks:
    """The segments that are stacked in the modules of a file."""

    heights: Mapping[str, Sequence[int]]
    """Module path -> the rows of each segment."""
    B: Callable[[str], Array]
    """Called with a module path, gives its B [rows, rank]."""

    def block_diagonal(self, path: str, rank: int) -> bool:
        """Whether the rows of each segment use components of their own, equally many, and no others."""
        heights = self.heights[path]
        if rank % len(heights):
            return False
        B, width, row = self.B(path), rank // len(heights), 0
        for part, height in enumerate(heights):
            rows, row = B[row : row + height], row + height
            left, own = part * width, (part + 1) * width
            # of most adapters the first row alone shows that it is not
            if rows[:1, :left].any() or rows[:1, own:].any() or rows[:, :left].any() or rows[:, own:].any():
                return False
        return bool(B.any())


class Parts(NamedTuple):
    """The block-diagonal modules whose alpha counts over the rank of a part."""

    counts: Mapping[str, int]
    """Module path -> the number of its parts; empty if alpha counts over the stored rank."""
    why: str = ""
    """Who says so."""

    @property
    def note(self) -> str:
        """What other programs make of the file."""
        by_count = defaultdict[int, list[str]](list)
        for path, count in sorted(self.counts.items()):
            by_count[count].append(path)
        kinds = [f"{count}x too weak in {len(paths)} modules ({listed(paths, 2)})" for count, paths in by_count.items()]
        return f"sd-scripts trained it with split_qkv ({self.why}): every other program applies it {', '.join(kinds)}"


def parts(
    alphas: Mapping[str, float], ranks: Mapping[str, int], stacks: Stacks, metadata: Mapping[str, str], by: str | None
) -> Parts:
    """Which alphas count over the rank of a part. `by`: what `--trained-by` states.

    Raises ReadingsError if nothing tells whether they do; ScaleError if `by` says so and no module is block-diagonal.
    """
    if by != APART and stacks.heights.keys().isdisjoint(alphas):
        return Parts({})
    stacked = {path: len(stacks.heights[path]) if path in stacks.heights else 1 for path in alphas}
    stored = {path: float(f"{alpha / ranks[path]:.9g}") for path, alpha in alphas.items()}
    adjusted = len({*stored.values()}) == 1 and (1.0 in stored.values() or len({*stacked.values()}) > 1)
    asked = by == APART or (by != WHOLE and not adjusted)
    counts = {p: n for p, n in stacked.items() if asked and n > 1 and stacks.block_diagonal(p, ranks[p])}
    if counts and by == APART:
        return Parts(counts, f"--trained-by {APART}")
    if counts and _says_so(metadata.get("ss_network_args", "{}")):
        return Parts(counts, "ss_network_args in its header says so")
    if counts:
        apart = {value * counts.get(path, 1) for path, value in stored.items()}
        raise ReadingsError(
            f"lora_up of {len(counts)} modules is block-diagonal ({listed(sorted(counts), 3)}); alpha does not grow "
            "with its rank: so sd-scripts saves what it trained with split_qkv. Then alpha is meant over the rank of "
            "each part, and every other program applies too little. Nothing in its header says whether it was.",
            adding("--trained-by", APART, why=f"with split_qkv: {_range(apart)}"),
            adding("--trained-by", WHOLE, why=f"without it, alpha over the stored rank: {_range(stored.values())}"),
        )
    if by == APART:
        raise ScaleError(f"--trained-by {APART}: no lora_up in it is block-diagonal.", adding("--trained-by", WHOLE))
    return Parts({})


def _says_so(text: str) -> bool:
    """Whether a JSON object says that split_qkv is true, as sd-scripts reads it."""
    with suppress(ValueError, RecursionError):
        return isinstance(said := json.loads(text), dict) and str(said.get("split_qkv")) == "True"
    return False


def _range(values: Iterable[float]) -> str:
    low, high = f"{min(values):g}", f"{max(values):g}"
    return f"scale {low}" if low == high else f"scales {low} to {high}"
