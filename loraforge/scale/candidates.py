"""The scales at which an adapter without a record may have been trained, as remedies of the error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from loraforge.errors import Try, adding
from loraforge.scale.writers import titles
from loraforge.text import listed


def candidates(ranks: Mapping[str, int], known: Mapping[str, Mapping[str, Any]]) -> list[Try]:
    """One addition to the command per scale that one of the trainers could have used. `known`: what `writers` gives."""
    tries, values = dict[float, Try](), sorted(set(ranks.values()))
    for name, trainer in known.items():
        for option, value, scale, why in _ways(name, trainer, values):
            tries.setdefault(scale, adding(option, value, why=f"{why}: scale {scale:g}", scale=scale))
    equal = titles({name: trainer for name, trainer in known.items() if trainer["alpha"] == "rank"})
    if equal or not known:
        why = f"lora_alpha was equal to the rank{f', as in {listed(equal, 4)}' if equal else ''}: scale 1"
        tries.setdefault(1.0, adding("--trained-scale", "1", why=why, scale=1.0))
    return list(tries.values())


def _ways(name: str, trainer: Mapping[str, Any], values: list[int]) -> list[tuple[str, str, float, str]]:
    """Option, value, scale and reason of each scale that a trainer with a number for alpha could have used."""
    alpha, title = trainer["alpha"], trainer["title"]
    if alpha == "rank":
        return []
    kept, ratio = alpha / values[-1], alpha / trainer["ranks"][0]
    if set(values) <= set(trainer["ranks"]):
        return [("--trained-by", name, kept, title)]
    if ratio == 1:
        return [("--trained-scale", "1", 1.0, title)]
    if alpha == 1:  # SAT's default, which no configuration sets
        return [("--alpha", "1", kept, title)]
    return [  # whoever changed the rank may have changed alpha too
        ("--alpha", f"{alpha}", kept, f"{title}, alpha left at {alpha}"),
        ("--trained-scale", f"{ratio:g}", ratio, f"{title}, alpha changed with the rank"),
    ]
