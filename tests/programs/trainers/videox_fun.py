"""aigc-apps/VideoX-Fun: its own network and PEFT's, in its models, saved by save_model of scripts/*/train_lora.py."""

from __future__ import annotations

import ast
import importlib
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch

from programs.trainers.models import Small, added, factors, fill

TITLE = "VideoX-Fun"
ABSENT = "triton torchvision cv2 decord albumentations imageio func_timeout pandas librosa torchaudio timm".split()
MODELS = {
    "flux": ("flux", "flux_transformer2d.FluxTransformer2DModel"),
    "flux2": ("flux2", "flux2_transformer2d.Flux2Transformer2DModel"),
    "qwen": ("qwenimage", "qwenimage_transformer2d.QwenImageTransformer2DModel"),
    "z_image": ("z_image", "z_image_transformer2d.ZImageTransformer2DModel"),
    "wan": ("wan2.1", "wan_transformer3d.WanTransformer3DModel"),
    "hunyuanvideo": ("hunyuanvideo", "hunyuanvideo_transformer3d.HunyuanVideoTransformer3DModel"),
    "ltx2": ("ltx2", "ltx2_transformer3d.LTX2VideoTransformer3DModel"),
}
"""Architecture -> its folder of scripts, and its class."""
CASES: dict[str, list[dict[str, Any]]] = {
    name: [{}, {"every": True}, {"dtype": torch.bfloat16}, {"peft": True, "stated": {"alpha": 2}},
           {"peft": True, "kohya": True, "stated": {"alpha": 2}}] for name in MODELS
}  # fmt: skip
CASES["flux"][0]["save_as"] = "videox-fun_flux"
CASES["wan"][0]["save_as"] = "videox-fun_wan"
CASES["qwen"][3]["save_as"] = "videox-fun_qwen_peft"
CASES["hunyuanvideo"][4]["save_as"] = "videox-fun_hunyuanvideo_peft_kohya"


def write(small: Small, file: Path, peft: bool = False, kohya: bool = False, every: bool = False,
          dtype: torch.dtype = torch.float32) -> tuple[Any, ...]:  # fmt: skip
    """Fill and save a network of rank 4 and alpha 2, of the modules that train_lora.sh names; `every`: of all."""
    root = next(Path(folder) for folder in sys.path if (Path(folder) / "videox_fun").is_dir())
    for name in ("videox_fun", "videox_fun.models", "videox_fun.utils"):  # without what their __init__ imports
        package: Any = sys.modules.setdefault(name, ModuleType(name))
        package.__path__, package.cfg_skip = [str(root / name.replace(".", "/"))], lambda *_: lambda function: function
    folder, where = MODELS[small.name]
    module, name = where.split(".")
    c = small.config
    if small.name == "wan":
        d = c["num_attention_heads"] * c["attention_head_dim"]
        c = {"dim": d, "hidden_size": d, "in_dim": c["in_channels"], "in_channels": c["in_channels"],
             "out_dim": c["out_channels"], "num_heads": c["num_attention_heads"], "num_layers": c["num_layers"],
             "ffn_dim": c["ffn_dim"], "freq_dim": c["freq_dim"], "text_dim": c["text_dim"]}  # fmt: skip
    base = getattr(importlib.import_module(f"videox_fun.models.{module}"), name)(**c)
    script = root / "scripts" / folder / "train_lora.py"
    target = script.with_suffix(".sh").read_text("utf-8").split('--target_name="')[1].split('"')[0]
    lora: Any = importlib.import_module("videox_fun.utils.lora_utils")
    save_model = _save_model(script, file.parent, dtype)
    if peft:
        from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

        config = LoraConfig(r=4, lora_alpha=2, target_modules=target.split(","))
        base = inject_adapter_in_model(config, base)
        fill(factors(base))
        state = get_peft_model_state_dict(base)
        save_model(str(file), lora.convert_peft_lora_to_kohya_lora(state) if kohya else state)
    else:
        network = lora.create_network(1.0, 4, 2, None, base, target_name=None if every else target)
        network.apply_to(None, base, False, True)
        fill(network)
        save_model(str(file), network)
        network.double()
    return "original" if small.name == "wan" else "diffusers", added(base)


def _save_model(script: Path, out: Path, dtype: torch.dtype) -> Any:
    """The function of this name inside the script's main."""
    tree = ast.walk(ast.parse(script.read_text("utf-8")))
    function = next(node for node in tree if isinstance(node, ast.FunctionDef) and node.name == "save_model")
    names: dict[str, Any] = {"os": os, "args": SimpleNamespace(output_dir=str(out)), "weight_dtype": dtype}
    names["accelerator"] = SimpleNamespace(print=lambda *_: None)
    exec(compile(ast.Module([function], []), script.name, "exec"), names)
    return names["save_model"]
