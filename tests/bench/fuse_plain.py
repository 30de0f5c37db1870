"""The Diffusers way to fuse: `fuse_plain.py BASE ADAPTER OUT`. Loads all, fuses in the base's type, saves all."""

from __future__ import annotations

import sys

import torch
from diffusers import CogVideoXTransformer3DModel


def main(base: str, adapter: str, out: str) -> None:
    model = CogVideoXTransformer3DModel.from_pretrained(base, torch_dtype=torch.bfloat16)
    model.load_lora_adapter(adapter, prefix="transformer")
    model.fuse_lora()
    model.unload_lora()
    model.save_pretrained(out)


if __name__ == "__main__":
    main(*sys.argv[1:])
