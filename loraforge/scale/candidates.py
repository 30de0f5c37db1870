"""The scales at which an adapter without a record may have been trained, as remedies of the error."""

from __future__ import annotations

from collections.abc import Mapping

from loraforge.errors import Try, adding
from loraforge.tables import package_table


def candidates(ranks: Mapping[str, int], writes: str) -> list[Try]:
    """One addition to the command per scale a known trainer of this format could have used."""
    seen, tries = set[float](), []
    values = sorted(set(ranks.values()))
    for name, trainer in package_table("facts/trainers").items():
        if writes not in trainer["writes"]:
            continue
        alpha, rank = trainer["alpha"], trainer["ranks"][0]
        kept, ratio = alpha / values[-1], alpha / rank
        if set(values) <= set(trainer["ranks"]):
            ways = [("--trained-by", name, kept, trainer["title"])]
        elif alpha == rank:
            ways = [("--trained-scale", "1", 1.0, trainer["title"])]
        elif alpha == 1:  # SAT's default, which no configuration sets
            ways = [("--alpha", "1", kept, trainer["title"])]
        else:  # whoever changed the rank may have changed alpha too
            ways = [
                ("--alpha", f"{alpha}", kept, f"{trainer['title']}, alpha left at {alpha}"),
                ("--trained-scale", f"{ratio:g}", ratio, f"{trainer['title']}, alpha changed with the rank"),
            ]
        for option, value, scaling, why in ways:
            if scaling not in seen:
                seen.add(scaling)
                tries.append(adding(option, value, why=f"{why}: scale {scaling:g}", scale=scaling))
    return tries or [adding("--trained-scale", "1", why="lora_alpha was equal to the rank: scale 1", scale=1.0)]
