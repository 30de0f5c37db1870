"""Which files are SAT's: those of models whose blocks have the same name in Diffusers are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.oracle import updates
from helpers.sat import lora_tensors
from safetensors.numpy import save_file

import loraforge
from loraforge.files.opening import open_tensors
from loraforge.format.registry import formats
from loraforge.names.catalog import architectures


@pytest.mark.parametrize("key", [
    "transformer.layers.0.attention.query_key_value.weight", "transformer.layers.11.attention.dense.bias",
    "transformer.layers.0.mlp.dense_h_to_4h.weight", "transformer.layers.0.post_attention_layernorm.weight",
    "transformer.layers.0.attention.query_key_value.matrix_A.0", "mixins.patch_embed.proj.weight",
    "module.model.diffusion_model._orig_mod.transformer.layers.0.attention.dense.matrix_B.0",
    "model.diffusion_model.transformer.layers.0.attention.dense.weight",
])  # fmt: skip
def test_a_name_of_sat_is_claimed(key: str, tmp_path: Path) -> None:
    save_file({key: np.zeros((2, 2), "f4")}, tmp_path / "a.safetensors")
    assert formats()["sat"].claims(open_tensors(tmp_path / "a.safetensors")[0])


@pytest.mark.parametrize("key", [
    "model.diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight", "transformer_blocks.0.attn1.to_q.matrix_A.0",
    "transformer.layers.0.attention.to_q.matrix_A.0", "model.diffusion_model.blocks.0.self_attn.q.weight",
])  # fmt: skip
def test_a_word_of_sat_in_another_models_names_is_not_claimed(key: str, tmp_path: Path) -> None:
    save_file({key: np.zeros((2, 2), "f4")}, tmp_path / "a.safetensors")
    assert not formats()["sat"].claims(open_tensors(tmp_path / "a.safetensors")[0])


PREFIX = "model.diffusion_model."


@pytest.mark.parametrize("before", [PREFIX, "", "diffusion_model.", f"module.{PREFIX}", f"{PREFIX}_orig_mod."])
def test_sats_names_are_read_whatever_stands_before_them(before: str, tmp_path: Path) -> None:
    """In a safetensors file too: q, k and v are the pairs 0, 1 and 2, at SAT's alpha 1."""
    state = {key.removeprefix(PREFIX): tensor.numpy() for key, tensor in lora_tensors(range(2), 64, 4).items()}
    save_file({f"{before}{key}": tensor for key, tensor in state.items()}, tmp_path / "a.safetensors")
    loraforge.convert(tmp_path / "a.safetensors", to="diffusers", out=tmp_path / "out", dtype="fp32")
    got = updates(tmp_path / "out" / "pytorch_lora_weights.safetensors")
    names = [("query_key_value", 0, "to_q"), ("query_key_value", 1, "to_k"), ("query_key_value", 2, "to_v")]
    assert len(got) == 8
    for module, part, name in [*names, ("dense", 0, "to_out.0")]:
        A, B = (state[f"transformer.layers.1.attention.{module}.matrix_{factor}.{part}"] for factor in "AB")
        want = B.astype("f8") @ A / 4
        np.testing.assert_allclose(got[f"transformer_blocks.1.attn1.{name}"], want, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", architectures())
def test_no_diffusers_file_of_another_model_is_claimed(name: str, tmp_path: Path) -> None:
    layout = architectures()[name].layouts["diffusers"]
    paths = [template.text.replace("{i}", "0").replace("{last}", "1") for template in layout.modules]
    keys = (f"transformer.{path}.lora_{factor}.weight" for path in paths for factor in "AB")
    save_file({key: np.zeros((2, 2), "f4") for key in keys}, tmp_path / "a.safetensors")
    assert not formats()["sat"].claims(open_tensors(tmp_path / "a.safetensors")[0])


def test_blocks_of_z_image_in_diffusers_names_are_read(tmp_path: Path) -> None:
    pair = {"A": np.zeros((4, 3840), "f4"), "B": np.zeros((3840, 4), "f4")}
    paths = [f"transformer.layers.{i}.attention.{module}" for i in range(2) for module in ("to_q", "to_k")]
    state = {f"{path}.lora_{factor}.weight": array for path in paths for factor, array in pair.items()}
    save_file(state, tmp_path / "a.safetensors")
    assert loraforge.inspect(tmp_path / "a.safetensors").format == "diffusers"
