"""What tells the trainer of a file without a scale, and how trainers spell: seen in files that they wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.sparse import sparse
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.errors import ScaleError

DEFAULT = (".lora_A.default.weight", ".lora_B.default.weight")
QWEN = {f"transformer_blocks.{n}.attn.{m}": (48, 48) for n in range(2) for m in ("to_q", "add_q_proj")} | {
    f"transformer_blocks.{n}.img_mlp.net.2": (48, 192) for n in range(2)
}
FLUX = {
    f"single_transformer_blocks.{n}.{m}": (rows, 48)
    for n in range(2)
    for m, rows in (("attn.to_q", 48), ("proj_mlp", 192))
}
ONETRAINER = {"ot_revision": "23df383", "ot_config": '{"lora_rank": 4, "lora_alpha": 1.0}'}


@pytest.mark.parametrize("header", [ONETRAINER, {"ot_revision": "git not installed"}])
def test_the_alpha_of_onetrainer_s_configuration_is_in_its_factors(header: dict[str, str], tmp_path: Path) -> None:
    """modules/util/convert_lora_util.py lora_fold_alpha: one more alpha / rank would be wrong."""
    adapter = loraforge.read(sparse(tmp_path / "a.safetensors", FLUX, metadata=header), architecture="flux")
    assert adapter.scale.provenance == "assumed" and "OneTrainer" in adapter.scale.source
    assert {delta[0].scaling for delta in adapter.modules.values()} == {1.0}
    with pytest.raises(ScaleError):
        loraforge.read(sparse(tmp_path / "b.safetensors", FLUX), architecture="flux")


def stated(tmp_path: Path, modules: dict[str, Any], **more: Any) -> str:
    return loraforge.read(sparse(tmp_path / "a.safetensors", modules, **{"prefix": "", **more})).scale.provenance


def test_peft_s_layers_as_they_are_in_a_model_are_diffsynth_s(tmp_path: Path) -> None:
    assert stated(tmp_path, QWEN, spelled=DEFAULT) == "assumed"


@pytest.mark.parametrize(
    ("modules", "more"),
    [
        (QWEN, {}),
        (QWEN, {"spelled": (".lora_A.mine.weight", ".lora_B.mine.weight")}),
        (QWEN, {"spelled": DEFAULT, "prefix": "transformer."}),
        ({f"transformer_blocks.{n}.attn1.to_q": (64, 64) for n in range(2)}, {"spelled": DEFAULT}),  # CogVideoX's
        ({f"blocks.{n}.self_attn.q": (64, 64) for n in range(2)}, {"spelled": DEFAULT}),  # Wan's could be set once
    ],
)
def test_others_are_not(modules: dict[str, Any], more: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ScaleError):
        stated(tmp_path, modules, **more)


@pytest.mark.parametrize(
    ("path", "shape", "arch"),
    [
        ("time_text_embed.timestep_embedder.linear_1", (48, 256), "qwen"),
        ("all_final_layer.2-1.adaLN_modulation.1", (48, 48), "z_image"),
        ("time_guidance_embed.guidance_embedder.linear_2", (48, 48), "flux2"),
    ],
)
@pytest.mark.parametrize("words", [(".lora_down.weight", ".lora_up.weight")])
def test_a_number_that_is_no_block_s_in_an_unusual_spelling(
    path: str, shape: tuple[int, int], arch: str, words: tuple[str, str], tmp_path: Path
) -> None:
    file = sparse(tmp_path / "a.safetensors", {path: shape}, spelled=words)
    assert loraforge.read(file, architecture=arch, trained_scale=1).modules.keys() == {path}


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_alphas_beside_lora_A(prefix: str, tmp_path: Path) -> None:
    tensors = load_file(sparse(tmp_path / "a.safetensors", QWEN, prefix=prefix))
    save_file(tensors | {f"{prefix}{path}.alpha": np.array(2, np.float32) for path in QWEN}, tmp_path / "a.safetensors")
    adapter = loraforge.read(tmp_path / "a.safetensors", architecture="qwen")
    assert adapter.scale.provenance == "recorded"
    assert {delta[0].scaling for delta in adapter.modules.values()} == {0.5}


def test_stable_diffusion_35_in_headers(tmp_path: Path) -> None:
    modules = {f"transformer_blocks.{n}.attn.{m}": (48, 48) for n in range(2) for m in ("to_q", "add_q_proj")}
    header = {"modelspec.architecture": "stable-diffusion-v3.5/lora"}
    adapter = loraforge.read(sparse(tmp_path / "a.safetensors", modules, metadata=header), trained_scale=1)
    assert adapter.architecture == "sd3" and not adapter.rivals
