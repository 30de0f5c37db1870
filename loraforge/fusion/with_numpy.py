"""The built-in backend: numpy, on as many threads as there are cores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from loraforge.fusion import Sums, Term

if TYPE_CHECKING:
    from loraforge.lora import Array


class NumpyBackend:
    """Needs nothing but the core."""

    name = "numpy"
    summary = "on the CPU, without torch"

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def fuse(self, weight: Array, terms: Sequence[Term], dtype: Any, device: str) -> tuple[Array, Sums]:
        import numpy as np

        from loraforge.half import widen

        del device  # there is one
        wide: Any = np.float64 if weight.dtype == np.float64 else np.float32
        W = widen(weight, wide)
        D = np.zeros_like(W)
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is told by whoever looks at the result
            for term in terms:
                w = term.weight
                update = (widen(w.B, wide) * wide(term.scaling)) @ widen(w.A, wide)
                if w.magnitude is not None:
                    update += W
                    length = np.sqrt(_sums(update, update))[:, None]
                    update *= (widen(w.magnitude)[:, None] / length).astype(wide)
                    update -= W
                D += update
            fused = (W + D).astype(dtype)
            applied = widen(fused, wide)
            unchanged = int(np.count_nonzero(applied == W))
            applied -= W
            base, ideal, kept, product = (
                float(_sums(*pair).sum()) for pair in ((W, W), (D, D), (applied, applied), (applied, D))
            )
            applied -= D
            lost = float(_sums(applied, applied).sum())
            return fused, Sums(W.size, unchanged, base, ideal, kept, product, lost)


def _sums(x: Array, y: Array) -> Array:
    """The products, summed row by row, and from there on in float64."""
    import numpy as np

    rows: Array = np.einsum("ij,ij->i", x, y).astype(np.float64)
    return rows
