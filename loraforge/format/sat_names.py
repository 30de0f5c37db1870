"""Names of SAT's checkpoints: files, keys, and the section of the YAML that scales a LoRA."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import product

from loraforge.format.keys import KeyStyle, Spelling

CHECKPOINT = "mp_rank_00_model_states.pt"
CONFIG = "training_config.yaml"
LORA_SECTION = ("model", "network_config", "params", "modules", "lora_config", "params")
ITERATION = "1"
ORIGIN = "loraforge"
"""The part of the YAML that holds what the header of a safetensors file would."""

SAT_PREFIX = "model.diffusion_model."

_COMPONENTS = {SAT_PREFIX: "transformer (base)", "conditioner.": "text encoder (T5)", "first_stage_model.": "VAE"}

_AROUND = product(("", "module."), ("", "diffusion_model.", SAT_PREFIX), ("", "_orig_mod."))
PREFIXES = (SAT_PREFIX, *map("".join, _AROUND))
"""What stands before a module's path: SAT's own, and what DistributedDataParallel or torch.compile makes of it."""

STYLE = KeyStyle((Spelling(".matrix_A", ".matrix_B"),), PREFIXES, parts=True)


def is_lora(key: str) -> bool:
    """Whether a key is of SAT's LoRA."""
    return "matrix_A" in key or "matrix_B" in key


def components(keys: Iterable[str]) -> dict[str, int]:
    """Component of a SAT checkpoint -> how many of its keys there are."""
    names = (next((name for start, name in _COMPONENTS.items() if key.startswith(start)), "other") for key in keys)
    return dict(sorted(Counter(names).items()))
