"""Names of files: suffixes of tensor files, and the configurations that are beside them."""

from __future__ import annotations

import os
from pathlib import Path

SAFETENSORS: tuple[str, ...] = (".safetensors",)
TORCH: tuple[str, ...] = (".pt", ".pth", ".bin", ".ckpt")
TENSORS = SAFETENSORS + TORCH
"""Suffixes of the files that are read."""

BESIDE = """training_config.yaml args.yaml config.yaml args.json training_args.json hparams.yml hparams.yaml
files/config.yaml wandb/latest-run/files/config.yaml""".split()


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, by name, without those that may not be looked into."""
    may = os.R_OK | os.X_OK
    return sorted(p for p in folder.iterdir() if os.path.isdir(p) and os.access(p, may))  # noqa: PTH112 - raises nothing
