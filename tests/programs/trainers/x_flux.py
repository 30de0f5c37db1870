"""XLabs-AI/x-flux: the LoRA processors of its Flux, whose tensors train_flux_lora_deepspeed.py saves by their name."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from programs.trainers.models import Small, factors, fill

TITLE = "x-flux"
ABSENT: list[str] = []
CASES: dict[str, list[dict[str, Any]]] = {"flux": [{"save_as": "x-flux_flux"}, {"singles": False}]}
PLACES = {"qkv_lora1": "img_attn.qkv", "proj_lora1": "img_attn.proj", "qkv_lora2": "txt_attn.qkv",
          "proj_lora2": "txt_attn.proj", "qkv_lora": "linear1", "proj_lora": "linear2"}  # fmt: skip
"""LoRA layer -> the layer of the block whose output it is added to (src/flux/modules/layers.py)."""


def write(small: Small, file: Path, singles: bool = True) -> tuple[Any, ...]:
    """Fill and save processors of rank 4, which have no alpha; `singles`: of the single blocks too."""
    root = next(Path(folder) for folder in sys.path if (Path(folder) / "src/flux").is_dir())
    for name in ("src", "src.flux"):
        package: Any = sys.modules.setdefault(name, ModuleType(name))
        package.__path__ = [str(root / name.replace(".", "/"))]
    flux: Any = importlib.import_module("src.flux.model")
    layers: Any = importlib.import_module("src.flux.modules.layers")
    c, d = small.config, small.config["num_attention_heads"] * small.config["attention_head_dim"]
    model = flux.Flux(flux.FluxParams(
        in_channels=c["in_channels"], vec_in_dim=c["pooled_projection_dim"], context_in_dim=c["joint_attention_dim"],
        hidden_size=d, mlp_ratio=4.0, num_heads=c["num_attention_heads"], depth=c["num_layers"],
        depth_single_blocks=c["num_single_layers"], axes_dim=list(c["axes_dims_rope"]),
        theta=10000, qkv_bias=True, guidance_embed=True,
    ))  # fmt: skip
    processors = dict(model.attn_processors)
    for name in processors:
        if name.startswith("double_blocks"):
            processors[name] = layers.DoubleStreamBlockLoraProcessor(dim=d, rank=4)
        elif singles:
            processors[name] = layers.SingleStreamBlockLoraProcessor(dim=d, rank=4)
            processors[name].proj_lora = layers.LoRALinearLayer(5 * d, d, 4)  # its code has the released 15360
    model.set_attn_processor(processors)
    fill(factors(model))
    state = model.state_dict()
    save_file({key: state[key] for key in state if "_lora" in key}, file)
    updates = {}
    for path, layer in model.double().named_modules():
        if match := re.fullmatch(r"(.*)\.processor\.(\w+)", path):
            place = f"{match[1]}.{PLACES[match[2]]}"
            update = layer(torch.eye(layer.down.in_features, dtype=torch.float64)).T.detach().numpy()
            updates[place] = np.zeros(tuple(model.get_submodule(place).weight.shape))
            updates[place][: len(update)] = update
    return "original", updates
