"""Block-diagonal pairs whose alpha did not grow with their rank: what says how it is meant, and what asks."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.errors import ReadingsError, ScaleError
from loraforge.scale.split_qkv import APART, WHOLE, Parts, Stacks, parts

R = 4
HEIGHTS = {"qkv": [6, 6, 6], "linear1": [6, 6, 6, 24], "proj": [6]}
SPLIT = {"ss_network_args": json.dumps({"split_qkv": "True"})}
"""As train_network.py of sd-scripts writes it: the values of --network_args are strings."""


def up(path: str, *, diagonal: bool = True) -> np.ndarray:
    random, heights = np.random.default_rng(0), HEIGHTS[path]
    B = random.standard_normal((sum(heights), R * len(heights)))
    if diagonal:
        of_row = np.repeat(np.arange(len(heights)), heights)
        B[of_row[:, None] != np.repeat(np.arange(len(heights)), R)[None]] = 0
    return B


def look(
    alphas: dict[str, float],
    metadata: dict[str, str] | None = None,
    by: str | None = None,
    **ups: np.ndarray,
) -> Parts:
    B = {path: ups.get(path, up(path)) for path in alphas}
    ranks = {path: B[path].shape[1] for path in alphas}
    return parts(alphas, ranks, Stacks(HEIGHTS, B.__getitem__), metadata or {}, by)


ALIKE = dict.fromkeys(HEIGHTS, 1.0)
BOTH = {"qkv": 3, "linear1": 4}


def test_the_header_and_the_tensors_together_say_it() -> None:
    split = look(ALIKE, SPLIT)
    assert split.counts == BOTH
    assert split.note == (
        "sd-scripts trained it with split_qkv (ss_network_args in its header says so): every other program applies it "
        "4x too weak in 1 modules (linear1), 3x too weak in 1 modules (qkv)"
    )


@pytest.mark.parametrize(
    "metadata",
    [{}, {"ss_network_args": '{"split_qkv": "False"}'}, {"ss_network_args": "{"}, {"ss_network_args": "[1]"}],
)
def test_the_tensors_alone_ask_with_both_readings(metadata: dict[str, str]) -> None:
    with pytest.raises(ReadingsError, match="2 modules is block-diagonal") as refusal:
        look(ALIKE, metadata)
    assert [(r.options, r.why) for r in refusal.value.remedies] == [
        (("--trained-by", APART), "with split_qkv: scale 0.25"),
        (("--trained-by", WHOLE), "without it, alpha over the stored rank: scales 0.0625 to 0.25"),
    ]
    assert look(ALIKE, metadata, APART).counts == BOTH
    assert look(ALIKE, metadata, WHOLE).counts == {}


def test_what_is_stated_holds_over_the_header() -> None:
    assert look(ALIKE, SPLIT, WHOLE).counts == {}


@pytest.mark.parametrize("metadata", [SPLIT, {}])
def test_full_pairs_have_one_reading(metadata: dict[str, str]) -> None:
    """Such as after a resize; a header that is older than the tensors does not count."""
    full = {path: up(path, diagonal=False) for path in HEIGHTS}
    assert look(ALIKE, metadata, **full).counts == {}
    with pytest.raises(ScaleError, match="no lora_up in it is block-diagonal"):
        look(ALIKE, metadata, APART, **full)


def test_one_number_outside_the_diagonal_makes_a_full_pair() -> None:
    for row, column in ((0, R), (3, 2 * R), (7, 0), (17, 2 * R - 1)):
        B = up("qkv")
        B[row, column] = 1e-30
        assert look({"qkv": 1.0, "proj": 1.0}, SPLIT, qkv=B).counts == {}
    assert look({"qkv": 1.0}, SPLIT, qkv=np.zeros((18, 3 * R))).counts == {}
    assert look({"qkv": 1.0}, SPLIT, qkv=np.eye(18, 3 * R + 1)).counts == {}  # no third of its rank


@pytest.mark.parametrize("metadata", [SPLIT, {}])
@pytest.mark.parametrize(
    "alphas",
    [
        {"qkv": 12.0, "linear1": 16.0, "proj": 4.0},  # convert_flux_lora.py: alpha is the stored rank
        {"qkv": 3.0, "linear1": 4.0, "proj": 1.0},  # one scale for all
        {"qkv": 12.0},
    ],
)
def test_alphas_that_grew_with_the_rank_have_one_reading(alphas: dict[str, float], metadata: dict[str, str]) -> None:
    assert look(alphas, metadata).counts == {}


@pytest.mark.parametrize("alphas", [{"qkv": 1.0}, {"qkv": 1.0, "linear1": 2.0, "proj": 3.0}])
def test_where_the_alphas_show_nothing_it_asks(alphas: dict[str, Any]) -> None:
    with pytest.raises(ReadingsError):
        look(alphas)
    assert look(alphas, SPLIT).counts == {path: n for path, n in BOTH.items() if path in alphas}


def test_modules_without_segments_are_never_read_apart() -> None:
    assert look({"proj": 1.0}, SPLIT).counts == {}


FLUX = {
    "double_blocks.0.img_attn.qkv": (8, 8, 8),
    "double_blocks.0.img_attn.proj": (8,),
    "single_blocks.0.linear1": (8, 8, 8, 32),
}
"""Module of Flux's own code -> the rows of what sd-scripts trains apart, at a width of 8."""
INTO = {
    "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.{name}" for name in ("to_q", "to_k", "to_v")],
    "double_blocks.0.img_attn.proj": ["transformer_blocks.0.attn.to_out.0"],
    "single_blocks.0.linear1": [
        f"single_transformer_blocks.0.{name}" for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    ],
}


