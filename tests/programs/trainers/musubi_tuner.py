"""kohya-ss/musubi-tuner: networks/lora*.py, whose LoRANetwork.save_weights writes the file, and its converters."""

from __future__ import annotations

import importlib
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from programs.trainers.models import Small, Updates, fill, product

TITLE = "musubi-tuner"
ROOTS = ("src",)
ABSENT = """
cv2 einops toml torchvision av bitsandbytes easydict ftfy musubi_tuner.hunyuan_model.vae
musubi_tuner.hunyuan_model.text_encoder voluptuous musubi_tuner.wan.modules.t5 musubi_tuner.wan.modules.clip
musubi_tuner.wan.modules.vae
""".split()
MODULES = {
    "flux": "lora_flux", "flux2": "lora_flux_2", "wan": "lora_wan", "qwen": "lora_qwen_image", "z_image": "lora_zimage",
    "hunyuanvideo": "lora", "hunyuanvideo-framepack": "lora_framepack",
}  # fmt: skip
BASES = {
    "flux": "flux_kontext", "flux2": "flux_2_dev", "wan": "wan", "qwen": "qwen_image", "z_image": "z_image",
    "hunyuanvideo": "hunyuan_video", "hunyuanvideo-framepack": "framepack",
}  # fmt: skip
"""What its dataset/architectures.py calls them."""
_RUNS: list[dict[str, Any]] = [
    {}, {"alpha": 2}, {"bare": True}, {"dtype": torch.bfloat16}, {"other": "diffusion_model"}, {"other": "transformer"}
]  # fmt: skip
CASES = {name: list(_RUNS) for name in MODULES}
for _name in ("z_image", "flux2", "hunyuanvideo-framepack"):
    CASES[_name][0] = {"save_as": f"musubi-tuner_{_name}"}
CASES["wan"] = [*_RUNS[:4], {"other": "diffusion_model", "save_as": "musubi-tuner_wan_converted"}, *_RUNS[5:]]
CASES["qwen"][-1] = {"other": "transformer", "save_as": "musubi-tuner_qwen_converted"}
CASES["flux"][-2] = {"other": "diffusion_model", "save_as": "musubi-tuner_flux_converted"}
CASES["z_image"] += [{"comfy": True}]


def model(small: Small, name: str) -> tuple[nn.Module, str]:
    """The model of this trainer's own class."""
    c = small.config
    heads = {"num_heads": c.get("num_attention_heads")}
    width = (c.get("num_attention_heads") or 0) * (c.get("attention_head_dim") or 0)
    common = {"in_channels": c["in_channels"], "hidden_size": width, "axes_dim": c.get("axes_dims_rope"), **heads}
    common |= {"context_in_dim": c.get("joint_attention_dim"), "depth": c.get("num_layers"), "theta": 10_000}
    common |= {"depth_single_blocks": c.get("num_single_layers")}
    if name == "flux":
        flux = importlib.import_module("musubi_tuner.flux.flux_models")
        more = {"vec_in_dim": c["pooled_projection_dim"], "mlp_ratio": 4.0, "qkv_bias": True, "guidance_embed": True}
        return flux.Flux(flux.FluxParams(**common, **more), attn_mode="torch"), "original"
    if name == "flux2":
        flux2 = importlib.import_module("musubi_tuner.flux_2.flux2_models")
        return flux2.Flux2(flux2.Flux2Params(**common), attn_mode="torch"), "original"
    if name == "wan":
        made = importlib.import_module("musubi_tuner.wan.modules.model").WanModel(
            in_dim=c["in_channels"], dim=width, ffn_dim=c["ffn_dim"], freq_dim=c["freq_dim"], text_dim=c["text_dim"],
            out_dim=c["out_channels"], num_layers=c["num_layers"], attn_mode="torch", **heads,
        )  # fmt: skip
        return made, "original"
    if name == "qwen":
        kind = importlib.import_module("musubi_tuner.qwen_image.qwen_image_model").QwenImageTransformer2DModel
        return kind(**c, guidance_embeds=False), "diffusers"
    if name == "z_image":
        kind = importlib.import_module("musubi_tuner.zimage.zimage_model").ZImageTransformer2DModel
        return kind(**c), "diffusers"
    if name == "hunyuanvideo":
        made = importlib.import_module("musubi_tuner.hunyuan_model.models").HYVideoDiffusionTransformer(
            c["text_embed_dim"], c["pooled_projection_dim"], in_channels=c["in_channels"], hidden_size=width,
            heads_num=c["num_attention_heads"], mm_double_blocks_depth=c["num_layers"], guidance_embed=True,
            mm_single_blocks_depth=c["num_single_layers"], rope_dim_list=c["rope_axes_dim"], attn_mode="torch",
        )  # fmt: skip
        return made, "original"
    packed = importlib.import_module("musubi_tuner.frame_pack.hunyuan_video_packed")
    return packed.HunyuanVideoTransformer3DModelPacked(**c, attn_mode="torch"), "diffusers"


def write(small: Small, file: Path, name: str, rank: int = 4, alpha: float = 1, dtype: Any = None, bare: bool = False,
          other: str = "", comfy: bool = False) -> tuple[Any, ...]:  # fmt: skip
    """Fill and save a network, and convert the file if a run says so."""
    networks = importlib.import_module(f"musubi_tuner.networks.{MODULES[name]}")
    base, layout = model(small, name)
    net = networks.create_arch_network(1.0, rank, alpha, None, [], base)
    net.apply_to([], base, False, True)
    fill(net)
    names = {f"lora_unet_{path.replace('.', '_')}": path for path, _ in base.named_modules()}
    updates: Updates = {}
    for lora in net.unet_loras:
        updates[names[lora.lora_name]] = (
            product(lora.lora_up.weight, lora.lora_down.weight) * lora.multiplier * lora.scale
        )
    header = {"ss_network_module": f"networks.{MODULES[name]}", "ss_network_dim": str(rank)}
    header |= {
        "ss_network_alpha": str(float(alpha)),
        "ss_base_model_version": BASES[name],
    }  # as training/trainer_base.py
    net.save_weights(str(file), dtype, {} if bare else header)
    if other:
        importlib.import_module("musubi_tuner.convert_lora").convert(
            file, file.parent / "o.safetensors", "other", other
        )
    elif comfy:
        tool: Any = importlib.import_module("musubi_tuner.networks.convert_z_image_lora_to_comfy")
        tool.main(
            Namespace(src_path=str(file), dst_path=str(file.parent / "o.safetensors"), reverse=False, lokr_rank=None)
        )
    made = file.parent / "o.safetensors"
    return layout, updates, *([made] if made.exists() else [])
