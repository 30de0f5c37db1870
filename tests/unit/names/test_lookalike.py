"""An adapter of another model, or in a spelling that is not read: what it looks like is said, and nothing harmful."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers.sparse import attention, sparse
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.names.lookalike import models, odd_words, of_repo, of_words, other_model

DOWN_UP = (".lora_down.weight", ".lora_up.weight")
OTHERS = (
    ("Flux", "lora_unet_double_blocks_{}_", "img_attn_qkv txt_mod_lin img_mlp_0"),
    ("Flux", "transformer.", "transformer_blocks.{}.attn.to_q single_transformer_blocks.{}.proj_mlp x_embedder"),
    ("Stable Diffusion (1.5, 2, XL)", "lora_unet_", "input_blocks_{}_1_transformer_blocks_0_attn1_to_q label_emb_0_0"),
    ("Stable Diffusion (1.5, 2, XL)", "unet.", "down_blocks.{}.attentions.0.transformer_blocks.0.attn1.to_q"),
    ("Stable Diffusion 3", "lora_unet_joint_blocks_{}_", "x_block_attn_qkv context_block_mlp_fc1"),
    ("Qwen-Image", "transformer.transformer_blocks.{}.", "attn.add_q_proj img_mlp.net.2 txt_mod.1"),
    (
        "LTX-Video",
        "diffusion_model.",
        "transformer_blocks.{}.attn2.to_q patchify_proj caption_projection.linear_1",
    ),
    ("Mochi 1", "blocks.{}.", "attn.qkv_x mlp_y.w1"),
    ("HiDream", "diffusion_model.", "double_stream_blocks.{}.block.attn1.to_q_t"),
    ("text encoder (CLIP or T5)", "text_encoder.text_model.", "encoder.layers.{}.self_attn.q_proj"),
    ("text encoder (CLIP or T5)", "lora_te_text_model_encoder_layers_{}_", "mlp_fc1"),
    ("language model", "base_model.model.model.layers.{}.", "self_attn.q_proj mlp.up_proj"),
)


@pytest.mark.parametrize(("title", "start", "names"), OTHERS)
def test_another_model_s_adapter_is_called_so(title: str, start: str, names: str, tmp_path: Path, cli) -> None:
    modules = {f"{start}{name}".format(n): (64, 64) for name in names.split() for n in range(3)}
    spelled = DOWN_UP if "lora_" in start else (".lora_A.weight", ".lora_B.weight")
    file = sparse(tmp_path / "x.safetensors", modules, prefix="", spelled=spelled)
    for words in (["convert", file, "--to", "diffusers", "--alpha", "4"], ["inspect", file], ["doctor", file]):
        done = cli(*words)
        assert done.exit_code == 1
        assert title in done.output
        assert sum(module in done.output for module in modules) >= min(3, len(modules))
        assert ("does nothing" in done.output) == ("does nothing: in CogVideoX" in done.output)
        assert ("does nothing" in done.output) == (words[0] == "doctor")
        assert "plugins list" not in done.output
        line = re.search(r"(?:try:|fix) +loraforge ([^\n]*)", done.output)
        assert line is not None
        assert cli(*shlex.split(line[1].partition("   #")[0])).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


ODD = {
    "transformer._orig_mod.{}": "_orig_mod.",
    "_orig_mod.{}": "_orig_mod.",
    "module.{}": "module.",
    "transformer.module.{}": "module.",
    "_fsdp_wrapped_module.{}": "_fsdp_wrapped_module.",
    "unet.{}": "unet.",
    "pipe.dit.{}": "pipe.dit.",
    "transformer.base_model.model.{}": "transformer.base_model.model.",
    "network.{}": "network.",
}


@pytest.mark.parametrize("name", ODD)
def test_the_odd_word_is_named(name: str, tmp_path: Path, cli) -> None:
    modules = {name.format(path): shape for path, shape in attention(64, 2).items()}
    _refused_by_name(sparse(tmp_path / "x.safetensors", modules, prefix=""), ODD[name], cli)


@pytest.mark.parametrize("inside", ["_orig_mod", "module", "_checkpoint_wrapped_module"])
def test_the_odd_word_inside_is_named(inside: str, tmp_path: Path, cli) -> None:
    modules = {path.replace(".attn1", f".{inside}.attn1"): shape for path, shape in attention(64, 2).items()}
    _refused_by_name(sparse(tmp_path / "x.safetensors", modules), f"{inside}.", cli)


@pytest.mark.parametrize("start", ["lora_transformer_", "lycoris_", "lora_prior_"])
def test_the_odd_word_of_flattened_names_is_named(start: str, tmp_path: Path, cli) -> None:
    modules = {path.replace(".", "_"): shape for path, shape in attention(64, 2).items()}
    _refused_by_name(sparse(tmp_path / "x.safetensors", modules, prefix=start, spelled=DOWN_UP), start, cli)


def test_a_trailing_underscore_is_named(tmp_path: Path, cli) -> None:
    modules = {path.replace(".", "_") + "_": shape for path, shape in attention(64, 2).items()}
    file = sparse(tmp_path / "x.safetensors", modules, prefix="lora_unet_", spelled=DOWN_UP)
    said = _refused_by_name(file, "_ at the end", cli)
    assert "plugin" not in said


def test_words_of_an_older_spelling_are_named(tmp_path: Path, cli) -> None:
    modules = {path.replace("attn1.", "attn1.processor."): shape for path, shape in attention(64, 1).items()}
    file = sparse(tmp_path / "x.safetensors", modules, spelled=("_lora.down.weight", "_lora.up.weight"))
    _refused_by_name(file, "processor.", cli)


def test_fused_projections_are_named(tmp_path: Path, cli) -> None:
    modules = {f"transformer_blocks.{n}.attn1.to_qkv": (192, 64) for n in range(2)}
    _refused_by_name(sparse(tmp_path / "x.safetensors", modules), "to_qkv: q, k and v in one", cli)


def test_kohya_s_words_behind_diffusers_names_are_not_to_be_renamed(tmp_path: Path, cli) -> None:
    file = sparse(tmp_path / "x.safetensors", attention(64, 1), spelled=DOWN_UP)
    said = _refused_by_name(file, ".lora_down", cli)
    assert "rename" not in said


def _refused_by_name(file: Path, word: str, cli) -> str:
    said = ""
    for words in (["convert", file, "--to", "diffusers", "--alpha", "4"], ["inspect", file], ["doctor", file]):
        done = cli(*words)
        assert done.exit_code == 1
        assert f"`{word}" in done.output
        assert "CogVideoX" in done.output
        assert "plugins list" not in done.output
        assert "eep the keys of one" not in done.output
        said += done.output
    return said


def test_alpha_beside_a_and_b_is_kept(tmp_path: Path, cli) -> None:
    plugin = Path(__file__).parents[3] / "plugins" / "loraforge-comfyui" / "loraforge_comfyui" / "wrapper.toml"
    tensors = load_file(sparse(tmp_path / "x.safetensors", attention(64, 1), prefix="diffusion_model."))
    for key in [key for key in tensors if ".lora_A." in key]:
        tensors[key.replace(".lora_A.weight", ".alpha")] = np.array(2.0, np.float32)
    save_file(tensors, tmp_path / "x.safetensors")
    done = cli("--plugin", plugin, "convert", tmp_path / "x.safetensors", "--to", "diffusers")
    assert done.exit_code == 1
    assert "mixture of several spellings" in done.stderr
    assert "eep the keys of one" not in done.stderr
    renamed = {key.replace("diffusion_model.", "transformer."): tensor for key, tensor in tensors.items()}
    save_file(renamed, tmp_path / "y.safetensors")
    said = cli("convert", tmp_path / "y.safetensors", "--to", "diffusers").stderr
    assert "alpha tensor" in said
    assert "no writer" not in said


def test_the_table_of_other_models() -> None:
    assert of_repo("black-forest-labs/FLUX.1-dev") == "Flux"
    assert of_repo("Wan-AI/Wan2.1-T2V-14B") == "Wan 2.x"
    assert of_repo("zai-org/CogVideoX-5b") is None
    assert of_words("flux-1-dev") == "Flux"
    assert of_words("hunyuanvideo15") == "HunyuanVideo 1.5"
    assert of_words("cogvideox") == "CogVideoX"
    assert of_words("someothermodel") is None
    assert other_model([]) is None
    assert other_model(["some.module"]) is None
    assert odd_words(["a.lora_A.weight"]) is None
    assert len(models()) > 20


def test_a_healthy_adapter_looks_like_none(tmp_path: Path) -> None:
    assert loraforge.inspect(sparse(tmp_path / "x.safetensors", attention(64, 2))).problem is None