def trained(path: Path, metadata: dict[str, str] | None = None) -> dict[str, np.ndarray]:
    """Save Flux layers of rank 2 and alpha 1 as LoRANetwork.state_dict does; gives the updates in Diffusers' names."""
    random, file, updates = np.random.default_rng(1), dict[str, np.ndarray](), dict[str, np.ndarray]()
    for module, heights in FLUX.items():
        ups = [random.standard_normal((height, 2)).astype(np.float32) for height in heights]
        downs = [random.standard_normal((2, 8)).astype(np.float32) for _ in heights]
        B, row = np.zeros((sum(heights), 2 * len(heights)), np.float32), 0
        for part, (up, target) in enumerate(zip(ups, INTO[module], strict=True)):
            B[row : row + len(up), 2 * part : 2 * part + 2] = up
            row += len(up)
            updates[target] = up.astype(np.float64) @ downs[part] / 2
        name = f"lora_unet_{module.replace('.', '_')}"
        file |= {
            f"{name}.lora_up.weight": B,
            f"{name}.lora_down.weight": np.concatenate(downs),
            f"{name}.alpha": np.float32(1),
        }
    save_file({key: np.asarray(value) for key, value in file.items()}, path, metadata)
    return updates


HEADER = {"ss_network_dim": "2", "ss_network_alpha": "1.0", "ss_network_module": "networks.lora_flux", **SPLIT}


def assert_same(path: Path, updates: dict[str, np.ndarray]) -> None:
    written = load_file(path)
    assert len(written) == 2 * len(updates)
    for name, update in updates.items():
        A, B = (written[f"transformer.{name}.lora_{factor}.weight"].astype(np.float64) for factor in "AB")
        np.testing.assert_allclose(B @ A, update, rtol=0, atol=1e-6 * np.abs(update).max())


