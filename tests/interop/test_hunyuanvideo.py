"""HunyuanVideo as data: compared with diffusers' own converter of base weights, its LoRA converter and its loader.

What a converter does to base weights is what it must do to updates, so the first is the oracle for both.
diffusers 0.42's LoRA converter differs from it for two kinds of module; `WRONG` says which, and a test by how much.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.loaders.lora_conversion_utils import _convert_hunyuan_video_lora_to_diffusers
from helpers.carry import carry
from helpers.hunyuan import (
    WIDTH,
    WRONG,
    assert_same,
    converted,
    dense,
    of_base_weights,
    original_to_diffusers,
    random_adapter,
    ranks,
    saved,
)
from helpers.tiny import Tiny

import loraforge


def test_every_module_is_where_diffusers_puts_base_weights(tmp_path: Path) -> None:
    original_to_diffusers(tmp_path)


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_whatever_stands_before_the_names(prefix: str, tmp_path: Path) -> None:
    source = saved(random_adapter(2), tmp_path / "original.safetensors", prefix)
    assert loraforge.inspect(source).format == "original"
    assert loraforge.inspect(source).architecture == "hunyuanvideo"


def test_the_folder_diffusion_pipe_saves_is_not_peft_s(tmp_path: Path) -> None:
    saved(random_adapter(2), tmp_path / "adapter_model.safetensors", "transformer.")
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 2}')
    assert loraforge.inspect(tmp_path).format == "original"


def test_the_lora_converter_of_diffusers_where_it_is_right(tmp_path: Path) -> None:
    tensors = {key: tensor for key, tensor in random_adapter().items() if not any(part in key for part in WRONG)}
    theirs = _convert_hunyuan_video_lora_to_diffusers({key: torch.from_numpy(t) for key, t in tensors.items()})
    source = saved(tensors, tmp_path / "original.safetensors")
    ours = converted(source, "diffusers", tmp_path / "out.safetensors", trained_scale=1)
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert np.array_equal(ours[key], tensor.numpy()), key


def test_the_lora_converter_of_diffusers_where_it_is_wrong(tmp_path: Path) -> None:
    """Both follow from one fault: rows of lora_A are taken for rows of the weight. diffusers 0.42.1."""
    final, refiner = "final_layer.adaLN_modulation.1", "txt_in.individual_token_refiner.blocks.0.self_attn_qkv"
    tensors = {key: tensor for key, tensor in random_adapter().items() if key.startswith((final, refiner))}
    theirs = {
        key: tensor.numpy()
        for key, tensor in _convert_hunyuan_video_lora_to_diffusers(
            {key: torch.from_numpy(t) for key, t in tensors.items()}
        ).items()
    }
    source = saved(tensors, tmp_path / "original.safetensors")
    ours = dense(converted(source, "diffusers", tmp_path / "out.safetensors", trained_scale=1), "transformer.")
    right = of_base_weights(dense(tensors))
    assert_same(ours, right)
    # shift and scale: the halves of A's 6 components change places too, while B's columns do not
    wrong = dense({key: t for key, t in theirs.items() if "norm_out.linear" in key}, "transformer.")["norm_out.linear"]
    # 1.32 to 1.56 for five seeds
    error = np.linalg.norm(wrong - right["norm_out.linear"]) / np.linalg.norm(right["norm_out.linear"])
    assert error == pytest.approx(np.sqrt(2), rel=0.25)  # as far off as an unrelated update of the same size
    # qkv of the refiner: A is cut into three, so that q, k and v get 2 of the 6 components for B's 6 columns
    for name in ("to_q", "to_k", "to_v"):
        stem = f"transformer.context_embedder.token_refiner.refiner_blocks.0.attn.{name}"
        assert theirs[f"{stem}.lora_A.weight"].shape == (2, WIDTH)
        assert theirs[f"{stem}.lora_B.weight"].shape == (WIDTH, 6)
    # and a rank that gives no three parts is refused
    four = {f"{refiner}.lora_A.weight": torch.zeros(4, WIDTH), f"{refiner}.lora_B.weight": torch.zeros(3 * WIDTH, 4)}
    with pytest.raises(ValueError, match="not enough values to unpack"):
        _convert_hunyuan_video_lora_to_diffusers(four)


def test_fused_split_and_fused_again(tmp_path: Path) -> None:
    """One A for a whole stack: no rank grows on the way, and the update is the same to the bit."""
    tensors = random_adapter(4)
    source = saved(tensors, tmp_path / "a.safetensors", "transformer.")
    converted(source, "diffusers", tmp_path / "b.safetensors", trained_scale=1)
    back = converted(tmp_path / "b.safetensors", "original", tmp_path / "c.safetensors")
    assert back.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert np.array_equal(back[key], tensor), key


@pytest.mark.parametrize("form", ["original", "comfyui"])
def test_split_fused_and_split_again(form: str, tmp_path: Path) -> None:
    """Where q, k and v have an A each, or none, one pair holds them block by block; split, the ranks come back."""
    rng = np.random.default_rng(1)
    adapted = {  # diffusers' names: module -> rank, rows, width of the input
        "transformer_blocks.0.attn.to_q": (4, 32, 32),
        "transformer_blocks.1.attn.to_q": (4, 32, 32),
        "transformer_blocks.1.attn.to_k": (2, 32, 32),
        "transformer_blocks.1.attn.to_v": (1, 32, 32),
        "single_transformer_blocks.0.attn.to_v": (3, 32, 32),
        "single_transformer_blocks.0.proj_mlp": (5, 128, 32),
        "single_transformer_blocks.1.proj_mlp": (2, 128, 32),
        "norm_out.linear": (4, 64, 32),
    }
    tensors = {}
    for path, (rank, rows, width) in adapted.items():
        tensors[f"transformer.{path}.lora_A.weight"] = rng.standard_normal((rank, width), np.float32)
        tensors[f"transformer.{path}.lora_B.weight"] = rng.standard_normal((rows, rank), np.float32)
    source = saved(tensors, tmp_path / "a.safetensors")
    fused = converted(source, form, tmp_path / "b.safetensors", trained_scale=1)
    img, one = ("img_attn_qkv", "") if form == "original" else ("img_attn.qkv", "diffusion_model.")
    assert ranks(fused) == {
        f"{one}double_blocks.0.{img}": 4,
        f"{one}double_blocks.1.{img}": 7,
        f"{one}single_blocks.0.linear1": 8,
        f"{one}single_blocks.1.linear1": 2,
        f"{one}final_layer.adaLN_modulation.1": 4,
    }
    stack = dense(fused, one)[f"double_blocks.0.{img}"]
    assert stack.shape == (96, 32)
    assert not stack[32:].any()
    split = converted(tmp_path / "b.safetensors", "diffusers", tmp_path / "c.safetensors", trained_scale=1)
    live = {path: update for path, update in dense(split, "transformer.").items() if update.any()}
    assert_same(live, dense(tensors, "transformer."))
    assert {path: ranks(split)[f"transformer.{path}"] for path in live} == {
        path: r for path, (r, _, _) in adapted.items()
    }
    # what was not adapted is now a module whose B is zero: as one that was adapted, and has not learnt anything
    idle = ranks(split).keys() - {f"transformer.{path}" for path in live}
    assert len(idle) == 2 + 2 + 3
    again = converted(tmp_path / "c.safetensors", form, tmp_path / "d.safetensors")
    assert_same(dense(again), dense(fused))


COMFYUI_NAMES = (
    ("_attn_qkv", "_attn.qkv"), ("_attn_proj", "_attn.proj"), ("_mod.linear", "_mod.lin"),
    ("modulation.linear", "modulation.lin"), ("mlp.fc1", "mlp.0"), ("mlp.fc2", "mlp.2"),
    ("time_in.mlp.0", "time_in.in_layer"), ("time_in.mlp.2", "time_in.out_layer"),
    ("guidance_in.mlp.0", "guidance_in.in_layer"), ("guidance_in.mlp.2", "guidance_in.out_layer"),
    ("t_embedder.mlp.0", "t_embedder.in_layer"), ("t_embedder.mlp.2", "t_embedder.out_layer"),
    ("c_embedder.linear_1", "c_embedder.in_layer"), ("c_embedder.linear_2", "c_embedder.out_layer"),
)  # fmt: skip
"""Original -> ComfyUI: the attributes of the classes in its comfy/ldm/hunyuan_video/model.py."""


def in_comfyui(path: str) -> str:
    for ours, theirs in COMFYUI_NAMES:
        path = path.replace(ours, theirs)
    return path


def test_the_names_of_comfyui(tmp_path: Path) -> None:
    tensors = random_adapter(4)
    source = saved(tensors, tmp_path / "a.safetensors", "transformer.")
    comfy = converted(source, "comfyui", tmp_path / "b.safetensors", trained_scale=1)
    assert_same(dense(comfy, "diffusion_model."), {in_comfyui(path): u for path, u in dense(tensors).items()})
    assert loraforge.inspect(tmp_path / "b.safetensors").format == "comfyui"
    split = converted(tmp_path / "b.safetensors", "diffusers", tmp_path / "c.safetensors", trained_scale=1)
    assert_same(dense(split, "transformer."), of_base_weights(dense(tensors)))
    back = converted(tmp_path / "c.safetensors", "comfyui", tmp_path / "d.safetensors")
    assert ranks(back) == ranks(comfy)
    assert_same(dense(back), dense(comfy))


COMFYUI_NORMS = (
    ("_attn_q_norm.weight", "_attn.norm.query_norm.scale"), ("_attn_k_norm.weight", "_attn.norm.key_norm.scale"),
    (".q_norm.weight", ".norm.query_norm.scale"), (".k_norm.weight", ".norm.key_norm.scale"),
)  # fmt: skip


def test_a_base_model_in_comfyui_s_names() -> None:
    """As ComfyUI renames an original checkpoint when it loads one: supported_models.py, process_unet_state_dict."""
    tiny = Tiny("hunyuanvideo", 0)
    original, _ = carry(tiny.state, tiny.arch, "diffusers", "original", [tiny.variant])
    comfy, _ = carry(tiny.state, tiny.arch, "diffusers", "comfyui", [tiny.variant])
    renamed = dict[str, np.ndarray]()
    for key, array in original.items():
        for ours, theirs in COMFYUI_NORMS:
            key = key.replace(ours, theirs)
        renamed[in_comfyui(key)] = array
    assert comfy.keys() == renamed.keys()
    assert all(np.array_equal(comfy[key], array) for key, array in renamed.items())


def test_musubi_s_names_and_alpha(tmp_path: Path) -> None:
    tensors = random_adapter(4)
    source = saved(tensors, tmp_path / "a.safetensors", "transformer.")
    musubi = converted(source, "kohya", tmp_path / "b.safetensors", alpha=1)
    assert float(musubi["lora_unet_double_blocks_0_img_attn_qkv.alpha"]) == 1
    want = {path.replace(".", "_"): update / 4 for path, update in dense(tensors).items()}
    assert_same(dense(musubi, "lora_unet_", (".lora_down", ".lora_up")), want)
    assert loraforge.inspect(tmp_path / "b.safetensors").format == "kohya"
    out = converted(tmp_path / "b.safetensors", "diffusers", tmp_path / "c.safetensors")
    scaled = {path: update / 4 for path, update in dense(tensors).items()}
    assert_same(dense(out, "transformer."), of_base_weights(scaled))
