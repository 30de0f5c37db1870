"""A SAT training run of real size, as a run folder: `python tests/bench/checkpoints.py FOLDER [--size 2b|5b]`.

Shapes, keys and the entries beside the weights follow CogVideo's trainer under DeepSpeed ZeRO 2, without text
encoder and VAE. All base weights show one block of memory, yet each has a storage of its own: the files have
2b 3.57 GB and 5b 11.41 GB, and writing them takes less than 1 GB of memory. The same bytes at every run.
"""

from __future__ import annotations

import argparse
import random
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

SIZES = {"2b": (30, 1920, torch.float16), "5b": (42, 3072, torch.bfloat16)}
RANK, ITERATION = 128, 1000
PREFIX = "model.diffusion_model."
CONFIG = f"""\
args:
  mode: finetune
  fp16: true
model:
  network_config:
    params:
      modules:
        lora_config:
          target: sat.model.finetune.lora2.LoraMixin
          params:
            r: {RANK}
"""


def base_shapes(size: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    layers, h, _ = SIZES[size]

    def both(key: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{key}.weight", shape
        yield f"{key}.bias", shape[:1]

    yield from both("time_embed.0", 512, h)
    yield from both("time_embed.2", 512, 512)
    for i in range(layers):
        layer = f"transformer.layers.{i}"
        yield from both(f"{layer}.input_layernorm", h)
        yield from both(f"{layer}.attention.query_key_value.original", 3 * h, h)
        yield from both(f"{layer}.attention.dense.original", h, h)
        yield from both(f"{layer}.post_attention_layernorm", h)
        yield from both(f"{layer}.mlp.dense_h_to_4h", 4 * h, h)
        yield from both(f"{layer}.mlp.dense_4h_to_h", h, 4 * h)
    yield from both("transformer.final_layernorm", h)
    yield from both("mixins.patch_embed.proj", h, 16, 2, 2)
    yield from both("mixins.patch_embed.text_proj", h, 4096)
    if size == "2b":  # 5b has rotary positions
        yield "mixins.pos_embed.pos_embedding", (1, 226 + 13 * 30 * 45, h)
    for i in range(layers):
        yield from both(f"mixins.adaln_layer.adaLN_modulations.{i}.1", 12 * h, 512)
    for name in ("query", "key"):
        for i in range(layers):
            yield from both(f"mixins.adaln_layer.{name}_layernorm_list.{i}", 64)
    yield from both("mixins.final_layer.linear", 64, h)
    yield from both("mixins.final_layer.adaLN_modulation.1", 2 * h, 512)


def lora_shapes(size: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    layers, h, _ = SIZES[size]
    for i in range(layers):
        for module, parts in (("query_key_value", 3), ("dense", 1)):
            for part in range(parts):
                yield f"transformer.layers.{i}.attention.{module}.matrix_A.{part}", (RANK, h)
                yield f"transformer.layers.{i}.attention.{module}.matrix_B.{part}", (h, RANK)


def checkpoint(size: str) -> dict[str, object]:
    """What torch.save is given."""
    dtype = SIZES[size][2]
    generator = torch.Generator().manual_seed(0)
    base = {f"{PREFIX}{key}": torch.Size(shape) for key, shape in base_shapes(size)}
    lora = {f"{PREFIX}{key}": torch.Size(shape) for key, shape in lora_shapes(size)}
    noise = torch.empty(max(shape.numel() for shape in base.values()), dtype=dtype)
    memory = noise.normal_(0, 0.02, generator=generator).view(torch.uint8).numpy()
    module: OrderedDict[str, torch.Tensor] = OrderedDict()
    for key, shape in base.items():
        module[key] = torch.frombuffer(memory, dtype=dtype, count=shape.numel()).reshape(shape)
    for key, shape in lora.items():
        scale = 0.02 if ".matrix_A." in key else 1e-3
        module[key] = torch.empty(shape, dtype=dtype).normal_(0, scale, generator=generator)
    return {
        "module": module,
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": [OrderedDict(lora)],
        "frozen_param_shapes": OrderedDict(base),
        "shared_params": {},
        "frozen_param_fragments": None,
        "lr_scheduler": None,
        "data_sampler": None,
        "random_ltd": None,
        "sparse_tensor_module_names": set(),
        "skipped_steps": 0,
        "global_steps": ITERATION,
        "global_samples": 4 * ITERATION,
        "dp_world_size": 1,
        "mp_world_size": 1,
        "ds_config": {
            "train_micro_batch_size_per_gpu": 2,
            "gradient_accumulation_steps": 2,
            "zero_optimization": {"stage": 2, "overlap_comm": True, "allgather_bucket_size": 100_000_000},
            "fp16": {"enabled": dtype == torch.float16, "loss_scale": 0, "loss_scale_window": 400},
            "bf16": {"enabled": dtype == torch.bfloat16},
            "optimizer": {"type": "sat.ops.FusedEmaAdam", "params": {"lr": 0.001, "betas": [0.9, 0.95], "eps": 1e-8}},
        },
        "ds_version": "0.15.4",
        "iteration": ITERATION,
        "client_lr_scheduler": {"start_lr": 0.001, "num_iters": ITERATION, "decay_style": "constant"},
        "random_rng_state": random.Random(0).getstate(),
        "np_rng_state": np.random.RandomState(0).get_state(),
        "torch_rng_state": generator.get_state(),
        "cuda_rng_state": torch.zeros(16, dtype=torch.uint8),
        "rng_tracker_states": {"model-parallel-rng": torch.zeros(16, dtype=torch.uint8)},
    }


def write(run: Path, size: str) -> Path:
    """Write a run folder; `latest` comes last, so a folder that has it is whole."""
    file = run / str(ITERATION) / "mp_rank_00_model_states.pt"
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint(size), file)
    (run / "training_config.yaml").write_text(CONFIG, "utf-8")
    (run / "latest").write_text(f"{ITERATION}\n", "utf-8")
    return file


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="FOLDER")
    parser.add_argument("--size", choices=SIZES, default="2b")
    options = parser.parse_args()
    written = write(options.run, options.size)
    print(f"{written}: {written.stat().st_size:,} bytes")
