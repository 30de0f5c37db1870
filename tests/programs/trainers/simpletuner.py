"""bghira/SimpleTuner: SaveHookManager's _save_lora and _save_lycoris, with each model's class, pipeline and targets."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from helpers.stand_in import StandIn

from programs.trainers.models import Small, added, factors, fill

TITLE = "SimpleTuner"
ABSENT: list[str] = []
_ABSENT = """
torchvision cv2 torchsde bitsandbytes optimi loguru boto3 botocore fastapi wandb datasets pandas aiohttp trainingsample
sentencepiece torchaudio librosa soundfile imageio webdataset colorama open_clip compel timm sdnq torchao
optimum webshart
""".split()
MODELS = {
    "flux": "flux.model.Flux", "flux2": "flux2.model.Flux2", "qwen": "qwen_image.model.QwenImage",
    "z_image": "z_image.model.ZImage", "wan": "wan.model.Wan", "sd3": "sd3.model.SD3", "chroma": "chroma.model.Chroma",
    "lumina2": "lumina2.model.Lumina2", "ltx": "ltxvideo.model.LTXVideo", "ltx2": "ltxvideo2.model.LTXVideo2",
    "hidream": "hidream.model.HiDream",
}  # fmt: skip
CASES: dict[str, list[dict[str, Any]]] = {
    name: [{}, {"alpha": 4}, {"form": "comfyui"}, {"lycoris": {"algo": "lora"}}] for name in MODELS
}
CASES["qwen"][0]["save_as"] = "simpletuner_qwen"
CASES["chroma"][2]["save_as"] = "simpletuner_chroma_comfyui"
CASES["flux"][2]["save_as"] = "simpletuner_flux_comfyui"
CASES["wan"][3]["save_as"] = "simpletuner_wan_lycoris"
CASES["sd3"].append({"lycoris": {"algo": "lora", "rs_lora": True}})
WHERE = {"target_module": ["Attention", "FeedForward", "WanAttention", "ZImageTransformerBlock", "FluxAttention",
         "QwenImageTransformerBlock", "LTXVideoTransformerBlock", "HiDreamImageTransformerBlock", "Flux2FeedForward",
         "JointTransformerBlock", "LTX2VideoTransformerBlock"]}  # fmt: skip


def write(small: Small, file: Path, alpha: int = 2, form: str = "diffusers", lycoris: Any = None) -> tuple[Any, ...]:
    """Fill and save a network of rank 4; `lycoris`: what is in its lycoris_config."""
    made: Any = importlib.import_module("lycoris")  # before the stand-ins, which it would take for quantised layers
    if not any(isinstance(one, StandIn) and "torchvision" in one.names for one in sys.meta_path):
        sys.meta_path.append(StandIn(*_ABSENT))  # the last: those that are installed are taken
    hooks: Any = importlib.import_module("simpletuner.helpers.training.save_hooks")
    tracker: Any = importlib.import_module("simpletuner.helpers.training.state_tracker").StateTracker
    tracker.get_global_step, tracker.get_data_backends = (lambda *_: 1), (lambda *_, **__: {})
    module, name = MODELS[small.name].rsplit(".", 1)
    owner: Any = getattr(importlib.import_module(f"simpletuner.helpers.models.{module}"), name)
    try:
        base = owner.MODEL_CLASS(**small.config)
    except TypeError:  # its own class has other arguments
        base = small.model()
    base.requires_grad_(False)
    model = owner.__new__(owner)
    args = SimpleNamespace(
        lora_format=form, controlnet=False, use_ema=False, model_family=small.name, model_flavour=None,
        model_type="lora", output_dir="out", pretrained_model_name_or_path="", resolution=512, modelspec_comment=None,
        tracker_run_name="style", lycoris_config=str(file.with_name("in.json")),
    )  # fmt: skip
    model.config, model.model, model.unwrap_model = args, base, lambda *_, **__: base
    model.get_trained_component, model.get_text_encoder = (lambda *_, **__: base), (lambda _: None)
    accelerator = SimpleNamespace(unwrap_model=lambda one, **_: one, state=None, distributed_type="NO")
    saver = hooks.SaveHookManager.__new__(hooks.SaveHookManager)
    saver.__dict__.update(
        args=args, model=model, accelerator=accelerator, ema_model=None, use_deepspeed_optimizer=False
    )
    if lycoris:
        made.LycorisNetwork.apply_preset(WHERE)
        network = made.create_lycoris(base, 1.0, linear_dim=4, linear_alpha=alpha, **lycoris)
        network.apply_to()
        fill(network)
        Path(args.lycoris_config).write_text(json.dumps(lycoris))
        accelerator._lycoris_wrapped_network = network
        saver._save_lycoris([base], [], str(file.parent))
        network.double()
    else:
        from peft import LoraConfig

        base.add_adapter(LoraConfig(r=4, lora_alpha=alpha, target_modules=list(owner.DEFAULT_LORA_TARGET)))
        fill(factors(base))
        saver._save_lora([base], [], str(file.parent))
    return "diffusers", added(base), file.with_name("pytorch_lora_weights.safetensors")
