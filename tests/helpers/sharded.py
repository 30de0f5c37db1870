"""A sharded transformer whose fuse takes long enough to be killed on the way, and an adapter for it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

HIDDEN, BLOCKS = 256, 6


def sharded_model(place: Path) -> tuple[Path, Path]:
    """The folder of the base, one file per block, and the file of the adapter."""
    base, rng = place / "base", np.random.default_rng(0)
    base.mkdir()
    where, lora = {}, {}
    for i in range(BLOCKS):
        stem = f"transformer_blocks.{i}"
        shapes = {f"attn1.{name}": (HIDDEN, HIDDEN) for name in ("to_q", "to_k", "to_v", "to_out.0")}
        shapes |= {"ff.net.0.proj": (4 * HIDDEN, HIDDEN), "ff.net.2": (HIDDEN, 4 * HIDDEN)}
        tensors = {f"{stem}.{n}.weight": rng.standard_normal(s).astype(np.float16) for n, s in shapes.items()}
        tensors |= {f"{stem}.{n}.bias": rng.standard_normal(s[0]).astype(np.float16) for n, s in shapes.items()}
        name = f"diffusion_pytorch_model-{i + 1:05}-of-{BLOCKS:05}.safetensors"
        save_file(tensors, base / name, {"format": "pt"})
        where |= dict.fromkeys(tensors, name)
        for n, (rows, width) in shapes.items():
            lora[f"transformer.{stem}.{n}.lora_A.weight"] = rng.standard_normal((8, width)).astype(np.float16)
            lora[f"transformer.{stem}.{n}.lora_B.weight"] = rng.standard_normal((rows, 8)).astype(np.float16) / 64
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (base / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    (base / "config.json").write_text("{}")
    save_file(lora, place / "adapter.safetensors", {"format": "pt"})
    return base, place / "adapter.safetensors"
