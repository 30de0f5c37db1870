"""Builds SAT checkpoints with torch, of any size, with the key names the real trainer uses."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml

PREFIX = "model.diffusion_model."


def lora_tensors(
    layers: Iterable[int], hidden: int, rank: int, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, torch.Tensor]:
    """The eight LoRA tensors of each layer: q, k, v and dense."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for i in layers:
        for module, parts in (("query_key_value", 3), ("dense", 1)):
            for part in range(parts):
                stem = f"{PREFIX}transformer.layers.{i}.attention.{module}"
                tensors[f"{stem}.matrix_A.{part}"] = torch.randn(rank, hidden, generator=generator).mul(0.02).to(dtype)
                tensors[f"{stem}.matrix_B.{part}"] = torch.randn(hidden, rank, generator=generator).mul(1e-3).to(dtype)
    return tensors


def write_run(
    place: Path,
    tensors: dict[str, torch.Tensor],
    *,
    iterations: Iterable[str] = ("1000",),
    latest: str | None = "1000",
    lora: dict[str, Any] | None = None,
) -> Path:
    """A run folder with the same tensors in every iteration. `lora`: the lora_config params of its YAML, if any."""
    run = place / "run"
    for iteration in iterations:
        (run / iteration).mkdir(parents=True)
        torch.save({"module": tensors, "iteration": 1000}, run / iteration / "mp_rank_00_model_states.pt")
    if latest is not None:
        (run / "latest").write_text(latest)
    if lora is not None:
        config = {"model": {"network_config": {"params": {"modules": {"lora_config": {"params": lora}}}}}}
        (run / "training_config.yaml").write_text(yaml.safe_dump(config))
    return run
