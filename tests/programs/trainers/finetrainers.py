"""a-r-r-o-w/finetrainers: _save_lora_weights of each model's specification, with the metadata of its trainer."""

from __future__ import annotations

import ast
import functools
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import diffusers
from peft import LoraConfig, get_peft_model_state_dict

from programs.trainers.models import Small, added, factors, fill

TITLE = "finetrainers"
ABSENT: list[str] = []
MODELS = {
    "flux": ("flux", "FluxPipeline"),
    "wan": ("wan", "WanPipeline"),
    "ltx": ("ltx_video", "LTXPipeline"),
    "hunyuanvideo": ("hunyuan_video", "HunyuanVideoPipeline"),
}
CASES: dict[str, list[dict[str, Any]]] = {name: [{}, {"alpha": 4}] for name in MODELS}
CASES["hunyuanvideo"][0]["save_as"] = "finetrainers_hunyuanvideo"
CASES["wan"][0]["save_as"] = "finetrainers_wan"
TARGET = "(transformer_blocks|blocks).*(to_q|to_k|to_v|to_out.0)"


def write(small: Small, file: Path, alpha: int = 2) -> tuple[Any, ...]:
    """Fill and save a network of rank 4 in Diffusers' model."""
    root = next(Path(folder) for folder in sys.path if (Path(folder) / "finetrainers/models").is_dir()) / "finetrainers"
    folder, pipeline = MODELS[small.name]
    names: dict[str, Any] = {"functools": functools, "os": os, "Optional": Optional, "Dict": dict, "SchedulerType": Any}
    names |= {pipeline: getattr(diffusers, pipeline), "torch": sys.modules["torch"]}
    exec((root / "utils/serialization.py").read_text("utf-8"), names)
    tree = ast.walk(ast.parse((root / f"models/{folder}/base_specification.py").read_text("utf-8")))
    function = next(n for n in tree if isinstance(n, ast.FunctionDef) and n.name == "_save_lora_weights")
    exec(compile(ast.Module([function], []), folder, "exec"), names)
    base: Any = small.model()
    base.add_adapter(LoraConfig(r=4, lora_alpha=alpha, target_modules=TARGET))
    fill(factors(base))
    config = {"r": 4, "lora_alpha": alpha, "init_lora_weights": True, "target_modules": TARGET}
    metadata = {"lora_config": json.dumps(config, indent=4)}
    own = SimpleNamespace(transformer_config={})
    names["_save_lora_weights"](own, str(file.parent), get_peft_model_state_dict(base), None, metadata)
    return "diffusers", added(base), file.with_name("pytorch_lora_weights.safetensors")
