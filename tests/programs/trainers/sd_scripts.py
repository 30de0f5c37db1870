"""kohya-ss/sd-scripts: networks/lora_*.py, whose LoRANetwork.save_weights writes the file."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from programs.trainers.models import Small, Updates, fill, product

TITLE = "sd-scripts"
ABSENT = """
cv2 einops toml imagesize torchvision bitsandbytes library.model_util library.original_unet
library.lpw_stable_diffusion library.sdxl_lpw_stable_diffusion library.custom_train_functions
library.deepspeed_utils library.huggingface_util library.sdxl_original_unet
""".split()
MODULES = {"flux": "lora_flux", "chroma": "lora_flux", "sd3": "lora_sd3", "lumina2": "lora_lumina"}
SPEC = {"flux": {"flux": "dev"}, "chroma": {"flux": "chroma"}, "sd3": {"sd3": "m"}, "lumina2": {"lumina": "lumina2"}}
SPLIT = {"split_qkv": "True"}
CASES: dict[str, list[dict[str, Any]]] = {
    "flux": [
        {"save_as": "sd-scripts_flux"},
        {"alpha": 3},
        {"args": {**SPLIT, "train_blocks": "single"}},
        {"args": SPLIT, "save_as": "sd-scripts_flux_split_qkv"},
        {"args": SPLIT, "bare": True},
        {"args": {"img_attn_dim": "4", "txt_mlp_dim": "2", "single_dim": "2"}},
        {"bare": True},
        {"args": {"in_dims": "[2,2,2,2,2]"}},
        {"dtype": torch.float16},
    ],
    "chroma": [
        {},
        {"bare": True},
        {"args": {**SPLIT, "train_blocks": "single"}},
        {
            "args": {**SPLIT, "train_blocks": "single"},
            "bare": True,
            "save_as": "sd-scripts_chroma_split_qkv",
            "stated": {"trained_by": "sd-scripts-split-qkv"},
        },
    ],
    "sd3": [
        {},
        {"args": SPLIT, "save_as": "sd-scripts_sd3_split_qkv"},
        {"args": {"emb_dims": "[2,2,2,2,2,2]"}},
        {"args": {"context_attn_dim": "2"}},
    ],
    "lumina2": [
        {},
        {"args": SPLIT},
        {"args": {"attn_dim": "2", "refiner_dim": "4"}},
    ],
}
"""Architecture -> settings of its runs."""


def model(small: Small) -> tuple[nn.Module, str]:
    """The model of this trainer's own class, which is the original code's but for SD3, whose width cannot be set."""
    c = small.config
    if small.name in ("flux", "chroma"):
        flux, common = importlib.import_module("library.flux_models"), _flux(c)
        if small.name == "flux":
            made = flux.Flux(flux.FluxParams(**common, vec_in_dim=c["pooled_projection_dim"], guidance_embed=True))
        else:
            chroma = importlib.import_module("library.chroma_models")
            guide = {"in_dim": c["approximator_num_channels"], "depth": c["approximator_layers"]}
            guide |= {"hidden_size": c["approximator_hidden_dim"]}
            params = {f"approximator_{key}": value for key, value in guide.items()}
            made = chroma.Chroma(chroma.ChromaParams(**common, **params, guidance_embed=True, _use_compiled=False))
        return made, "original"
    if small.name == "lumina2":
        lumina = importlib.import_module("library.lumina_models")
        made = lumina.NextDiT(
            in_channels=c["in_channels"], dim=c["hidden_size"], n_layers=c["num_layers"], qk_norm=True,
            n_refiner_layers=c["num_refiner_layers"], n_heads=c["num_attention_heads"], n_kv_heads=c["num_kv_heads"],
            cap_feat_dim=c["cap_feat_dim"], axes_dims=c["axes_dim_rope"], axes_lens=c["axes_lens"],
        )  # fmt: skip
        return made, "original"
    classes = {r"joint_blocks\.\d+": "MMDiTBlock", r"joint_blocks\.\d+\.(context|x)_block": "SingleDiTBlock"}
    return small.tree("original", classes), "original"


def _flux(c: dict[str, Any]) -> dict[str, Any]:
    width = c["num_attention_heads"] * c["attention_head_dim"]
    return {
        "in_channels": c["in_channels"], "context_in_dim": c["joint_attention_dim"], "hidden_size": width,
        "mlp_ratio": 4.0, "num_heads": c["num_attention_heads"], "depth": c["num_layers"], "theta": 10_000,
        "depth_single_blocks": c["num_single_layers"], "axes_dim": c["axes_dims_rope"], "qkv_bias": True,
    }  # fmt: skip


def write(small: Small, file: Path, rank: int = 2, alpha: float = 1, dtype: Any = None, bare: bool = False,
          args: dict[str, str] | None = None) -> tuple[str, Updates]:  # fmt: skip
    """Train nothing, fill and save a network. Gives the layout of its names, and what it adds."""
    networks = importlib.import_module(f"networks.{MODULES[small.name]}")
    base, layout = model(small)
    _narrow(networks, small, base)
    net = networks.create_network(
        1.0, rank, alpha, None, [nn.Identity()] if small.name == "lumina2" else [], base, **(args or {})
    )
    net.apply_to([], base, False, True)
    fill(net)
    names = {f"lora_unet_{path.replace('.', '_')}": path for path, _ in base.named_modules()}
    updates = {names[lora.lora_name]: _update(lora) for lora in net.unet_loras}
    net.save_weights(str(file), dtype, {} if bare else _header(small, rank, alpha, args))
    return layout, updates


def _narrow(networks: Any, small: Small, base: nn.Module) -> None:
    """The widths that split_qkv takes for granted are those of the released models: here the tiny model's."""
    width = small.config.get("hidden_size") or small.config["num_attention_heads"] * small.config["attention_head_dim"]
    cls = networks.LoRANetwork
    if small.name in ("flux", "chroma"):
        cls.get_qkv_mlp_split_dims = classmethod(lambda cls: [width] * 3 + [4 * width])
    if small.name == "lumina2":
        kv = width * small.config["num_kv_heads"] // small.config["num_attention_heads"]
        cls.get_qkv_split_dims = classmethod(lambda cls: [width, kv, kv])
    base.hidden_size = width  # type: ignore[assignment]


def _update(lora: Any) -> np.ndarray:
    """What a module adds to its weight, by the attributes that its forward uses."""
    if lora.split_dims is None:
        whole = product(lora.lora_up.weight, lora.lora_down.weight)
    else:
        whole = np.concatenate([product(u.weight, d.weight) for u, d in zip(lora.lora_up, lora.lora_down, strict=True)])
    return whole * lora.multiplier * lora.scale


def _header(small: Small, rank: int, alpha: float, args: dict[str, str] | None) -> dict[str, str]:
    """The entries of train_network.py that are written with --no_metadata too, and the model specification."""
    from library import sai_model_spec, train_util

    said, module = args and {**args, "dropout": None}, f"networks.{MODULES[small.name]}"
    header = train_util.build_minimum_network_metadata(None, None, module, str(rank), str(alpha), said)
    spec = sai_model_spec.build_metadata(
        None, False, False, False, True, False, 1.7e9, title="style", model_config=SPEC[small.name]
    )
    return {key: str(value) for key, value in (header | spec).items() if value is not None}
