"""TODO."""

from __future__ import annotations

BESIDE = """training_config.yaml args.yaml config.yaml args.json training_args.json hparams.yml hparams.yaml
files/config.yaml wandb/latest-run/files/config.yaml""".split()
