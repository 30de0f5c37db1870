"""ostris/ai-toolkit: toolkit/lora_special.py, whose save_weights has each model's class rename what it writes."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from programs.trainers.models import Inner, Small, Updates, fill, product

TITLE = "ai-toolkit"
ABSENT = """
diffusers.pipelines.ltx2.export_utils torchaudio torchao optimum einops cv2 torchvision albumentations lycoris
k_diffusion dotenv clip open_clip toolkit.audio toolkit.data_loader toolkit.custom_adapter toolkit.ip_adapter
toolkit.util toolkit.reference_adapter toolkit.samplers toolkit.memory_management toolkit.pipelines
toolkit.models.decorator toolkit.models.FakeVAE toolkit.accelerator toolkit.data_transfer_object
toolkit.prompt_utils toolkit.config_modules toolkit.dequantize toolkit.sampler toolkit.llvae
toolkit.models.wan21.wan_utils toolkit.models.loaders toolkit.models.v toolkit.models.wan21.autoencoder_kl
toolkit.clip_vision_adapter toolkit.assistant_lora toolkit.saving toolkit.model_utils toolkit.unloader
extensions_built_in.sd_trainer extensions_built_in.diffusion_models.qwen_image.qwen_image_pipelines
extensions_built_in.diffusion_models.wan22.wan22_pipeline flash_attn
extensions_built_in.diffusion_models.hidream.src.pipelines
extensions_built_in.diffusion_models.hidream.src.schedulers toolkit.advanced_prompt_embeds
extensions_built_in.diffusion_models.chroma.pipeline extensions_built_in.diffusion_models.flux2.src.pipeline
toolkit.models.lokr toolkit.models.DoRA
""".split()
BUILT_IN = "extensions_built_in.diffusion_models."
MODELS = {
    "wan": ("toolkit.models.wan21.wan21", "Wan21"),
    "wan-22": (f"{BUILT_IN}wan22.wan22_14b_model", "Wan2214bModel"),
    "qwen": (f"{BUILT_IN}qwen_image.qwen_image", "QwenImageModel"),
    "chroma": (f"{BUILT_IN}chroma.chroma_model", "ChromaModel"),
    "flux2": (f"{BUILT_IN}flux2.flux2_model", "Flux2Model"),
    "hidream": (f"{BUILT_IN}hidream.hidream_model", "HidreamModel"),
    "ltx2": (f"{BUILT_IN}ltx2.ltx2", "LTX2Model"),
    "z_image": (f"{BUILT_IN}z_image.z_image", "ZImageModel"),
}
"""The class that renames; of the others it is StableDiffusion, which renames nothing."""
FLAGS = {"flux": {"is_flux": True}, "sd3": {"is_v3": True}, "lumina2": {"is_lumina2": True}}
CASES: dict[str, list[dict[str, Any]]] = {
    name: [{}, {"dtype": torch.float32}, {"transformer_only": False}, {"alpha": 1}] for name in [*FLAGS, *MODELS]
}
CASES["wan"][2] = {"transformer_only": False, "save_as": "ai-toolkit_wan_all"}
CASES["wan-22"] = [{}, {"stage": 2}]
for _name in ("sd3", "wan-22", "chroma", "ltx2", "z_image"):
    CASES[_name][0] = {"save_as": f"ai-toolkit_{_name}"}


def model(small: Small) -> tuple[nn.Module, str]:
    """What is trained: Diffusers' class, or this trainer's own."""
    c = small.config
    if small.name == "flux2":
        own = importlib.import_module(f"{BUILT_IN}flux2.src.model")
        params = own.Flux2Params(
            in_channels=c["in_channels"], context_in_dim=c["joint_attention_dim"], num_heads=c["num_attention_heads"],
            hidden_size=c["num_attention_heads"] * c["attention_head_dim"], axes_dim=c["axes_dims_rope"],
            depth=c["num_layers"], depth_single_blocks=c["num_single_layers"],
        )  # fmt: skip
        return own.Flux2(params), "original"
    if small.name == "chroma":
        own = importlib.import_module(f"{BUILT_IN}chroma.src.model")
        params = own.ChromaParams(
            in_channels=c["in_channels"],
            context_in_dim=c["joint_attention_dim"],
            num_heads=c["num_attention_heads"],
            hidden_size=c["num_attention_heads"] * c["attention_head_dim"],
            axes_dim=c["axes_dims_rope"],
            depth=c["num_layers"],
            depth_single_blocks=c["num_single_layers"],
            mlp_ratio=4.0,
            theta=10_000,
            qkv_bias=True,
            guidance_embed=True,
            approximator_in_dim=c["approximator_num_channels"],
            _use_compiled=False,
            approximator_depth=c["approximator_layers"],
            approximator_hidden_size=c["approximator_hidden_dim"],
        )
        return own.Chroma(params), "original"
    if small.name == "hidream":
        own = importlib.import_module(f"{BUILT_IN}hidream.src.models.transformers.transformer_hidream_image")
        return own.HiDreamImageTransformer2DModel(**{**c, "axes_dims_rope": tuple(c["axes_dims_rope"])}), "diffusers"
    return small.model(), "diffusers"


def write(small: Small, file: Path, name: str, rank: int = 2, alpha: float | None = None, dtype: Any = torch.float16,
          transformer_only: bool = True, stage: int = 1) -> tuple[Any, ...]:  # fmt: skip
    """Fill and save a network. alpha is what the configuration says: it is the rank all the same."""
    special = importlib.import_module("toolkit.lora_special")
    base, layout = model(small)
    kind = type(base).__name__
    module, cls = MODELS.get(name, ("toolkit.stable_diffusion_model", "StableDiffusion"))
    owner = getattr(importlib.import_module(module), cls)
    sd = owner.__new__(owner)
    sd.__dict__.update(_network=None, network=None, ltx_version="2.0", train_high_noise=True, train_low_noise=True)
    sd.use_old_lokr_format = False
    root, prefix = base, ""
    if name == "wan-22":
        root, prefix = type("DualWanTransformer3DModel", (Inner,), {})(), f"transformer_{stage}."
        root.add_module(prefix[:-1], base)
        kind = "DualWanTransformer3DModel"
    config = SimpleNamespace(split_multistage_loras=True, all_layers=False)
    net = special.LoRASpecialNetwork(
        [],
        root,
        multiplier=1.0,
        lora_dim=rank,
        alpha=rank if alpha is None else alpha,
        train_unet=True,
        network_config=config,
        train_text_encoder=False,
        network_type="lora",
        transformer_only=transformer_only,
        base_model=sd,
        target_lin_modules=[kind],
        is_transformer=name in MODELS,
        **FLAGS.get(name, {}),
    )
    net.apply_to([], root, False, True)
    sd.__dict__["network"] = net
    fill(net)
    updates: Updates = {}
    for lora in net.unet_loras:
        path = lora.lora_name.replace("$$", ".").removeprefix("transformer.").removeprefix(prefix)
        updates[path] = product(lora.lora_up.weight, lora.lora_down.weight) * lora.scale
    meta = importlib.import_module("toolkit.metadata")
    info = OrderedDict(name="style", training_info={"step": 100, "epoch": 3})
    net.save_weights(str(file), dtype=dtype, metadata=meta.get_meta_for_safetensors(info))
    high = file.with_name(f"{file.stem}_{'high' if stage == 1 else 'low'}_noise.safetensors")
    return layout, updates, *([high] if high.exists() else [])
