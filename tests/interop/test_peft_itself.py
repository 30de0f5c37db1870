"""Adapters that the real PEFT makes and reads: convolutions, DoRA, stacked norms, patterns by its own rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from helpers.oracle import DATA, Case
from helpers.tolerance import WEIGHT
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file

import loraforge
from loraforge.errors import ConversionError, FormatError, ScaleError
from loraforge.scale import peft_config

EVERYTHING = """patch_embed.proj patch_embed.text_proj norm1.linear norm2.linear ff.net.0.proj ff.net.2
time_embedding.linear_1 time_embedding.linear_2 norm_out.linear proj_out to_q to_out.0""".split()
SETTINGS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "biases": {"lora_bias": True, "lora_alpha": 3},
    "patterns": {"rank_pattern": {r".*attn1\.to_q": 2, "proj_out": 8}, "alpha_pattern": {r"norm\d\.linear": 16}},
    "target as a regex": {"target_modules": r"transformer_blocks\.\d+\.(attn1\.to_[qv]|ff\.net\.2)|patch_embed\.proj"},
}


def base() -> Any:
    return CogVideoXTransformer3DModel.from_pretrained(DATA / "bases" / "2b", torch_dtype=torch.float32).eval()


def trained(place: Path, **options: Any) -> tuple[Path, torch.Tensor]:
    """A PEFT folder with random factors, and what its model computes."""
    torch.manual_seed(0)
    model = get_peft_model(base(), LoraConfig(**{"r": 4, "lora_alpha": 2, "target_modules": EVERYTHING} | options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.05)
            if "magnitude" in name:
                parameter.mul_(1 + 0.1 * torch.rand_like(parameter))
    model.save_pretrained(place)
    return place, output(model)


def output(model: Any) -> torch.Tensor:
    inputs = load_file(DATA / "bases" / "2b" / "inputs.safetensors")
    with torch.no_grad():
        return model(inputs["x"], inputs["context"], inputs["timesteps"], return_dict=False)[0]


@pytest.mark.parametrize("options", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("to", ["diffusers", "diffusers, scale in the header", "peft"])
def test_every_kind_of_module_survives(options: dict[str, Any], to: str, tmp_path: Path) -> None:
    source, want = trained(tmp_path / "source", **options)
    stored: Any = "metadata" if "header" in to else "tensors"
    loraforge.convert(source, to=to.partition(",")[0], out=tmp_path / "out", scale_in=stored)
    if to == "peft":
        model = PeftModel.from_pretrained(base(), str(tmp_path / "out"))
    else:
        model = base()
        pipe = CogVideoXPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=model, scheduler=None)
        pipe.load_lora_weights(str(tmp_path / "out"))
    assert (want - output(base())).abs().max() > 0.05
    assert (output(model) - want).abs().max() <= 5e-5


@pytest.mark.parametrize("options", [SETTINGS["plain"], SETTINGS["dora"]], ids=["plain", "dora"])
def test_bin_files_are_read_alike(options: dict[str, Any], tmp_path: Path) -> None:
    source, _ = trained(tmp_path / "source", **options)
    (tmp_path / "bin").mkdir()
    torch.save(load_file(source / "adapter_model.safetensors"), tmp_path / "bin" / "adapter_model.bin")
    (tmp_path / "bin" / "adapter_config.json").write_bytes((source / "adapter_config.json").read_bytes())
    assert loraforge.verify(source, tmp_path / "bin").same
    loraforge.convert(source, to="diffusers", out=tmp_path / "d")
    (tmp_path / "dbin").mkdir()
    tensors = load_file(tmp_path / "d" / "pytorch_lora_weights.safetensors")
    torch.save(tensors, tmp_path / "dbin" / "pytorch_lora_weights.bin")
    assert loraforge.verify(tmp_path / "d", tmp_path / "dbin").same


def test_sat_refuses_the_modules_its_lora_cannot_hold(tmp_path: Path) -> None:
    source, _ = trained(tmp_path / "source")
    with pytest.raises(ConversionError) as refusal:
        loraforge.convert(source, to="sat", out=tmp_path / "out", lora_only=True)
    for kind in ("patch_embed.proj", "norm1.linear", "ff.net.0.proj", "proj_out"):
        assert kind in str(refusal.value)
    assert "attn1.to_q" not in refusal.value.message
    dropped = refusal.value.remedies[0].command.replace("'", "").split()[1::2]
    loraforge.convert(source, to="sat", out=tmp_path / "out", lora_only=True, drop=dropped)
    assert loraforge.inspect(tmp_path / "out").targets == {
        "transformer.layers.{i}.attention.dense": 2,
        "transformer.layers.{i}.attention.query_key_value": 2,
    }


PARTS = [
    "transformer_blocks",
    "0",
    "1",
    "11",
    "attn1",
    "to_q",
    "to_k",
    "to_out.0",
    r"to_\w",
    ".*",
    r"\.",
    ".",
    r"\d+",
    "^",
    "(to_q|to_k)",
]
PATHS = [f"transformer_blocks.{i}.attn1.{name}" for i in (0, 1, 11) for name in ("to_q", "to_k", "to_out.0")]


PATTERNS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("".join)


@pytest.mark.parametrize("examples", [60, pytest.param(300, marks=pytest.mark.long)])
def test_patterns_match_as_in_peft(examples: int) -> None:
    every = given(st.dictionaries(PATTERNS, st.integers(1, 9), max_size=4))
    settings(max_examples=examples)(every(match_as_in_peft))()


def match_as_in_peft(pattern: dict[str, int]) -> None:
    config = {"r": 4, "lora_alpha": 4, "alpha_pattern": pattern}
    try:
        said = {path: peft_config.rule(config, dict.fromkeys(PATHS, 4), "x").of(path, 4) * 4 for path in PATHS}
    except ScaleError as error:
        idle = [key for key in pattern if not any(get_pattern_key([key], path) == key for path in PATHS)]
        assert idle or "cannot be matched" in str(error)
        return
    assert said == {path: pattern.get(get_pattern_key(pattern.keys(), path), 4) for path in PATHS}


@pytest.mark.parametrize(
    "targets", [["to_q"], ["attn1.to_q", "to_out.0"], ["q"], r".*to_[qk]", "transformer_blocks", PATHS[:2]]
)
def test_targets_match_as_in_peft(targets: Any) -> None:
    narrowed = [{}, {"exclude_modules": ["to_k"]}, {"exclude_modules": r".*\.1\..*"}]
    if isinstance(targets, list):
        narrowed += [
            {"layers_to_transform": [0, 11]},
            {"layers_to_transform": 1, "layers_pattern": "transformer_blocks"},
        ]
    for entries in narrowed:
        config = LoraConfig(target_modules=targets, **entries)
        left = peft_config.untargeted({"target_modules": targets, **entries}, PATHS, "x")
        assert left == [path for path in PATHS if not check_target_module_exists(config, path)], entries


@given(
    st.dictionaries(st.sampled_from(PATHS), st.tuples(st.integers(1, 5), st.sampled_from([0.25, 1.0, 0.3])), min_size=1)
)
def test_the_configuration_we_write_matches_what_it_should_and_nothing_else(modules: dict[str, Any]) -> None:
    ranks, scalings = ({path: value[n] for path, value in modules.items()} for n in (0, 1))
    config = peft_config.config(ranks, scalings)
    peft = LoraConfig(**config)
    for path in PATHS:
        assert bool(check_target_module_exists(peft, path)) == (path in modules)
        if path in modules:
            rank = peft.rank_pattern.get(get_pattern_key(peft.rank_pattern.keys(), path), peft.r)
            alpha = peft.alpha_pattern.get(get_pattern_key(peft.alpha_pattern.keys(), path), peft.lora_alpha)
            assert (rank, alpha / rank) == (ranks[path], pytest.approx(scalings[path], rel=1e-12))
            for other in (f"other.{path}", path.replace(".", "x", 1)):  # names the patterns must not mean
                assert get_pattern_key(peft.rank_pattern.keys(), other) == other
                assert get_pattern_key(peft.alpha_pattern.keys(), other) == other


@pytest.mark.parametrize("way", ["pissa", "olora", "loftq", "corda", "lora_ga"])
def test_initialisations_that_change_the_base_are_refused(way: str, tmp_path: Path) -> None:
    source, _ = trained(tmp_path / "source")
    path = source / "adapter_config.json"
    path.write_text(path.read_text().replace('"init_lora_weights": true', f'"init_lora_weights": "{way}"'))
    with pytest.raises(FormatError, match="changed the base weights"):
        loraforge.convert(source, to="diffusers", out=tmp_path / "out")


def test_fused_a_bias_of_the_lora_is_what_peft_merges(tmp_path: Path) -> None:
    source, _ = trained(tmp_path / "source", lora_bias=True, lora_alpha=3)
    loraforge.fuse(DATA / "bases" / "2b", [source], tmp_path / "fused", dtype="fp32")
    merged = PeftModel.from_pretrained(base().double(), str(source)).merge_and_unload().state_dict()
    fused, before = load_file(next((tmp_path / "fused").rglob("*.safetensors"))), base().state_dict()
    assert fused.keys() == merged.keys()
    for key, tensor in fused.items():
        assert (tensor.double() - merged[key]).abs().max() <= WEIGHT * max(1.0, float(merged[key].abs().max())), key
    biases = {key for key in fused if key.endswith(".bias") and not torch.equal(fused[key], before[key])}
    assert len(biases) == len([key for key in load_file(source / "adapter_model.safetensors") if "B.bias" in key]) > 10


def test_a_bias_that_its_configuration_does_not_name_is_refused(tmp_path: Path, cli) -> None:
    source, _ = trained(tmp_path / "source", lora_bias=True)
    path = source / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_bias": true', '"lora_bias": false'))
    with pytest.raises(FormatError, match=r"does not say lora_bias.*lora_B\.bias") as refused:
        loraforge.convert(source, to="diffusers", out=tmp_path / "out")
    drop = [word for word in refused.value.remedies[0].options if word != "--drop"]
    loraforge.convert(source, to="diffusers", out=tmp_path / "out", drop=drop)
    assert not any("bias" in key for key in load_file(tmp_path / "out" / "pytorch_lora_weights.safetensors"))


def test_the_scaling_peft_applies_is_the_one_written(tmp_path: Path) -> None:
    for case in ("peft_patterns", "diffusers_meta_patterns"):
        loraforge.convert(Case(case).source, to="peft", out=tmp_path / case)
        model = PeftModel.from_pretrained(base(), str(tmp_path / case))
        layers = {n.removeprefix("base_model.model."): m for n, m in model.named_modules() if isinstance(m, LoraLayer)}
        assert {name: layer.scaling["default"] for name, layer in layers.items()} == Case(case).manifest["scales"]
        written = load_file(tmp_path / case / "adapter_model.safetensors")
        original = load_file(next(Case(case).source.glob("[ap]*_*[ls].safetensors")))
        bare = {key.removeprefix("transformer.").removeprefix("base_model.model."): t for key, t in original.items()}
        for key, tensor in written.items():
            np.testing.assert_array_equal(tensor, bare[key.removeprefix("base_model.model.")])
