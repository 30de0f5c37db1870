"""The backend of loraforge[torch]: CUDA if there is a GPU, else the CPU."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import ml_dtypes
import numpy as np

from loraforge.algebra.lora import Array
from loraforge.fusion.backend import Sums, Term


class TorchBackend:
    """Computes as numpy's backend does, operation by operation."""

    name = "torch"
    summary = "on CUDA or the CPU; needs torch"

    def devices(self) -> tuple[str, ...]:
        if find_spec("torch") is None:
            return ()
        if shutil.which("nvidia-smi") is None:  # importing torch takes seconds: only if there may be a GPU
            return ("cpu",)
        import torch

        return ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)

    def fuse(self, weight: Array, terms: Sequence[Term], dtype: Any, device: str) -> tuple[Array, Sums]:
        import torch

        wide = torch.float64 if weight.dtype == np.float64 else torch.float32

        def on_device(x: Array) -> Any:
            return as_tensor(x).to(device).to(wide)

        with torch.inference_mode():
            W = on_device(weight)
            D = torch.zeros_like(W)
            for term in terms:
                w = term.weight
                update = (on_device(w.B) * term.scaling) @ on_device(w.A)
                if w.magnitude is not None:
                    update += W
                    length = torch.linalg.vector_norm(update, dim=1, keepdim=True, dtype=torch.float64)
                    update *= (on_device(w.magnitude).double()[:, None] / length).to(wide)
                    update -= W
                D += update
            fused = (W + D).to(getattr(torch, np.dtype(dtype).name))
            unchanged = int((fused == W).sum())
            applied = fused - W  # not in place: in float32 the fused weights are no copy
            pairs = ((W, W), (D, D), (applied, applied), (applied, D), (applied - D, applied - D))
            base, ideal, kept, product, lost = (float((x * y).sum(dtype=torch.float64)) for x, y in pairs)
            return as_array(fused), Sums(W.numel(), unchanged, base, ideal, kept, product, lost)


def as_tensor(array: Array) -> Any:
    """A copy as a tensor: the memory of a file is read-only."""
    import torch

    plain = np.ascontiguousarray(array)
    if plain.dtype.name == "bfloat16":  # a type of ml_dtypes, unknown to torch
        return torch.from_numpy(plain.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(plain.copy())


def as_array(tensor: Any) -> Array:
    """The numbers of a tensor of any device."""
    import torch

    plain = tensor.detach().cpu().contiguous()
    bits = plain.dtype == torch.bfloat16  # which numpy does not have
    array: Array = plain.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if bits else plain.numpy()
    return array
