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
import logging
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from helpers.carry import carry
from helpers.stand_in import StandIn
from helpers.tiny import Tiny
from helpers.tolerance import UPDATE, share
from helpers.trained import SCALE, trained

import loraforge
from loraforge.format.registry import formats

ABSENT = ("torchvision", "torchaudio", "kornia", "av", "comfy_kitchen", "comfy_aimdo")
Config = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model of ComfyUI."""

    name: str
    """The architecture."""
    model: str
    """Its class in comfy/supported_models.py."""
    config: Callable[[Config], Config]
    """The arguments of its network, from those of Diffusers' class."""
    number: int = 0
    """Which of the tiny models it is."""
    changed: Config = field(default_factory=dict)
    """Arguments of Diffusers' class that ComfyUI's code fixes to others than the tiny model has."""


def _blocks(c: Config) -> Config:
    """What Flux and its kin have in common."""
    return {
        "in_channels": c["in_channels"], "out_channels": c["out_channels"], "patch_size": 1, "mlp_ratio": 4.0,
        "context_in_dim": c.get("joint_attention_dim"),
        "hidden_size": c["num_attention_heads"] * c["attention_head_dim"],
        "num_heads": c["num_attention_heads"], "depth": c["num_layers"], "depth_single_blocks": c["num_single_layers"],
        "axes_dim": c.get("axes_dims_rope"), "theta": 10000, "qkv_bias": True, "txt_ids_dims": [],
    }  # fmt: skip


def _flux(c: Config) -> Config:
    more = {"vec_in_dim": c["pooled_projection_dim"], "guidance_embed": c["guidance_embeds"]}
    return {**_blocks(c), "image_model": "flux", **more}


def _chroma(c: Config) -> Config:
    guide = {"in_dim": c["approximator_num_channels"], "hidden_dim": c["approximator_hidden_dim"]}
    guide |= {"n_layers": c["approximator_layers"], "out_dim": c["num_attention_heads"] * c["attention_head_dim"]}
    return {**_blocks(c), "image_model": "chroma", "vec_in_dim": None, **guide}


def _flux2(c: Config) -> Config:
    more = {"global_modulation": True, "mlp_silu_act": True, "qkv_bias": False, "ops_bias": False, "mlp_ratio": 3.0}
    more |= {"vec_in_dim": None, "guidance_embed": c.get("guidance_embeds", True)}
    return {**_blocks(c), "image_model": "flux2", **more}


def _hunyuanvideo(c: Config) -> Config:
    more = {"context_in_dim": c["text_embed_dim"], "vec_in_dim": c["pooled_projection_dim"], "patch_size": [1, 2, 2]}
    more |= {"guidance_embed": c.get("guidance_embeds", True), "axes_dim": c["rope_axes_dim"], "vision_in_dim": None}
    more |= dict.fromkeys(("byt5", "meanflow", "use_cond_type_embedding", "meanflow_sum"), False)
    flux = {key: value for key, value in _blocks(c).items() if key != "txt_ids_dims"}
    return {**flux, "image_model": "hunyuan_video", **more}


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
    kind = "vace" if "vace_layers" in c else "i2v" if "image_dim" in c else "t2v"
    more = {"vace_layers": len(c["vace_layers"]), "vace_in_dim": c["vace_in_channels"]} if kind == "vace" else {}
    more |= {"flf_pos_embed_token_number": c["pos_embed_seq_len"]} if "pos_embed_seq_len" in c else {}
    return {
        "image_model": "wan2.1", "model_type": kind, "dim": c["num_attention_heads"] * c["attention_head_dim"],
        "num_heads": c["num_attention_heads"], "ffn_dim": c["ffn_dim"], "num_layers": c["num_layers"], **more,
        "in_dim": c["in_channels"], "out_dim": c["out_channels"], "freq_dim": c["freq_dim"], "text_dim": c["text_dim"],
    }  # fmt: skip


def _like_diffusers(model: str, *names: str) -> Callable[[Config], Config]:
    """A network whose arguments have Diffusers' names."""
    return lambda c: {"image_model": model, **{name: c[name] for name in names if name in c}}


_HEADS = ("in_channels", "out_channels", "num_layers", "attention_head_dim", "num_attention_heads", "axes_dims_rope")


def _next_dit(c: Config, **more: Any) -> Config:
    heads = c.get("n_heads", c.get("num_attention_heads"))
    return {
        "image_model": "lumina2", "patch_size": 2, "in_channels": c["in_channels"], "qk_norm": True, "n_heads": heads,
        "dim": c.get("dim", c.get("hidden_size")), "n_layers": c.get("n_layers", c.get("num_layers")),
        "n_refiner_layers": c.get("n_refiner_layers", c.get("num_refiner_layers", 2)),
        "n_kv_heads": c.get("n_kv_heads", c.get("num_kv_heads", heads)), "cap_feat_dim": c["cap_feat_dim"],
        "axes_dims": c.get("axes_dims", c.get("axes_dim_rope")), **more,
    }  # fmt: skip


