"""Runs ComfyUI's own key map and weight adapters on what loraforge writes, and compares the patches with the updates.

    cd tests && python -m programs.comfyui CHECKOUT [NAME ...] [--to comfyui --to kohya]

CHECKOUT is a folder with ComfyUI's `comfy`; what it imports beside torch (einops, torchsde, aiohttp ...) must be
installed; torchvision and the like, which only images need, are stood in for. Each model is built by ComfyUI's own
class at the size of a tiny model of Diffusers, all of whose matrices an adapter updates. The patched weights, which
have ComfyUI's names, go back to Diffusers' names by Diffusers' converter of base weights, so that no line of loraforge
judges its own files.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch
from helpers.tiny import TABLE, Tiny
from helpers.tolerance import UPDATE, share
from helpers.trained import SCALE, trained

import loraforge
from loraforge.format.registry import formats

ABSENT = ("torchvision", "torchaudio", "kornia", "av", "comfy_kitchen", "comfy_aimdo")
Config = dict[str, Any]


class StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Stands in for packages that are not installed and that no LoRA needs."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        """A spec for the packages of ABSENT."""
        wanted = name.partition(".")[0] in ABSENT
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if wanted else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """A module with every attribute."""
        made: Any = MagicMock()
        made.__path__, made.__spec__ = [], spec
        return made

    def exec_module(self, module: ModuleType) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Case:
    """A model of ComfyUI."""

    model: str
    """Its class in comfy/supported_models.py."""
    config: Callable[[Config], Config]
    """The arguments of its network, from those of Diffusers' class."""
    number: int = 0
    """Which of the tiny models it is."""
    changed: Config = field(default_factory=dict)
    """Arguments of Diffusers' class that ComfyUI's code fixes to others than the tiny model has."""
    renamed: tuple[str, str] = ("", "")
    """The end of keys in ComfyUI's model, and in the checkpoints that Diffusers converts."""


def _width(c: Config) -> int:
    return int(c["num_attention_heads"] * c["attention_head_dim"])


def _flux(c: Config) -> Config:
    return {
        "image_model": "flux", "in_channels": c["in_channels"], "out_channels": c["out_channels"], "patch_size": 1,
        "vec_in_dim": c["pooled_projection_dim"], "context_in_dim": c["joint_attention_dim"], "hidden_size": _width(c),
        "mlp_ratio": 4.0, "num_heads": c["num_attention_heads"], "depth": c["num_layers"], "theta": 10000,
        "depth_single_blocks": c["num_single_layers"], "axes_dim": c["axes_dims_rope"], "qkv_bias": True,
        "guidance_embed": c["guidance_embeds"], "txt_ids_dims": [],
    }  # fmt: skip


def _sd3(c: Config) -> Config:
    text = {"in_features": c["joint_attention_dim"], "out_features": c["caption_projection_dim"]}
    return {
        "in_channels": c["in_channels"], "out_channels": c["out_channels"], "patch_size": 2, "input_size": None,
        "depth": c["num_attention_heads"], "num_blocks": c["num_layers"], "adm_in_channels": c["pooled_projection_dim"],
        "context_embedder_config": {"target": "torch.nn.Linear", "params": text}, "pos_embed_scaling_factor": None,
        "qk_norm": "rms" if c.get("qk_norm") else None, "pos_embed_max_size": c["pos_embed_max_size"],
        "num_patches": c["pos_embed_max_size"] ** 2, "x_block_self_attn_layers": c.get("dual_attention_layers", []),
    }  # fmt: skip


def _wan(c: Config) -> Config:
    return {
        "image_model": "wan2.1", "model_type": "i2v" if c.get("image_dim") else "t2v", "dim": _width(c),
        "num_heads": c["num_attention_heads"], "ffn_dim": c["ffn_dim"], "num_layers": c["num_layers"],
        "in_dim": c["in_channels"], "out_dim": c["out_channels"], "freq_dim": c["freq_dim"], "text_dim": c["text_dim"],
    }  # fmt: skip


def _qwen(c: Config) -> Config:
    same = ("in_channels", "out_channels", "num_layers", "attention_head_dim", "num_attention_heads",
            "joint_attention_dim", "axes_dims_rope")  # fmt: skip
    return {"image_model": "qwen_image", "patch_size": c.get("patch_size", 2), **{name: c[name] for name in same}}


def _ltx(c: Config) -> Config:
    same = ("in_channels", "num_layers", "attention_head_dim", "num_attention_heads", "caption_channels",
            "cross_attention_dim")  # fmt: skip
    return {"image_model": "ltxv", **{name: c[name] for name in same}}


