"""How far two numbers of a test may be apart, by where they come from. CONTRIBUTING.md has the table.

Two processors sum a product of matrices in different orders, and round their sines differently. So equality of bits is
asked of what is computed twice on one machine by the same operations, and of what is only moved; of nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

UPDATE = 1e-6
"""Of an update s B A, as a share of its norm: float64 sums of float32 or exact factors, against recorded ones."""

WEIGHT = 1e-6
"""Of one weight of a tiny model in float32 (weights are below 1): the same update, added in another order."""

FORWARD = 5e-5
"""Of what a tiny float32 model puts out: recorded elsewhere (as its manifest says), or here in another order."""

TABLE = 2.0**-23
"""Of sines and cosines in float32 (below 1): the last bit."""


def off_by(got: torch.Tensor, want: torch.Tensor) -> float:
    """The largest difference of two outputs."""
    return float((got - want).abs().max())


def share(got: np.ndarray, want: np.ndarray) -> float:
    """The difference of two updates, as a share of the norm of the second."""
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))
