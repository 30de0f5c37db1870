"""Adapters of tiny models, as a training in Diffusers' names leaves them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from helpers.tiny import Tiny

SCALE, RANK = 0.5, 3
Updates = dict[str, np.ndarray]


def trained(tiny: Tiny, file: Path, *words: str) -> Updates:
    """A Diffusers file that adapts every matrix whose path ends with one of the words, and its updates in float64."""
    rng, state, updates = np.random.default_rng(5), dict[str, np.ndarray](), Updates()
    for path, segment, _, shape in tiny.placed:
        if segment in tiny.whole.unadapted or len(shape) < 2 or not path.endswith(words or ("",)):
            continue
        rows = tiny.state[f"{path}.weight"].shape[0]
        B, A = rng.standard_normal((rows, RANK)), rng.standard_normal((RANK, int(np.prod(shape[1:]))))
        kernel = shape[2:]
        state[f"transformer.{path}.lora_A.weight"] = (A * 0.2).astype("f4").reshape(RANK, *shape[1:])
        state[f"transformer.{path}.lora_B.weight"] = (B * 0.2).astype("f4").reshape(rows, RANK, *[1] * len(kernel))
        factors = (state[f"transformer.{path}.lora_{f}.weight"].astype("f8").reshape(-1, n) for f, n in
                   (("B", RANK), ("A", A.shape[1])))  # fmt: skip
        updates[path] = SCALE * np.matmul(*factors).reshape(rows, *shape[1:])
    save_file(state, file)
    return updates