def _next_dit(c: Config, **more: Any) -> Config:
    heads = c.get("n_heads", c.get("num_attention_heads"))
    return {
        "image_model": "lumina2", "patch_size": 2, "in_channels": c["in_channels"], "qk_norm": True, "n_heads": heads,
        "dim": c.get("dim", c.get("hidden_size")), "n_layers": c.get("n_layers", c.get("num_layers")),
        "n_refiner_layers": c.get("n_refiner_layers", c.get("num_refiner_layers", 2)),
        "n_kv_heads": c.get("n_kv_heads", c.get("num_kv_heads", heads)), "cap_feat_dim": c["cap_feat_dim"],
        "axes_dims": c.get("axes_dims", c.get("axes_dim_rope")), **more,
    }  # fmt: skip


CASES = {
    "flux": Case("Flux", _flux, renamed=("_norm.weight", "_norm.scale")),
    "sd3": Case("SD3", _sd3, changed={"attention_head_dim": 64, "caption_projection_dim": 192}),
    "wan": Case("WAN21_T2V", _wan),
    "qwen": Case("QwenImage", _qwen),
    "ltx": Case("LTXV", _ltx),
    "z_image": Case("ZImage", lambda c: _next_dit(c, z_image_modulation=True, ffn_dim_multiplier=8 / 3)),
    "lumina2": Case("Lumina2", lambda c: _next_dit(c, multiple_of=c.get("multiple_of", 256))),
}
"""SD3's heads have 64 inputs in ComfyUI, whatever the width."""


def imported(checkout: Path) -> Any:
    """ComfyUI's package, on the CPU."""
    sys.meta_path.append(StandIn())
    sys.path.insert(0, str(checkout))
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.lora
    import comfy.lora_convert
    import comfy.supported_models
    import comfy.utils

    return comfy


def built(comfy: Any, case: Case, config: Config) -> Any:
    """ComfyUI's model with every weight 0."""
    kind = getattr(comfy.supported_models, case.model)(case.config(config))
    kind.unet_config = case.config(config) | {"dtype": torch.float32}  # without what the class adds to it
    model = kind.get_model({})
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    return model


def patched(comfy: Any, model: Any, file: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Every weight of the model with the adapter, and the keys of the file that ComfyUI did not use."""
    unused = Unused()  # in place of the handlers that print
    logging.getLogger().handlers = [unused]
    lora = comfy.lora_convert.convert_lora(comfy.utils.load_torch_file(str(file)))
    loaded = comfy.lora.load_lora(lora, comfy.lora.model_lora_keys_unet(model, {}))
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    for key, patch in loaded.items():  # as comfy/model_patcher.py add_patches
        name, offset, function = (key, None, None) if isinstance(key, str) else (*key, None, None)[:3]
        state[name] = comfy.lora.calculate_weight([(1.0, patch, 1.0, offset, function)], state[name], name)
    return state, unused.keys


class Unused(logging.Handler):
    """Keeps the keys that ComfyUI warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.keys: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep its last word."""
        self.keys.append(record.getMessage().rpartition(" ")[2])


def line(comfy: Any, name: str, to: str, folder: Path) -> str:
    """What becomes of one adapter in one format."""
    case = CASES[name]
    tiny = Tiny(name, case.number)
    tiny.config.update(case.changed)
    updates = trained(tiny, folder / "style.safetensors")
    file = folder / f"{to}.safetensors"
    loraforge.convert(folder / "style.safetensors", to=to, out=file, trained_scale=SCALE, architecture=name, force=True)
    model = built(comfy, case, tiny.config)
    state, unused = patched(comfy, model, file)
    ends = case.renamed
    original = {key.removeprefix("diffusion_model."): tensor.numpy() for key, tensor in state.items()
                if key.startswith("diffusion_model.")}  # fmt: skip
    if ends[0]:
        original = {f"{k.removesuffix(ends[0])}{ends[1]}" if k.endswith(ends[0]) else k: t for k, t in original.items()}
    got = tiny.by_diffusers(original) if "converter" in TABLE[name] else original
    right = [path for path, want in updates.items() if f"{path}.weight" in got
             and got[f"{path}.weight"].shape == want.shape and share(got[f"{path}.weight"], want) <= UPDATE]  # fmt: skip
    else_ = [key for key, array in got.items() if key.removesuffix(".weight") not in updates and abs(array).max() > 0]
    text = f"{name}, {to}: {len(right)} of {len(updates)} modules right"
    wrong = [path for path in updates if path not in right]
    parts = {"wrong": wrong, "keys not used": unused, "changed without an update": else_}
    return text + "".join(f"; {len(each)} {what}, as {each[0]}" for what, each in parts.items() if each)


def main(given: Sequence[str]) -> None:
    """Print a line for each architecture and format."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("checkout", type=Path)
    asked.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CASES))
    asked.add_argument("--to", action="append", metavar="FORMAT")
    options = asked.parse_args(given)
    comfy = imported(options.checkout)
    for name in options.names or [name for name in CASES if name in TABLE]:
        for to in options.to or ["comfyui"]:
            if name in formats()[to].layouts:
                with tempfile.TemporaryDirectory() as folder:
                    print(line(comfy, name, to, Path(folder)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
