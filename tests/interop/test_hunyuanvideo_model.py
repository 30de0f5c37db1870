"""A real HunyuanVideo transformer, tiny: every parameter has its place, and loaders apply what was converted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from helpers.hunyuan import HEIGHTS, dense, of_base_weights, random_adapter, saved

import loraforge
from loraforge.names.catalog import architecture


def model(**options: object) -> HunyuanVideoTransformer3DModel:
    """One small enough for a forward pass in a blink."""
    torch.manual_seed(0)
    return HunyuanVideoTransformer3DModel(
        **{
            "in_channels": 16,
            "out_channels": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "num_layers": 2,
            "num_single_layers": 2,
            "num_refiner_layers": 2,
            "text_embed_dim": 12,
            "pooled_projection_dim": 10,
            "rope_axes_dim": (2, 2, 4),
            **options,
        }
    ).eval()


def test_the_real_loader_applies_the_update_and_the_model_feels_it(tmp_path: Path) -> None:
    plain, loaded = model(), model()
    width = 16
    tensors, rng = {}, np.random.default_rng(3)
    arch = architecture("hunyuanvideo")
    shapes = {name: m.weight.shape for name, m in plain.named_modules() if getattr(m, "weight", None) is not None}
    where = {s: t for t, stack in arch.layouts["diffusers"].modules.items() for s in stack}
    for path, height in HEIGHTS.items():
        path = path.replace(".19.", ".1.").replace(".39.", ".1.")
        template, index = arch.layouts["original"].locate(path)
        shape = shapes[where[arch.layouts["original"].modules[template][0]].fill(index)]
        rows = shape[0] if path == "final_layer.linear" else height * width
        tensors[f"{path}.lora_A.weight"] = rng.standard_normal((4, *shape[1:]), np.float32) / 4
        B = rng.standard_normal((rows, 4), np.float32) / 4
        tensors[f"{path}.lora_B.weight"] = B.reshape(*B.shape, *(1,) * (len(shape) - 2))
    source = saved(tensors, tmp_path / "original.safetensors", "transformer.")
    loraforge.convert(source, to="diffusers", out=tmp_path / "out", trained_scale=0.5)

    state, metadata = HunyuanVideoPipeline.lora_state_dict(str(tmp_path / "out"), return_lora_metadata=True)
    HunyuanVideoPipeline.load_lora_into_transformer(state, loaded, metadata=metadata)
    updates = {path: update / 2 for path, update in dense(tensors).items()}
    expected = of_base_weights({path: u for path, u in updates.items() if "linear1" not in path})
    for i in (0, 1):  # diffusers' converter knows only the released width here
        parts = np.split(updates[f"single_blocks.{i}.linear1"], [width, 2 * width, 3 * width])
        names = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
        expected |= {f"single_transformer_blocks.{i}.{n}": part for n, part in zip(names, parts, strict=True)}
    modules = dict(plain.named_modules())
    assert expected.keys() == {n for n, m in modules.items() if isinstance(m, torch.nn.Linear | torch.nn.Conv3d)}
    inputs = {
        "hidden_states": torch.randn(1, 16, 2, 4, 4),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 5, 12),
        "encoder_attention_mask": torch.ones(1, 5, dtype=torch.bool),
        "pooled_projections": torch.randn(1, 10),
        "guidance": torch.tensor([6000.0]),
        "return_dict": False,
    }
    with torch.no_grad():
        before = plain(**inputs)[0]
        for path, update in expected.items():
            weight = modules[path].weight
            weight += torch.from_numpy(update).to(weight.dtype).reshape(weight.shape)
        want, got = plain(**inputs)[0], loaded(**inputs)[0]
    assert (want - before).norm() > 0.1 * before.norm()
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_peft_s_folder_too(tmp_path: Path) -> None:
    source = saved(random_adapter(2), tmp_path / "original.safetensors", "transformer.")
    loraforge.convert(source, to="peft", out=tmp_path / "peft", trained_scale=0.5)
    assert loraforge.verify(source, tmp_path / "peft").strength == pytest.approx(0.5)  # a file without alpha: read at 1


def test_the_report_and_what_shapes_say(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stem = "double_blocks.0.img_attn_qkv"
    tensors = {
        f"{stem}.lora_A.weight": rng.random((2, 3072), np.float32),
        f"{stem}.lora_B.weight": np.zeros((9216, 2), np.float32),
    }
    source = saved(tensors, tmp_path / "a.safetensors", "transformer.")
    said = "\n".join(loraforge.inspect(source).lines())
    assert "fits     HunyuanVideo, HunyuanVideo-I2V, HunyuanVideo-I2V-33ch" in said
    small = saved({k: t[:, :64] if "_A" in k else t[:192] for k, t in tensors.items()}, tmp_path / "b.safetensors")
    assert "no released HunyuanVideo has these shapes" in "\n".join(loraforge.inspect(small).lines())
    with pytest.raises(loraforge.LoraforgeError, match="sat has no names for HunyuanVideo"):
        loraforge.convert(source, to="sat", trained_scale=1, out=tmp_path / "x")
    loraforge.convert(source, to="diffusers", trained_scale=1, out=tmp_path / "d.safetensors")
    assert loraforge.verify(tmp_path / "d.safetensors", in_="diffusers").same