_QWEN = _like_diffusers("qwen_image", *_HEADS, "joint_attention_dim")
_LTX = _like_diffusers("ltxv", *_HEADS, "caption_channels", "cross_attention_dim")
_HIDREAM = _like_diffusers(
    "hidream", *_HEADS, "num_single_layers", "caption_channels", "patch_size", "text_emb_dim", "num_routed_experts",
    "llama_layers",
)  # fmt: skip
_Z_IMAGE = partial(_next_dit, z_image_modulation=True, ffn_dim_multiplier=8 / 3, multiple_of=1, pad_tokens_multiple=32)
CASES = [
    Case("flux", "Flux", _flux),
    Case("flux", "FluxSchnell", _flux, 1),
    Case("chroma", "Chroma", _chroma, 1, {"out_channels": 18}),
    Case("flux2", "Flux2", _flux2, 1, {"timestep_guidance_channels": 256}),
    Case("hunyuanvideo", "HunyuanVideo", _hunyuanvideo, 1),
    Case("sd3", "SD3", _sd3, 0, {"attention_head_dim": 64, "caption_projection_dim": 192}),
    Case("sd3", "SD3", _sd3, 1, {"attention_head_dim": 64, "caption_projection_dim": 448}),
    Case("wan", "WAN21_T2V", _wan),
    Case("wan", "WAN21_I2V", _wan, 1, {"image_dim": 1280}),
    Case("wan", "WAN21_Vace", _wan, 2),
    Case("qwen", "QwenImage", _QWEN, 1),
    Case("ltx", "LTXV", _LTX, 0, {"out_channels": 128}),
    Case("z_image", "ZImage", _Z_IMAGE, 0, {"dim": 1152, "n_layers": 1, "n_refiner_layers": 1, "axes_dims": [128] * 3}),
    Case("lumina2", "Lumina2", partial(_next_dit, ffn_dim_multiplier=4.0), 0, {"out_channels": 16}),
    Case("hidream", "HiDream", _HIDREAM),
]
"""ComfyUI's code fixes that heads of SD3 are 64 wide, that LTX, Chroma and Lumina 2 give out what they take in, and
the width of the time embeddings of Flux.2 and Z-Image. Mochi is missing: all of its widths are fixed."""


def imported(checkout: Path) -> Any:
    """ComfyUI's package, on the CPU."""
    sys.meta_path.append(StandIn(*ABSENT))
    sys.path.insert(0, str(checkout))
    sys.argv = [sys.argv[0], "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.lora
    import comfy.lora_convert
    import comfy.supported_models
    import comfy.utils

    return comfy


def built(comfy: Any, case: Case, tiny: Tiny) -> tuple[Any, dict[str, str]]:
    """ComfyUI's model with every weight 0, and its keys -> those of the original checkpoint, as ComfyUI reads one."""
    kind = getattr(comfy.supported_models, case.model)(case.config(tiny.config) | {"dtype": torch.float32})
    model = kind.get_model({})
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    layout = "original" if "original" in tiny.whole.layouts else "diffusers"
    keys, _ = carry(tiny.state, tiny.arch, "diffusers", layout, [tiny.variant])
    return model, kind.process_unet_state_dict({key: key for key in keys})


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


def line(comfy: Any, case: Case, to: str, folder: Path) -> str:
    """What becomes of one adapter in one format."""
    tiny = Tiny(case.name, case.number)
    tiny.config.update(case.changed)
    updates = trained(tiny, folder / "style.safetensors")
    file, given = folder / f"{to}.safetensors", {"trained_scale": SCALE, "architecture": case.name}
    loraforge.convert(folder / "style.safetensors", to=to, out=file, **given)
    model, keys = built(comfy, case, tiny)
    state, unused = patched(comfy, model, file)
    original = {old: state[f"diffusion_model.{new}"].numpy() for new, old in keys.items()}
    got = tiny.by_diffusers(original) if "original" in tiny.whole.layouts else original
    arrays = {path: got[f"{path}.weight"] for path in updates}
    right = [path for path, want in updates.items() if arrays[path].size == want.size
             and share(arrays[path].reshape(want.shape), want) <= UPDATE]  # fmt: skip
    others = [key for key, array in got.items() if key.removesuffix(".weight") not in updates and array.any()]
    text = f"{case.name} ({case.model}), {to}: {len(right)} of {len(updates)} modules right"
    parts = {
        "wrong": [path for path in updates if path not in right], "keys not used": unused,
        "changed without an update": others,
    }  # fmt: skip
    return text + "".join(f"; {len(each)} {what}, as {each[0]}" for what, each in parts.items() if each)


def main(given: Sequence[str]) -> None:
    """Print a line for each architecture and format."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("checkout", type=Path)
    asked.add_argument("names", nargs="*", metavar="NAME", help=", ".join(dict.fromkeys(case.name for case in CASES)))
    asked.add_argument("--to", action="append", metavar="FORMAT")
    options = asked.parse_args(given)
    comfy = imported(options.checkout)
    for case in CASES:
        for to in options.to or ["comfyui"]:
            if case.name in (options.names or [case.name]) and case.name in formats()[to].layouts:
                with tempfile.TemporaryDirectory() as folder:
                    try:
                        print(line(comfy, case, to, Path(folder)), flush=True)
                    except Exception as error:  # a model that ComfyUI or loraforge does not make
                        print(f"{case.name} ({case.model}), {to}: {type(error).__name__} {error}"[:300], flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
