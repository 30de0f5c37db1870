"""PEFT folders, healthy until a test changes them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hostile.builders import HIDDEN, RANK, factors, numbers, safetensors

ROOT = "base_model.model."
MODULE = "transformer_blocks.0.attn1.to_q"
OTHER = "transformer_blocks.0.attn1.to_k"
CONV = "patch_embed.proj"
NAMES = ("adapter_model.safetensors", "adapter_config.json")
A, B = factors()
Tensors = Mapping[str, np.ndarray]


def cases(table: Mapping[str, Any]) -> Any:
    """The values and ids of a table, for parametrize; a lone value is a case of its own."""
    return {"argvalues": list(table.values()), "ids": list(table)}


def lora(prefix: str = ROOT, *modules: str) -> dict[str, np.ndarray]:
    """A healthy LoRA."""
    return {
        f"{prefix}{module}.lora_{name}.weight": factor
        for module in modules or (MODULE,)
        for name, factor in (("A", A), ("B", B))
    }


def config(**entries: Any) -> dict[str, Any]:
    return {"peft_type": "LORA", "r": RANK, "lora_alpha": 2, "target_modules": ["to_q", "to_k", "proj"]} | entries


def peft(folder: Path, tensors: Tensors | None = None, said: Any = None, *, text: bytes | None = None) -> Path:
    """A folder as save_pretrained leaves it."""
    folder.mkdir(parents=True)
    (folder / NAMES[0]).write_bytes(safetensors(lora() if tensors is None else tensors))
    (folder / NAMES[1]).write_bytes(json.dumps(config() if said is None else said).encode() if text is None else text)
    return folder


LENGTHS = np.abs(numbers(HIDDEN)) + 1
A4, B4 = numbers(RANK, 2, 2, 2), numbers(HIDDEN, RANK, 1, 1)
MANY = lora(ROOT, *(f"transformer_blocks.{n}.attn1.to_{name}" for n in range(80) for name in "qkv"))


def all_named(prefix: str, *names: str) -> dict[str, np.ndarray]:
    """The same LoRA once per adapter name; `` for none."""
    keys = lora(prefix).items()
    return {
        key.removesuffix("weight") + f"{name}.weight".removeprefix("."): factor
        for name in names
        for key, factor in keys
    }
