"""Names of files: suffixes of tensor files, and the configurations that are beside them."""

from __future__ import annotations

SAFETENSORS: tuple[str, ...] = (".safetensors",)
TORCH: tuple[str, ...] = (".pt", ".pth", ".bin", ".ckpt")
TENSORS = SAFETENSORS + TORCH
"""Suffixes of the files that are read."""

BESIDE = """training_config.yaml args.yaml config.yaml args.json training_args.json hparams.yml hparams.yaml
files/config.yaml wandb/latest-run/files/config.yaml""".split()
