"""tdrussell/diffusion-pipe: models/*.py, whose configure_adapter and save_adapter are called by utils/saver.py."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from programs.trainers.models import Small, Updates, fill, product

TITLE = "diffusion-pipe"
ABSENT = """
deepspeed einops comfy_api comfy_extras folder_paths node_helpers torchaudio cv2 loguru hyvideo ltx_video comfy
Lumina_2 src hi_diffusers torchvision datasets models.wan.t5 models.wan.vae2_1 models.wan.vae2_2 models.wan.clip
utils.offloading imageio pillow_heif utils.dataset multiprocess easydict utils.patches flash_attn av ftfy
""".split()
MODELS = {
    "flux": ("flux", "FluxPipeline"),
    "sd3": ("sd3", "SD3Pipeline"),
    "qwen": ("qwen_image", "QwenImagePipeline"),
    "wan": ("wan.wan", "WanPipeline"),
    "hunyuanvideo": ("hunyuan_video", "HunyuanVideoPipeline"),
    "ltx": ("ltx_video", "LTXVideoPipeline"),
    "ltx2": ("ltx2", "LTX2Pipeline"),
    "lumina2": ("lumina_2", "Lumina2Pipeline"),
    "chroma": ("chroma", "ChromaPipeline"),
    "hidream": ("hidream", "HiDreamPipeline"),
    "flux2": ("flux2", "Flux2Pipeline"),
    "z_image": ("z_image", "ZImagePipeline"),
}
_NEXT_DIT = {r"(layers|noise_refiner|context_refiner)\.\d+": "JointTransformerBlock"}
_STREAMS = {r"double_blocks\.\d+": "DoubleStreamBlock", r"single_blocks\.\d+": "SingleStreamBlock"}
TREES = {
    "hunyuanvideo": {r"double_blocks\.\d+": "MMDoubleStreamBlock", r"single_blocks\.\d+": "MMSingleStreamBlock"},
    "ltx": {r"transformer_blocks\.\d+": "BasicTransformerBlock"},
    "ltx2": {r"transformer_blocks\.\d+": "BasicAVTransformerBlock"},
    "lumina2": _NEXT_DIT, "z_image": _NEXT_DIT, "chroma": _STREAMS, "flux2": _STREAMS,
    "hidream": {r"double_stream_blocks\.\d+\.block": "HiDreamImageTransformerBlock",
                r"single_stream_blocks\.\d+\.block": "HiDreamImageSingleTransformerBlock"},
}  # fmt: skip
"""Models whose code is another repository's (a submodule): their names and shapes, and the classes of their blocks."""
CASES: dict[str, list[dict[str, Any]]] = {
    name: [{}, {"dtype": torch.bfloat16}, {"alone": True}, {"folder": True}] for name in MODELS
}
CASES["sd3"][2] = {"alone": True, "save_as": "diffusion-pipe_sd3_alone", "stated": {"trained_scale": 1.0}}
for _name in ("flux", "wan", "ltx", "qwen", "hunyuanvideo"):
    CASES[_name][3] = {"folder": True, "save_as": f"diffusion-pipe_{_name}"}


def model(small: Small) -> tuple[nn.Module, str]:
    """What is trained: Diffusers' class, this trainer's, or the names of the original code."""
    c = small.config
    if small.name in TREES:
        layout = "original" if "original" in small.whole.layouts else "diffusers"
        return small.tree(layout, TREES[small.name]), layout
    if small.name == "wan":
        made = importlib.import_module("models.wan.model").WanModel(
            in_dim=c["in_channels"], dim=c["num_attention_heads"] * c["attention_head_dim"], ffn_dim=c["ffn_dim"],
            freq_dim=c["freq_dim"], text_dim=c["text_dim"], out_dim=c["out_channels"], num_layers=c["num_layers"],
            num_heads=c["num_attention_heads"], model_type="t2v",
        )  # fmt: skip
        return made, "original"
    return small.model(), "diffusers"


def write(small: Small, file: Path, rank: int = 2, dtype: Any = torch.float32, alone: bool = False,
          folder: bool = False) -> tuple[Any, ...]:  # fmt: skip
    """Fill and save a network; `alone`: without the configuration that lies beside it, as people share files."""
    module, cls = MODELS[small.name]
    owner = getattr(importlib.import_module(f"models.{module}"), cls)
    base, layout = model(small)
    pipeline = owner.__new__(owner)
    pipeline.__dict__.update(
        transformer=base, diffusion_model=base, model_type="t2v", config={"adapter": {"type": "lora"}}
    )
    if small.name in ("flux", "sd3"):
        import diffusers

        pipeline.__dict__["diffusers_pipeline"] = getattr(
            diffusers, "FluxPipeline" if small.name == "flux" else "StableDiffusion3Pipeline"
        )
    pipeline.configure_adapter({"type": "lora", "rank": rank, "alpha": rank, "dropout": 0.0, "dtype": torch.float32})
    fill(lora := Factors(base))
    config = file.with_name("train.toml")
    config.write_text(f"[model]\ntype = 'flux'\n\n[adapter]\ntype = 'lora'\nrank = {rank}\n")
    saving: Any = importlib.import_module("utils.saver")
    grid = SimpleNamespace(get_data_parallel_rank=lambda: 0, get_pipe_parallel_rank=lambda: 0)
    saver = saving.Saver(
        SimpleNamespace(config=config),
        {"save_dtype": dtype},
        True,
        file.parent,
        pipeline,
        None,
        SimpleNamespace(grid=grid),
        base,
    )
    saver.save_adapter("epoch10")
    updates: Updates = {}
    for path, layer in lora.layers.items():
        pair = layer.lora_B["default"].weight, layer.lora_A["default"].weight
        updates[path] = product(*pair) * layer.scaling["default"]
    (made,) = (file.parent / "epoch10").glob("*.safetensors")
    if folder:
        made = made.parent
    if alone:
        made = made.rename(file.with_name("style.safetensors"))
    return layout, updates, made


class Factors(nn.Module):
    """PEFT's layers in a model, whose factors alone are its parameters."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.layers = {path: layer for path, layer in base.named_modules() if hasattr(layer, "lora_A")}
        self.factors = nn.ModuleList(m for layer in self.layers.values() for m in (layer.lora_A, layer.lora_B))
