"""Files that trainers' own saving functions wrote (tests/data/trainers): right without a flag, or refused with a line.

Each folder has a manifest.json (trainer, commit, architecture, recorded, expected, and what a user then has to state)
and expected.safetensors: what the live network added to each weight, in float32, by its path in Diffusers' names.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.oracle import DATA, updates
from helpers.tolerance import UPDATE, share
from safetensors.numpy import load_file

import loraforge
from loraforge.errors import LoraforgeError

FOLDERS = sorted(path.parent for path in (DATA / "trainers").glob("*/manifest.json"))


def of(folder: Path) -> tuple[dict[str, Any], Path]:
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    every = [path for path in folder.glob("*.safetensors") if path.name != "expected.safetensors"]
    return manifest, folder / manifest["source"] if "source" in manifest else every[0]


def wrong(folder: Path, out: Path, source: Path, **stated: Any) -> dict[str, float]:
    """Module -> how far its update is off, of those that are wrong."""
    loraforge.convert(source, to="diffusers", out=out, dtype="fp32", **stated)
    got, want = updates(out), load_file(folder / "expected.safetensors")
    got = {path: update for path, update in got.items() if update.any()}  # of a module that others are stacked with
    assert got.keys() == want.keys()
    off = {path: share(got[path], np.float64(update).reshape(len(update), -1)) for path, update in want.items()}
    return {path: error for path, error in off.items() if error > UPDATE}


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def folder(request: pytest.FixtureRequest) -> Path:
    return request.param


def test_it_is_right_without_a_flag_or_refused(folder: Path, tmp_path: Path) -> None:
    manifest, source = of(folder)
    if manifest["expected"] == "right":
        assert not wrong(folder, tmp_path / "out.safetensors", source)
        return
    with pytest.raises(LoraforgeError) as refusal:
        loraforge.convert(source, to="diffusers", out=tmp_path / "out.safetensors")
    assert refusal.value.remedies and not (tmp_path / "out.safetensors").exists()
    if stated := manifest.get("stated"):
        assert not wrong(folder, tmp_path / "out.safetensors", source, **stated)


def test_what_is_written_for_comfyui_does_the_same(folder: Path, tmp_path: Path) -> None:
    manifest, source = of(folder)
    if manifest["expected"] != "right":
        pytest.skip("it is refused")
    options = {"architecture": manifest["architecture"]}  # tiny widths are those of no released model
    loraforge.convert(source, to="comfyui", out=tmp_path / "comfyui.safetensors", dtype="fp32", **options)
    assert not wrong(folder, tmp_path / "out.safetensors", tmp_path / "comfyui.safetensors", **options)
