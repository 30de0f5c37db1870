"""modelscope/DiffSynth-Studio: its training module's add_lora_to_model and its logger's save_model, with its models."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from accelerate import Accelerator
from torch import nn

from programs.trainers.models import Small, added, factors, fill

TITLE = "DiffSynth-Studio"
ABSENT = "torchvision modelscope imageio cv2 pandas torchaudio librosa soundfile av datasets".split()
MODELS = {
    "flux2": ("flux2_dit.Flux2DiT", "flux2/model_training/lora/FLUX.2-dev.sh"),
    "z_image": ("z_image_dit.ZImageDiT", "z_image/model_training/lora/Z-Image.sh"),
    "wan": ("wan_video_dit.WanModel", "wanvideo/model_training/lora/Wan2.1-T2V-1.3B.sh"),
    "ltx2": ("ltx2_dit.LTXModel", "ltx2/model_training/lora/LTX-2-T2AV-splited.sh"),
    "qwen": ("", "qwen_image/model_training/lora/Qwen-Image.sh"),
}
"""Architecture -> its class (Diffusers' where the trainer's has fixed sizes and the same names), and its script."""
CASES: dict[str, list[dict[str, Any]]] = {name: [{}, {"rank": 2}] for name in MODELS}
CASES["qwen"][0]["save_as"] = "diffsynth_qwen"
CASES["z_image"][0]["save_as"] = "diffsynth_z_image"
CASES["flux2"][0]["save_as"] = "diffsynth_flux2"
CASES["wan"][0] = {"save_as": "diffsynth_wan", "stated": {"trained_scale": 1.0}}


def write(small: Small, file: Path, rank: int = 4) -> tuple[Any, ...]:
    """Fill and save a network of the modules that the script of the model names; alpha is the rank."""
    root = next(Path(folder) for folder in sys.path if (Path(folder) / "diffsynth").is_dir())
    for name in ("diffsynth", "diffsynth.models", "diffsynth.diffusion"):  # without what their __init__ imports
        package: Any = sys.modules.setdefault(name, ModuleType(name))
        package.__path__ = [str(root / name.replace(".", "/"))]
    where, script = MODELS[small.name]
    words = (root / "examples" / script).read_text("utf-8")
    target, prefix = (
        re.search(rf'--{word} "([^"]*)"', words) for word in ("lora_target_modules", "remove_prefix_in_ckpt")
    )
    assert target and prefix
    training: Any = importlib.import_module("diffsynth.diffusion.training_module")
    logger: Any = importlib.import_module("diffsynth.diffusion.logger")
    base = _model(small, where).requires_grad_(False)
    module = training.DiffusionTrainingModule()
    module.pipe = nn.Module()
    module.pipe.dit = module.add_lora_to_model(base, target[1].split(","), rank)
    fill(factors(base))
    logger.ModelLogger(str(file.parent), prefix[1]).save_model(Accelerator(cpu=True), module, file.name)
    return "original" if small.name in ("wan", "ltx2") else "diffusers", added(base)


def _model(small: Small, where: str) -> nn.Module:
    c = dict(small.config)
    if not where:
        return small.model()
    module, name = where.split(".")
    owner: Any = getattr(importlib.import_module(f"diffsynth.models.{module}"), name)
    if small.name == "ltx2":
        c.pop("rope_type")
    if small.name == "wan":
        heads = c["num_attention_heads"]
        c = {"dim": heads * c["attention_head_dim"], "in_dim": c["in_channels"], "out_dim": c["out_channels"],
             "num_heads": heads, "eps": 1e-6, "patch_size": (1, 2, 2), "has_image_input": False,
             **{key: c[key] for key in ("ffn_dim", "text_dim", "freq_dim", "num_layers")}}  # fmt: skip
    made: nn.Module = owner(**c)
    return made
