"""Small adapters made in code, and what doctor says of programs for them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import loraforge
from loraforge.programs import outlook
from loraforge.scale import peft_config

ATTENTION = [f"transformer_blocks.{i}.attn1.{name}" for i in (0, 1) for name in ("to_q", "to_k", "to_v", "to_out.0")]
EMBED = "patch_embed.proj"
rng = np.random.default_rng(0)


BASE = "zai-org/CogVideoX-2b"
"""What shows that a test's small adapter is CogVideoX's."""


def peft(place: Path, ranks: dict[str, int], scale: float = 0.5) -> Path:
    """A folder of PEFT's with these modules; `patch_embed.proj` is a convolution."""
    tensors = {}
    for module, rank in ranks.items():
        more, ones = ((16, 2, 2), (1, 1)) if module == EMBED else ((64,), ())
        tensors[f"base_model.model.{module}.lora_A.weight"] = rng.standard_normal((rank, *more), np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = rng.standard_normal((64, rank, *ones), np.float32)
    place.mkdir()
    save_file(tensors, place / "adapter_model.safetensors")
    config = peft_config.config(ranks, dict.fromkeys(ranks, scale), older=True)
    (place / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": BASE} | config)
    )
    return place


def rows(file: Path, **said) -> dict[str, outlook.Outlook]:
    return {row.runtime: row for row in loraforge.doctor(file, **said).outlooks}
