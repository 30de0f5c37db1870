"""A run that is repeated: what is stated now counts, and the manifest for the rest."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from loraforge.errors import FileError, LoraforgeError
from loraforge.live.manifest import read_manifest
from loraforge.live.plan import RunRequest

EARLIER: dict[str, Any] = {
    "schema": "loraforge.manifest.v1", "tool": "loraforge 0", "base": "their-base", "variant": "CogVideoX-5B",
    "pipeline": "CogVideoXPipeline", "stated": {"alpha": 64.0}, "prompt": "a panda", "negative_prompt": "rain",
    "adapters": [
        {"path": "a.safetensors", "digest": "", "strength": 0.5, "scalings": [1.0], "scale": "recorded: alpha"}
    ],
    "image": "first.png", "video": "start.mp4", "inputs": {}, "settings": {"seed": 7}, "anyway": True,
    "device": "cuda:1", "offload": "model", "tiling": False, "slicing": False, "versions": {},
    "latents": f"sha256:{'0' * 64}",
}  # fmt: skip
OPEN = RunRequest(
    adapters=(), strength=(), stated={"alpha": None, "as_loaded": False}, base=None, prompt="", negative_prompt="",
    image=None, video=None, given={}, like=None, anyway=False, device="auto", offload=None, tiling=None, slicing=None,
    compare=(), out=None, force=False, files=("m.json", "seed=3", "more.json"),
)  # fmt: skip
NOW: dict[str, Any] = {
    "strength": (2.0,), "stated": {"alpha": 1.0}, "base": "mine", "prompt": "a fox", "negative_prompt": "snow",
    "image": "mine.png", "video": "mine.mp4", "device": "cpu", "offload": "group", "tiling": True, "slicing": True,
}  # fmt: skip


def test_what_is_left_open_is_the_manifest_s() -> None:
    whole = OPEN.over(EARLIER)
    assert (whole.adapters, whole.strength, whole.given) == (("a.safetensors",), (0.5,), {"seed": 7})
    assert {name: getattr(whole, name) for name in NOW if name != "strength"} == {
        name: EARLIER[name] for name in NOW if name != "strength"
    }
    assert whole.anyway
    assert whole.again is EARLIER
    untouched = {field.name for field in fields(RunRequest)} - {*NOW, "adapters", "given", "anyway", "again"}
    assert all(getattr(whole, name) == getattr(OPEN, name) for name in untouched)


@pytest.mark.parametrize("name", NOW)
def test_what_is_stated_now_counts(name: str) -> None:
    assert getattr(replace(OPEN, **{name: NOW[name]}).over(EARLIER), name) == NOW[name]


def test_settings_are_laid_over_one_by_one() -> None:
    assert replace(OPEN, given={"num_frames": 9}).over(EARLIER).given == {"seed": 7, "num_frames": 9}
    assert replace(OPEN, given={"seed": 1}).over(EARLIER).given == {"seed": 1}


def test_false_is_stated_and_none_is_not() -> None:
    assert replace(OPEN, tiling=False).over({**EARLIER, "tiling": True}).tiling is False
    assert OPEN.how == {"offload": "none", "tiling": True, "slicing": True}


def test_adapters_and_a_manifest_exclude_each_other() -> None:
    with pytest.raises(LoraforgeError, match="the manifest names its adapters"):
        replace(OPEN, adapters=("b.safetensors",)).over(EARLIER)


def test_a_setting_is_no_file_that_is_read() -> None:
    assert replace(OPEN, image="first.png").inputs == ["first.png", "m.json", "more.json"]


@pytest.mark.parametrize("stated", [{"alhpa": 1}, {"alpha": "1"}, {"override_scale": 1}])
def test_a_manifest_that_states_what_is_no_option_is_refused(stated: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "m.json"
    file.write_text(json.dumps(EARLIER), "utf-8")
    assert read_manifest(file)["stated"] == {"alpha": 64.0}
    file.write_text(json.dumps({**EARLIER, "stated": stated}), "utf-8")
    with pytest.raises(FileError, match=r"as a manifest of `loraforge run`: stated"):
        read_manifest(file)
