"""A transformer folder of real size and an adapter for it: `models.py FOLDER [--size 2b|5b]`.

FOLDER/base holds random weights in the shapes and the shards of the released model (5b: 11.1 GB of bf16),
FOLDER/adapter.safetensors a LoRA of rank 128 on q, k, v and out as Diffusers names it. Needs 1 GB of memory.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import CogVideoXTransformer3DModel
from safetensors.torch import save_file

SIZES = {
    "2b": {"num_layers": 30, "num_attention_heads": 30},
    "5b": {"num_layers": 42, "num_attention_heads": 48, "use_rotary_positional_embeddings": True},
}
RANK, SHARD = 128, 10_000_000_000
DTYPE = torch.bfloat16


def shards(model: torch.nn.Module) -> Iterator[dict[str, torch.Tensor]]:
    """Its tensors in order, cut where save_pretrained cuts them."""
    shard, size = dict[str, torch.Tensor](), 0
    for key, tensor in model.state_dict().items():
        if size + 2 * tensor.numel() > SHARD:
            yield shard
            shard, size = {}, 0
        shard[key] = tensor
        size += 2 * tensor.numel()
    yield shard


def write(folder: Path, size: str) -> None:
    """Write base and adapter; `ready` comes last."""
    base = folder / "base"
    base.mkdir(parents=True, exist_ok=True)
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel(**SIZES[size])
    model.save_config(base)
    generator = torch.Generator().manual_seed(0)
    noise = torch.empty(1 << 27, dtype=DTYPE).normal_(0, 0.02, generator=generator)
    memory = memoryview(noise.view(torch.uint8).numpy())
    cut = list(shards(model))
    for n, shard in enumerate(cut, 1):
        name = f"diffusion_pytorch_model-{n:05}-of-{len(cut):05}.safetensors"
        with (base / (name if len(cut) > 1 else "diffusion_pytorch_model.safetensors")).open("wb") as stream:
            header, end = {"__metadata__": {"format": "pt"}}, 0
            for key, tensor in shard.items():
                start, end = end, end + 2 * tensor.numel()
                header[key] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [start, end]}
            text = json.dumps(header).encode()
            stream.write(len(text).to_bytes(8, "little") + text)
            for k, tensor in enumerate(shard.values()):
                first = 2 * (k * 7919 % 65536)
                stream.write(memory[first : first + 2 * tensor.numel()])
    if len(cut) > 1:
        names = {
            k: f"diffusion_pytorch_model-{n:05}-of-{len(cut):05}.safetensors" for n, s in enumerate(cut, 1) for k in s
        }
        total = sum(2 * tensor.numel() for shard in cut for tensor in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
        (base / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")
    lora = {}
    for name, module in model.named_modules():
        if name.endswith(("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")):
            for factor, shape in (("A", (RANK, module.in_features)), ("B", (module.out_features, RANK))):
                values = torch.empty(shape, dtype=DTYPE).normal_(
                    0, 0.02 if factor == "A" else 1e-3, generator=generator
                )
                lora[f"transformer.{name}.lora_{factor}.weight"] = values
    save_file(lora, folder / "adapter.safetensors", {"format": "pt"})
    (folder / "ready").touch()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=SIZES, default="5b")
    options = parser.parse_args()
    write(options.folder, options.size)
