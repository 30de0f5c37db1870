"""Base weights in memory, moved to another layout by the rows that a route names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from loraforge.base.route import route
from loraforge.names.layout import Architecture, Variant


def carry(
    base: Mapping[str, np.ndarray], arch: Architecture, source: str, target: str, variants: Sequence[Variant]
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The parameters under the keys of another layout, and the keys left behind with the reason.

    What needs no stacking is a view of the source. Raises ConversionError as `route` does.
    """
    pieces, dropped = route({key: array.shape for key, array in base.items()}, arch, source, target, variants)
    rows = {key: [base[part.key][part.start : part.stop] for part in parts] for key, parts in pieces.items()}
    return {key: views[0] if len(views) == 1 else np.concatenate(views) for key, views in rows.items()}, dropped
