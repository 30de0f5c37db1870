"""Nerogar/OneTrainer: its LoRAModuleWrapper and each model's LoRASaver, in every format that it has for the model."""

from __future__ import annotations

import importlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from programs.trainers.models import Small, added, fill

TITLE = "OneTrainer"
ABSENT = "cv2 open_clip onnxruntime pooch mgds torchvision bitsandbytes gguf scalene PIL deepdiff omegaconf".split()
MODELS = {
    "flux": ("Flux", "FLUX_DEV_1", "flux_dev_1.0"),
    "chroma": ("Chroma", "CHROMA_1", "chroma"),
    "flux2": ("Flux2", "FLUX_2", "flux_2.0"),
    "hidream": ("HiDream", "HI_DREAM_FULL", "hi_dream_full"),
    "hunyuanvideo": ("HunyuanVideo", "HUNYUAN_VIDEO", "hunyuan_video"),
    "qwen": ("Qwen", "QWEN", "qwen"),
    "sd3": ("StableDiffusion3", "STABLE_DIFFUSION_35", "sd_3.5_1.0"),
    "z_image": ("ZImage", "Z_IMAGE", "z_image"),
}
"""Architecture -> how its classes begin, its ModelType, and the file of its entries in headers."""
FORMATS = ("DIFFUSERS", "KOHYA", "ORIGINAL", "COMFY", "LEGACY")
BLOCKS = dict.fromkeys(MODELS, "blocks") | {"hidream": "stream_block", "z_image": "layers"}
"""Architecture -> its preset of layers called blocks."""
CASES: dict[str, list[dict[str, Any]]] = {
    name: [{"form": form, **more} for form in FORMATS for more in ({}, {"layers": ""}, {"settings": True})]
    for name in MODELS
}
del CASES["hidream"][12:]  # it has no LEGACY
for _name, _form, _more in (
    ("flux", "LEGACY", {}), ("flux2", "ORIGINAL", {}), ("chroma", "COMFY", {}), ("qwen", "ORIGINAL", {}),
    ("qwen", "LEGACY", {"layers": "time_text_embed,transformer_blocks.0.attn"}),
    ("hunyuanvideo", "COMFY", {"layers": "norm_out,time_text_embed"}), ("sd3", "KOHYA", {}),
    ("z_image", "DIFFUSERS", {"settings": True}),
):  # fmt: skip
    CASES[_name].append({"form": _form, "save_as": f"onetrainer_{_name}_{_form.lower()}", **_more})


def write(small: Small, file: Path, form: str, layers: str | None = None, settings: bool = False) -> tuple[Any, ...]:
    """Fill and save a network of rank 4 and alpha 1; `settings`: with the training configuration in the header."""
    title, kind, spec = MODELS[small.name]
    root = Path(importlib.import_module("modules.module.LoRAModule").__file__ or "").parents[2]
    types: Any = importlib.import_module("modules.util.enum.ModelType")
    wanted: Any = importlib.import_module("modules.util.enum.ModelFormat").ModelFormat[f"{form}_LORA"]
    config: Any = importlib.import_module("modules.util.config.TrainConfig").TrainConfig.default_values()
    config.lora_rank, config.lora_alpha, config.output_model_format, config.train_device = 4, 1.0, wanted, "cpu"
    if settings:
        part: Any = importlib.import_module("modules.util.enum.ConfigPart")
        config.include_train_config = part.ConfigPart.SETTINGS
    model = getattr(importlib.import_module(f"modules.model.{title}Model"), f"{title}Model")(types.ModelType[kind])
    entries = json.loads((root / f"resources/sd_model_spec/{spec}-lora.json").read_text("utf-8"))
    model.model_spec = importlib.import_module("modules.util.modelSpec.ModelSpec").ModelSpec.from_dict(entries)
    model.transformer, model.train_config = small.model(), config
    model.transformer_lora = importlib.import_module("modules.module.LoRAModule").LoRAModuleWrapper(
        model.transformer, "transformer", config, (BLOCKS[small.name] if layers is None else layers).split(","),
        fusion_spec=model.fusion_groups(), fuse=wanted.needs_qkv_fusion(),
    )  # fmt: skip
    fill(nn.ParameterList(model.transformer_lora.parameters()))
    model.transformer_lora.hook_to_module()
    folder = f"{title[0].lower()}{title[1:]}".replace("hiDream", "hidream")
    saver = importlib.import_module(f"modules.modelSaver.{folder}.{title}LoRASaver")
    here = os.getcwd()
    os.chdir(root)
    getattr(saver, f"{title}LoRASaver")()._save(model, wanted, str(file), torch.float32)
    os.chdir(here)
    for module in model.transformer_lora.lora_modules.values():
        module.to(dtype=torch.float64)
    return "diffusers", added(model.transformer)
