"""An architecture that a plugin adds, beside CogVideoX: whose an adapter is, and what messages call it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers.oracle import DATA
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.errors import FormatError, LoraforgeError
from loraforge.names.catalog import outdone

TOY = """
architecture = "toy"
title = "Toy"
segments = ["q", "k", "out", "conv"]

[layouts.diffusers.modules]
"transformer_blocks.{i}.attn.to_q" = ["q"]
"transformer_blocks.{i}.attn.to_k" = ["k"]
"proj_out" = ["out"]
"x_embedder.proj" = ["conv"]

[layouts.original.modules]
"double_blocks.{i}.qk" = ["q", "k"]
"final_layer" = ["out"]
"img_in.proj" = ["conv"]

[variants.Toy]
repo = "toy/toy"
blocks = 2
shapes = { q = [64, 64], conv = [64, 4, 1, 2, 2] }

[format]
name = "toy-original"
summary = "the original names of a toy"
layouts = { toy = "original" }
prefixes = ["transformer.", ""]
spellings = [{ A = ".lora_A.weight", B = ".lora_B.weight" }]
file = "adapter_model.safetensors"
"""


@pytest.fixture(autouse=True)
def toy(tmp_path: Path) -> None:
    (tmp_path / "toy.toml").write_text(TOY)
    loraforge.use_plugin(tmp_path / "toy.toml")


def adapter(path: Path, *modules: str, rows: int = 8, shape: tuple[int, ...] = (6,)) -> Path:
    rng = np.random.default_rng(0)
    tensors = {}
    for module in modules:
        tensors[f"{module}.lora_A.weight"] = rng.random((2, *shape), np.float32)
        tensors[f"{module}.lora_B.weight"] = rng.random((rows, 2, *(1,) * (len(shape) - 1)), np.float32)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize("prefix", ["transformer.", ""])
def test_a_prefix_alone_makes_no_adapter_one_of_diffusers(prefix: str, tmp_path: Path) -> None:
    said = loraforge.inspect(adapter(tmp_path / "x.safetensors", f"{prefix}double_blocks.0.qk", f"{prefix}final_layer"))
    assert (said.format, said.architecture, said.layout) == ("toy-original", "toy", "original")


def test_a_configuration_beside_it_makes_no_adapter_one_of_peft(tmp_path: Path) -> None:
    adapter(tmp_path / "adapter_model.safetensors", "transformer.double_blocks.0.qk")
    (tmp_path / "adapter_config.json").write_text('{"r": 2, "lora_alpha": 2}')
    assert loraforge.inspect(tmp_path).format == "toy-original"


def test_known_names_are_still_claimed_as_before() -> None:
    assert {loraforge.inspect(DATA / name).format for name in ("peft_plain", "diffusers_save_lora_adapter")} <= {
        "peft",
        "diffusers",
    }
    layouts = {"cogvideox": "diffusers", "toy": "diffusers"}
    assert not outdone(["proj_out", "nonsense"], layouts)
    assert not outdone(["nonsense"], layouts)
    assert outdone(["proj_out", "double_blocks.0.qk", "img_in.proj"], layouts)
    # many blocks of one kind count once
    assert not outdone([*(f"double_blocks.{n}.qk" for n in range(9)), "proj_out", "x_embedder.proj"], layouts)


def test_messages_name_the_architecture_the_adapter_is_of(tmp_path: Path) -> None:
    source = adapter(tmp_path / "x.safetensors", "double_blocks.0.qk")
    assert "no released Toy has these shapes" in "\n".join(loraforge.inspect(source).lines())
    report = loraforge.convert(source, to="diffusers", trained_scale=1, out=tmp_path / "d.safetensors")
    assert report.to_dict()["architecture"] == "toy"
    assert "no released Toy has these shapes" in report.base()
    with pytest.raises(LoraforgeError, match="sat has no names for Toy"):
        loraforge.convert(source, to="sat", trained_scale=1, out=tmp_path / "sat")
    with pytest.raises(LoraforgeError, match="the data of Toy names no class"):
        loraforge.verify(tmp_path / "d.safetensors", in_="diffusers")
    strange = adapter(tmp_path / "y.safetensors", "nothing.of.the.kind")
    with pytest.raises(LoraforgeError, match="not named as those of any model that is known"):
        loraforge.convert(strange, to="diffusers", trained_scale=1, out=tmp_path / "y")


def test_a_base_is_of_the_architecture_that_knows_most_of_it(tmp_path: Path) -> None:
    base = {"double_blocks.0.qk": (16, 8), "final_layer": (8, 8), "img_in.proj": (8, 4, 1, 2, 2)}
    save_file(
        {f"{path}.weight": np.ones(shape, np.float32) for path, shape in base.items()}, tmp_path / "b.safetensors"
    )
    bases = {
        "Toy": tmp_path / "b.safetensors",
        "CogVideoX": DATA / "bases" / "2b" / "diffusion_pytorch_model.safetensors",
    }
    for title, base in bases.items():
        assert loraforge.inspect(base).architecture == title.lower()
        with pytest.raises(FormatError, match=f"is a full {title} transformer"):
            loraforge.convert(base, to="diffusers")


def test_a_convolution_over_frames_too_keeps_its_kernel(tmp_path: Path) -> None:
    source = adapter(tmp_path / "x.safetensors", "img_in.proj", rows=64, shape=(4, 1, 2, 2))
    assert loraforge.inspect(source).fits == ("Toy",)
    out = tmp_path / "d.safetensors"
    loraforge.convert(source, to="diffusers", trained_scale=1, out=out)
    assert loraforge.verify(source, out).same
    loraforge.convert(out, to="toy-original", out=tmp_path / "back.safetensors")
    assert loraforge.verify(source, tmp_path / "back.safetensors").same


def test_without_a_released_model_the_file_shows_which_modules_are_convolutions(tmp_path: Path) -> None:
    learned = TOY.replace("toy", "fresh").partition("[variants")[0].replace("double_blocks", "fresh_blocks")
    (tmp_path / "fresh.toml").write_text(learned.replace("img_in", "fresh_in"))
    loraforge.use_plugin(tmp_path / "fresh.toml")
    source = adapter(tmp_path / "x.safetensors", "fresh_in.proj", rows=64, shape=(4, 1, 1))
    out = tmp_path / "d.safetensors"
    loraforge.convert(source, to="diffusers", trained_scale=1, architecture="fresh", out=out)
    assert {len(tensor.shape) for tensor in load_file(out).values()} == {4}
