"""The plain torch way to export a SAT LoRA, as CogVideo's own script goes about it: `plain.py CHECKPOINT FOLDER`.

Renames the keys and saves. It neither applies the scale nor checks what it wrote.
"""

from __future__ import annotations

import re
import sys

import torch
from diffusers.loaders.lora_base import LoraBaseMixin

NAMES = {
    ("query_key_value", "0"): "to_q",
    ("query_key_value", "1"): "to_k",
    ("query_key_value", "2"): "to_v",
    ("dense", "0"): "to_out.0",
}
KEY = re.compile(r"model\.diffusion_model\.transformer\.layers\.(\d+)\.attention\.(\w+)\.matrix_([AB])\.(\d)")


def main(checkpoint: str, folder: str) -> None:
    module = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=False)["module"]
    lora = {}
    for key, tensor in module.items():
        if found := KEY.fullmatch(key):
            layer, linear, factor, part = found.groups()
            name = f"transformer_blocks.{layer}.attn1.{NAMES[linear, part]}.lora_{factor}.weight"
            lora[f"transformer.{name}"] = tensor
    LoraBaseMixin.write_lora_layers(
        lora, folder, is_main_process=True, weight_name=None, save_function=None, safe_serialization=True
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
