"""Small adapters whose scale is recorded here or there, for tests of where it is looked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

PATHS = [f"transformer_blocks.{i}.attn1.{name}" for i in range(2) for name in ("to_q", "to_k", "to_v", "to_out.0")]
WORDS = {
    "diffusers": ("transformer.{}.lora_A.weight", "transformer.{}.lora_B.weight", ""),
    "peft": ("base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight", ""),
    "bare": ("{}.lora_A.weight", "{}.lora_B.weight", ""),
}


def adapter(
    place: Path,
    metadata: dict[str, str] | None = None,
    *,
    words: str = "diffusers",
    rank: int = 4,
    zeros: int = 0,
    seed: int = 7,
) -> Path:
    """An adapter of eight attention modules at `place`; of its components the last `zeros` are zero."""
    random = np.random.default_rng(seed)
    tensors = {}
    for path in PATHS:
        A, B = random.standard_normal((rank, 64)), random.standard_normal((64, rank))
        A[rank - zeros :], B[:, rank - zeros :] = 0, 0
        for name, factor in zip(WORDS[words], (A, B), strict=False):
            tensors[name.format(path)] = np.ascontiguousarray(factor * 0.1).astype(np.float32)
    place.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, place, metadata)
    return place
