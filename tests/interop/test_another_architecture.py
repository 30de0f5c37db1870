"""HunyuanVideo, an architecture that is one TOML file: verbs name its classes, and do what Diffusers does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from helpers.hub import Hub
from helpers.tolerance import WEIGHT, off_by
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import loraforge
from loraforge.errors import LoraforgeError

FILE = "diffusion_pytorch_model.safetensors"
TEXT, IMAGE = "hunyuanvideo-community/HunyuanVideo", "hunyuanvideo-community/HunyuanVideo-I2V-33ch"
MODULES = ["to_q", "to_k", "to_v", "add_q_proj", "proj_mlp", "norm1.linear", "ff.net.0.proj", "x_embedder.proj"]


def tiny(**options: object) -> HunyuanVideoTransformer3DModel:
    torch.manual_seed(0)
    sizes = {
        "in_channels": 33, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "num_single_layers": 3,
        "num_refiner_layers": 1, "text_embed_dim": 12, "pooled_projection_dim": 10, "guidance_embeds": False,
        "image_condition_type": "latent_concat",
    }  # fmt: skip
    return HunyuanVideoTransformer3DModel(**{**sizes, **options})


@pytest.fixture
def base(tmp_path: Path) -> Path:
    tiny().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """As a training script leaves it: Diffusers' own file, with its scale."""
    return trained(tiny(), tmp_path / "adapter")


def trained(model: HunyuanVideoTransformer3DModel, folder: Path) -> Path:
    config = LoraConfig(r=4, lora_alpha=2, target_modules=MODULES)
    model.add_adapter(config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    state = get_peft_model_state_dict(model)
    HunyuanVideoPipeline.save_lora_weights(folder, state, transformer_lora_adapter_metadata=config.to_dict())
    return folder / "pytorch_lora_weights.safetensors"


def test_convert_and_the_real_loaders(adapter: Path, base: Path, tmp_path: Path) -> None:
    loraforge.convert(adapter, to="peft", out=tmp_path / "peft")
    assert loraforge.verify(adapter, tmp_path / "peft").same
    loraforge.convert(tmp_path / "peft", to="diffusers", out=tmp_path / "back.safetensors")
    for file in (adapter, tmp_path / "back.safetensors"):
        assert loraforge.verify(file, in_="diffusers").same
        assert loraforge.verify(file, in_="diffusers", base=base).same
    assert loraforge.verify(tmp_path / "peft", in_="peft").same
    loraforge.convert(adapter, to="original", out=tmp_path / "original.safetensors")
    assert loraforge.verify(adapter, tmp_path / "original.safetensors").same


def test_a_wrong_file_is_seen_by_the_real_loader(adapter: Path, tmp_path: Path) -> None:
    state = load_file(adapter)
    state["transformer.x_embedder.proj.lora_B.weight"] *= 2
    other = tmp_path / "other.safetensors"
    save_file(state, other, {"format": "pt"})  # no scale: Diffusers applies 1
    assert not loraforge.verify(adapter, other, trained_scale=1).same
    assert loraforge.verify(other, in_="diffusers", trained_scale=1).same


def test_fuse_is_diffusers_own(adapter: Path, base: Path, tmp_path: Path) -> None:
    report = loraforge.fuse(base, [adapter], tmp_path / "fused", strength=[0.5])
    assert "HunyuanVideoTransformer3DModel.from_pretrained" in report.load
    model = HunyuanVideoTransformer3DModel.from_pretrained(base)
    model.load_lora_adapter(adapter.parent, weight_name=adapter.name, prefix="transformer")
    model.fuse_lora(lora_scale=0.5)
    model.unload_lora()
    got, want = load_file(tmp_path / "fused" / FILE), model.state_dict()
    assert got.keys() == want.keys()
    assert all(off_by(got[key], tensor) <= WEIGHT for key, tensor in want.items())
    assert any(not torch.equal(got[key], tensor) for key, tensor in load_file(base / FILE).items())
    HunyuanVideoTransformer3DModel.from_pretrained(tmp_path / "fused")


def test_convert_base_in_every_direction_of_its_layouts(base: Path, tmp_path: Path) -> None:
    there = loraforge.convert_base(base, "original", tmp_path / "original")
    assert there.variant == "HunyuanVideo-I2V-33ch"
    state = load_file(tmp_path / "original" / FILE)
    assert "double_blocks.0.img_attn_qkv.weight" in state and not (tmp_path / "original" / "config.json").exists()
    back = loraforge.convert_base(tmp_path / "original" / FILE, "diffusers", tmp_path / "back")
    assert back.load.startswith("HunyuanVideoTransformer3DModel.from_pretrained(")
    got, want = load_file(tmp_path / "back" / FILE), load_file(base / FILE)
    assert got.keys() == want.keys() and all(torch.equal(got[key], tensor) for key, tensor in want.items())
    config, wanted = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "back", base))
    assert config.pop("_diffusers_version") and wanted.pop("_diffusers_version")
    assert config == wanted
    model, info = HunyuanVideoTransformer3DModel.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")) and model


