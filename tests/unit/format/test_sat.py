"""Which files are SAT's: those of models whose blocks have the same name in Diffusers are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import loraforge
from loraforge.files.opening import open_tensors
from loraforge.format.registry import formats
from loraforge.names.catalog import architectures


@pytest.mark.parametrize("key", [
    "transformer.layers.0.attention.query_key_value.weight", "transformer.layers.11.attention.dense.bias",
    "transformer.layers.0.mlp.dense_h_to_4h.weight", "transformer.layers.0.post_attention_layernorm.weight",
    "transformer.layers.0.attention.to_q.matrix_A.0", "mixins.patch_embed.proj.weight",
    "model.diffusion_model.transformer.layers.0.attention.dense.weight",
])  # fmt: skip
def test_a_name_of_sat_is_claimed(key: str, tmp_path: Path) -> None:
    save_file({key: np.zeros((2, 2), "f4")}, tmp_path / "a.safetensors")
    assert formats()["sat"].claims(open_tensors(tmp_path / "a.safetensors")[0])


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