def test_a_file_of_flux_acts_as_trained_in_every_format(tmp_path: Path) -> None:
    updates = trained(tmp_path / "split.safetensors", HEADER)
    report = loraforge.convert(
        tmp_path / "split.safetensors", to="diffusers", out=tmp_path / "a.safetensors", architecture="flux"
    )
    assert report.scale.provenance == "recorded" and report.scalings == (0.5,)
    assert_same(tmp_path / "a.safetensors", updates)
    loraforge.convert(tmp_path / "split.safetensors", to="kohya", out=tmp_path / "k.safetensors", architecture="flux")
    with safe_open(tmp_path / "k.safetensors", "np") as file:
        assert "ss_network_args" not in file.metadata()
    for entries in (None, HEADER):  # neither without our entry nor beside an older header is it read apart once more
        save_file(load_file(tmp_path / "k.safetensors"), tmp_path / "again.safetensors", entries)
        loraforge.convert(
            tmp_path / "again.safetensors",
            to="diffusers",
            out=tmp_path / "b.safetensors",
            architecture="flux",
            force=True,
        )
        assert_same(tmp_path / "b.safetensors", updates)


def test_without_a_header_convert_and_doctor_ask_with_lines_that_run(tmp_path: Path, cli: Any) -> None:
    updates = trained(tmp_path / "bare.safetensors")
    words = [tmp_path / "bare.safetensors", "--architecture", "flux"]
    done = cli("convert", *words, "--to", "diffusers", "-o", tmp_path / "out.safetensors")
    assert done.exit_code == 1 and not (tmp_path / "out.safetensors").exists()
    apart, whole = re.findall(r"try: loraforge (.*?)   # (.*)", done.stderr)
    assert (apart[1], whole[1]) == (
        "with split_qkv: scale 0.5",
        "without it, alpha over the stored rank: scales 0.125 to 0.5",
    )
    assert cli(*shlex.split(apart[0])).exit_code == 0
    assert_same(tmp_path / "out.safetensors", updates)
    assert cli(*shlex.split(whole[0]), "--force").exit_code == 0
    shares = {name: 4 if name.startswith("single") else 1 if "to_out" in name else 3 for name in updates}
    assert_same(tmp_path / "out.safetensors", {name: update / shares[name] for name, update in updates.items()})
    said = cli("doctor", *words)
    assert said.stdout.startswith("cannot tell (two scales): ") and said.exit_code == 1
    for line in re.findall(r"(?:fix  )? +loraforge (convert .*?)   #", said.stdout):
        assert cli(*shlex.split(line), "-o", tmp_path / "mended.safetensors", "--force").exit_code == 0, line


def test_doctor_says_by_how_much_other_programs_are_too_weak_and_mends_it(tmp_path: Path, cli: Any) -> None:
    trained(tmp_path / "split.safetensors", HEADER)
    said = cli("doctor", tmp_path / "split.safetensors", "--architecture", "flux", "--runtime", "comfyui")
    assert (
        "every other program applies it 3x too weak in 1 modules (double_blocks.0.img_attn.qkv), 4x too weak in 1"
        in said.output
    )
    assert said.stdout.startswith("1x to 4x too weak: ")
    (line,) = re.findall(r"fix +loraforge (convert .*)", said.stdout)
    assert "--to kohya" in line and "--architecture flux" in line
    assert cli(*shlex.split(line), "-o", tmp_path / "mended.safetensors").exit_code == 0
    mended = cli("doctor", tmp_path / "mended.safetensors", "--architecture", "flux", "--runtime", "comfyui")
    assert mended.stdout.startswith("acts as trained") and "split_qkv" not in mended.output


def test_what_loraforge_wrote_is_not_read_apart_once_more(tmp_path: Path) -> None:
    """Where all modules have three parts, their alphas alone could mean either."""
    updates = trained(tmp_path / "split.safetensors", HEADER)
    tensors = {key: t for key, t in load_file(tmp_path / "split.safetensors").items() if "img_attn_qkv" in key}
    save_file(tensors, tmp_path / "qkv.safetensors", HEADER)
    for source, to in (("qkv", "kohya"), ("kohya", "diffusers")):
        out = tmp_path / f"{to}.safetensors"
        loraforge.convert(tmp_path / f"{source}.safetensors", to=to, out=out, architecture="flux")
    assert_same(
        tmp_path / "diffusers.safetensors", {name: updates[name] for name in INTO["double_blocks.0.img_attn.qkv"]}
    )
