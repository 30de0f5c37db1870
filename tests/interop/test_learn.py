"""HunyuanVideo is learned from a probe and Diffusers' own converter of base weights, as it was written by hand."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tomli
import torch
from diffusers.loaders.single_file_utils import convert_hunyuan_video_transformer_to_diffusers
from helpers.learning import learned, pairs, saved
from safetensors.torch import load_file, save_file

from loraforge.learning.check import check
from loraforge.learning.learn import learn
from loraforge.learning.probe import probe
from loraforge.names.catalog import architecture

WIDTH = 3072
"""Of the model: Diffusers' converter cuts linear1 there."""


def original(path: Path, blocks: int) -> Path:
    """A checkpoint in the original names, of full height and few inputs: as at the start of training, mostly equal."""
    arch = architecture("hunyuanvideo")
    state = {}
    for template, stack in arch.layouts["original"].modules.items():
        for i in range(blocks if template.holes else 1):
            fixed = stack[0] in arch.unadapted
            rows = 128 if fixed else WIDTH * sum((arch.dimensions[s][0][0] for s in stack), 0)
            stem = template.fill((("i", i),))
            state[f"{stem}.weight"] = np.ones((rows,) if fixed else (rows, 3), np.float32)
            if "bias" in arch.named(stack, "original"):
                state[f"{stem}.bias"] = np.zeros(rows, np.float32)
    return saved(path, state)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("hunyuanvideo")
    probe(original(folder / "a.safetensors", 2), folder / "probe.safetensors")
    return folder / "probe.safetensors", diffusers(folder / "probe.safetensors", folder / "b.safetensors")


def diffusers(source: Path, out: Path) -> Path:
    moved = convert_hunyuan_video_transformer_to_diffusers(load_file(source))
    save_file({key: tensor.contiguous() for key, tensor in moved.items()}, out)
    return out


def test_hunyuanvideo_is_found_again(converted: tuple[Path, Path], tmp_path: Path) -> None:
    done = learn(*converted, tmp_path / "x.toml")
    assert not done.left_out
    arch, want = learned(tmp_path / "x.toml"), architecture("hunyuanvideo")
    assert pairs(arch, "original", "diffusers") == pairs(want, "original", "diffusers")
    assert sorted(arch.segments.values()) == sorted(want.segments.values())  # proj_mlp is four times as high as q
    assert any(
        line.startswith("  swapped   final_layer.adaLN_modulation.1 = norm_out.linear [2/2]") for line in done.lines()
    )


def test_it_holds_for_another_number_of_blocks(converted: tuple[Path, Path], tmp_path: Path) -> None:
    learn(*converted, tmp_path / "x.toml")
    for blocks in (1, 3):
        probe(original(tmp_path / "a.safetensors", blocks), tmp_path / "p.safetensors", force=True)
        check(
            tmp_path / "x.toml",
            [(tmp_path / "p.safetensors", diffusers(tmp_path / "p.safetensors", tmp_path / "b.safetensors"))],
        )


def test_onto_it_the_segments_keep_their_names(converted: tuple[Path, Path], tmp_path: Path) -> None:
    state = {key.replace("double_blocks", "double"): t for key, t in load_file(converted[0]).items()}
    save_file(state, tmp_path / "a.safetensors")
    learn(tmp_path / "a.safetensors", converted[1], tmp_path / "x.toml", onto="hunyuanvideo", layouts=("mine", "x"))
    got = tomli.loads((tmp_path / "x.toml").read_text())["layouts"]["mine"]["modules"]
    want = architecture("hunyuanvideo").layouts["original"].modules
    assert got == {path.text.replace("double_blocks", "double"): [*stack] for path, stack in want.items()}


def test_the_converter_on_the_page_makes_what_lies_beside_it(tmp_path: Path, monkeypatch) -> None:
    """docs/auraflow is Diffusers' own AuraFlow, and a probe of it teaches the same layout."""
    page = Path(__file__).parents[2] / "docs" / "learn-a-layout.md"
    (code,) = re.findall(r"```python\n(from diffusers.*?)```", page.read_text("utf-8"), re.DOTALL)
    small = page.parent / "auraflow" / "small.safetensors"
    monkeypatch.chdir(tmp_path)
    shutil.copy(small, "probe.safetensors")
    exec(code)
    got, want = load_file("converted.safetensors"), load_file(small.parent / "small-diffusers.safetensors")
    assert got.keys() == want.keys()
    assert all(torch.equal(got[key], want[key]) for key in want)
    learn(small, small.parent / "small-diffusers.safetensors", Path("mine.toml"))
    plain = Path("mine.toml").read_text().partition("\n")[2]
    probe(small, Path("probe.safetensors"), force=True)
    exec(code)
    learn(Path("probe.safetensors"), Path("converted.safetensors"), Path("mine.toml"), force=True)
    assert Path("mine.toml").read_text().partition("\n")[2] == plain
