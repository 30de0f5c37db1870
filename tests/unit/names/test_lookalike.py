"""An adapter of another model, or in a spelling that is not read: what it looks like is said, and nothing harmful."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from helpers.sparse import attention, sparse

import loraforge
from loraforge.format.grammar import odd_words
from loraforge.names.lookalike import models, of_repo, of_words, other_model

DOWN_UP = (".lora_down.weight", ".lora_up.weight")
OTHERS = (
    ("Sana", "lora_unet_", "blocks_{}_cross_attn_kv_linear blocks_{}_mlp_inverted_conv_conv"),
    ("Krea 2", "diffusion_model.", "blocks.{}.attn.wq txtfusion.layerwise_blocks.{}.attn.wk"),
    ("Flux.3", "diffusion_model.", "content_mode_blocks.image.{}.q_proj single_blocks.{}.mlp_in"),
    ("AuraFlow", "", "double_layers.{}.attn.w2q single_layers.{}.mlp.c_fc1"),
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
        assert ("does nothing" in done.output) == ("does nothing: in the models that are known" in done.output)
        assert ("does nothing" in done.output) == (words[0] == "doctor")
        assert "plugins list" not in done.output
        line = re.search(r"(?:try:|fix) +loraforge ([^\n]*)", done.output)
        assert line is not None
        assert cli(*shlex.split(line[1].partition("   #")[0])).exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("word", [".lokr_w1", ".hada_w1_a", ".oft_diag", ".lora_a"])
def test_factors_that_are_not_read_are_named(word: str, tmp_path: Path, cli) -> None:
    file = sparse(tmp_path / "x.safetensors", attention(64, 2), spelled=(word, word.replace("1", "2") + "x"))
    _refused_by_name(file, word, cli)


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


def test_the_table_of_other_models() -> None:
    assert of_repo("black-forest-labs/FLUX.1-dev") == "Flux.1"
    assert of_repo("Wan-AI/Wan2.1-T2V-14B") == "Wan 2.x"
    assert of_repo("zai-org/CogVideoX-5b") == "CogVideoX"
    assert of_repo("someone/else") is None
    assert of_words("flux-1-dev") == "Flux.1"
    assert of_words("Flux.1-fill-dev/lora") == of_words("flux.1_kontext") == "Flux.1"
    assert of_words("Flux.2-klein-4b") == "Flux.2"
    assert of_words("flux-3") == "Flux.3"
    assert of_words("Qwen-Image-Edit-2511") == "Qwen-Image"
    assert of_words("stable-diffusion-3-5-large") == "Stable Diffusion 3"
    assert of_words("hunyuan-video/lora") == "HunyuanVideo"
    assert of_words("Chroma1/lora") == "Chroma"
    assert of_words("hunyuanvideo15") == "HunyuanVideo 1.5"
    assert of_words("cogvideox") == "CogVideoX"
    assert of_words("someothermodel") is None
    assert other_model([]) is None
    assert other_model(["some.module"]) is None
    assert odd_words(["a.lora_A.weight"]) is None
    assert len(models()) > 20


def test_a_healthy_adapter_looks_like_none(tmp_path: Path) -> None:
    assert loraforge.inspect(sparse(tmp_path / "x.safetensors", attention(64, 2))).problem is None