def test_what_convert_base_cannot_do_is_one_message_of_its_own(base: Path, tmp_path: Path) -> None:
    with pytest.raises(LoraforgeError, match="can be in layout original, diffusers, comfyui, not sat"):
        loraforge.convert_base(base, "sat", tmp_path / "sat")
    with pytest.raises(LoraforgeError, match="--sample is for positions that are learned, which HunyuanVideo has not"):
        loraforge.convert_base(base, "original", tmp_path / "original")
        loraforge.convert_base(tmp_path / "original" / FILE, "diffusers", tmp_path / "x", sample="49x480x720")
    tiny(in_channels=16, guidance_embeds=True, image_condition_type=None).save_pretrained(tmp_path / "text")
    assert loraforge.convert_base(tmp_path / "text", "original", tmp_path / "o").variant == "HunyuanVideo"
    with pytest.raises(LoraforgeError, match="has the shapes of HunyuanVideo or HunyuanVideo-I2V, and its other"):
        loraforge.convert_base(tmp_path / "o" / FILE, "diffusers", tmp_path / "y")
    # a block that is missing among those of its own kind
    state = {key: t for key, t in load_file(base / FILE).items() if "single_transformer_blocks.1." not in key}
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "config.json").write_text((base / "config.json").read_text())
    save_file(
        {key: t for key, t in state.items() if key != "transformer_blocks.1.attn.to_q.bias"}, tmp_path / "torn" / FILE
    )
    with pytest.raises(LoraforgeError, match=r"is not whole: there is no transformer_blocks.1.attn.to_q.bias\."):
        loraforge.convert_base(tmp_path / "torn", "original", tmp_path / "z")


def test_a_run_is_of_another_model(adapter: Path, base: Path) -> None:
    with pytest.raises(LoraforgeError, match="an adapter is one of HunyuanVideo, and what is run is CogVideoX"):
        loraforge.run([adapter], base=base, prompt="x")


@pytest.mark.parametrize(("repo", "pipeline", "task", "form"), [
    (TEXT, "HunyuanVideoPipeline", "text-to-video", "diffusers"),
    (IMAGE, "HunyuanVideoImageToVideoPipeline", "image-to-video", "peft"),
])  # fmt: skip
def test_push_names_its_own_pipeline(repo: str, pipeline: str, task: str, form: str, hub: Hub, tmp_path: Path) -> None:
    hub.add(repo, {"README.md": b"---\nlicense: other\n---\n"})
    text = {"in_channels": 16, "guidance_embeds": True, "image_condition_type": None} if repo == TEXT else {}
    adapter = trained(tiny(**text), tmp_path / "adapter")
    made = hub.run(
        "convert", adapter, "--to", form, "--base-model", repo, "--architecture", "hunyuanvideo", "-o", tmp_path / "out"
    )
    assert made.returncode == 0, made.stderr
    done = hub.run("push", tmp_path / "out", "me/style")
    assert done.returncode == 0, done.stderr
    card = hub.files("me/style")["README.md"].decode()
    front = yaml.safe_load(card.split("---")[1])
    assert (front["base_model"], front["pipeline_tag"], front["library_name"]) == (repo, task, form)
    assert "hunyuanvideo" in front["tags"] and task in front["tags"]
    (code,) = re.findall(r"```python\n(.*?)\n```", card, re.DOTALL)
    compile(code, "snippet.py", "exec")
    assert f"from diffusers import {pipeline}\n" in code and f'{pipeline}.from_pretrained("{repo}"' in code
    assert ('load_image("first_frame.png")' in code) == (task == "image-to-video")
    assert "CogVideo" not in card and "CogVideo" not in made.stdout + made.stderr + done.stdout + done.stderr


def test_heads_that_no_weight_tells(tmp_path: Path) -> None:
    model = AuraFlowTransformer2DModel(
        sample_size=8, num_attention_heads=3, attention_head_dim=8, caption_projection_dim=24, joint_attention_dim=12,
        num_mmdit_layers=0, num_single_dit_layers=2, pos_embed_max_size=16,
    )  # fmt: skip
    model.save_pretrained(tmp_path / "base")
    config = LoraConfig(r=4, lora_alpha=2, target_modules=["to_q", "to_k", "context_embedder", "ff.linear_1"])
    model.add_adapter(config)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    state = get_peft_model_state_dict(model)
    AuraFlowPipeline.save_lora_weights(tmp_path, state, transformer_lora_adapter_metadata=config.to_dict())
    adapter = tmp_path / "pytorch_lora_weights.safetensors"
    report = loraforge.convert(adapter, to="peft", out=tmp_path / "peft")
    assert report.to_dict()["architecture"] == "auraflow"
    assert loraforge.verify(adapter, in_="diffusers").same
    assert loraforge.verify(tmp_path / "peft", in_="peft", base=tmp_path / "base").same
    loraforge.fuse(tmp_path / "base", [adapter], tmp_path / "fused")
    model.fuse_lora()
    model.unload_lora()
    got = load_file(tmp_path / "fused" / FILE)
    assert all(off_by(got[key], tensor) <= WEIGHT for key, tensor in model.state_dict().items())
