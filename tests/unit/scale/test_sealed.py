"""Our entry counts for the tensors that it was written beside, and for no others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.oracle import Case
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.errors import HubError, ScaleError
from loraforge.files.digest import seal_of
from loraforge.files.opening import open_tensors
from loraforge.files.torch_write import write_torch

WAYS = {
    "diffusers": {"to": "diffusers"},
    "in the header": {"to": "diffusers", "scale_in": "metadata"},
    "peft": {"to": "peft"},
    "kohya": {"to": "kohya"},
    "sat": {"to": "sat", "lora_only": True, "target_alpha": 2},
}


def made(way: str, tmp_path: Path, case: str = "peft_plain") -> Path:
    """The tensor file of a result."""
    out = tmp_path / way.replace(" ", "-")
    loraforge.convert(Case(case).folder, out=out, **WAYS[way])
    (file,) = (path for path in out.rglob("*") if path.suffix in (".safetensors", ".pt"))
    return file


def rewrite(file: Path, change: Callable[[str, np.ndarray], tuple[str, np.ndarray]]) -> None:
    """Load the tensors, change them, and save them with the same metadata, as merge and resize scripts do."""
    if file.suffix == ".pt":
        old, _ = open_tensors(file)
        tensors = dict(change(key, np.array(old[key])) for key in old.tensors)
        infos = {info.shape: info.dtype for info in old.tensors.values()}
        write_torch(file, {key: (infos[value.shape], value.shape) for key, value in tensors.items()}, tensors.items())
        return
    with safe_open(file, "numpy") as opened:
        metadata = opened.metadata()
    save_file(dict(change(key, value) for key, value in load_file(file).items()), file, metadata)


def larger(key: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    up = any(word in key for word in ("lora_B", "lora_up", "matrix_B"))
    return key, np.asarray(value * np.asarray(128 if up else 1, value.dtype))


def renamed(key: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    return key.replace("blocks.0.", "blocks.7.").replace("blocks_0_", "blocks_7_").replace(
        "layers.0.", "layers.7."
    ), value


def unchanged(key: str, value: np.ndarray) -> tuple[str, np.ndarray]:
    return key, value


def entry(file: Path) -> dict:
    if file.suffix == ".pt":
        return json.loads(
            yaml.safe_load((file.parent.parent / "training_config.yaml").read_text())["loraforge"]["loraforge"]
        )
    with safe_open(file, "numpy") as opened:
        return json.loads(opened.metadata()["loraforge"])


@pytest.mark.parametrize("way", WAYS)
def test_the_entry_is_sealed_and_an_identical_save_keeps_it(way: str, tmp_path: Path) -> None:
    file = made(way, tmp_path)
    opened, _ = open_tensors(file)
    assert entry(file)["tensors"] == seal_of(opened, sorted(opened.tensors))
    rewrite(file, unchanged)
    adapter = loraforge.read(file)
    assert adapter.scale.provenance == "recorded"
    assert not [note for note in adapter.notes if "compared" in note]


@pytest.mark.parametrize("change", [larger, renamed], ids=lambda change: change.__name__)
@pytest.mark.parametrize("way", WAYS)
def test_changed_tensors_have_no_known_scale(way: str, change, tmp_path: Path) -> None:
    file = made(way, tmp_path)
    applied = entry(file)["applied"]
    rewrite(file, change)
    with pytest.raises(ScaleError, match="for other tensors, which were changed since") as refused:
        loraforge.read(file)
    assert refused.value.remedies[0].options[:1] == ("--trained-scale",)
    assert refused.value.remedies[0].scale == applied[0]
    stated = loraforge.read(file, trained_scale=0.5)
    assert stated.scale.provenance == "given"
    assert stated.scalings == (0.5,)
    assert not stated.metadata.get("loraforge")
    diagnosis = loraforge.doctor(file)
    assert "for other tensors" in dict(diagnosis.facts)["scale"]
    if change is larger:  # after a rename, more is wrong with some of them
        assert "cannot tell" in diagnosis.verdict
        assert "for other tensors" in diagnosis.why
        line = next(line for line in loraforge.inspect(file).lines() if line.startswith("scale"))
        assert "not compared with the tensors" in line


@pytest.mark.parametrize("way", ["diffusers", "in the header", "kohya"])
def test_push_refuses_changed_tensors(way: str, tmp_path: Path) -> None:
    from loraforge.publishing.contents import published

    file = made(way, tmp_path)
    rewrite(file, larger)
    none = {"as_loaded": False, "as_in": None, "architecture": "cogvideox"}
    for stated in ({}, {"trained_scale": 1.0}, *([{"as_loaded": True}] if way == "diffusers" else [])):
        with pytest.raises(HubError, match=r"for other tensors|by itself, is not what was trained"):
            published(file, "user/repo", "zai-org/CogVideoX-2b", none | stated, (), tmp_path)


def test_what_a_program_does_with_changed_tensors_can_be_kept(tmp_path: Path) -> None:
    file = made("diffusers", tmp_path)
    rewrite(file, larger)
    assert loraforge.read(file, as_in="diffusers").scalings == (1.0,)


def test_an_entry_of_an_older_version_is_believed_and_named(tmp_path: Path) -> None:
    file = made("diffusers", tmp_path)
    with safe_open(file, "numpy") as opened:
        metadata = opened.metadata()
    said = json.loads(metadata["loraforge"])
    del said["tensors"]
    save_file(load_file(file), file, metadata | {"loraforge": json.dumps(said)})
    adapter = loraforge.read(file)
    assert adapter.scale.provenance == "recorded"
    assert any("older version: it was not compared" in note for note in adapter.notes)


def test_a_configuration_of_another_conversion_is_refused(tmp_path: Path) -> None:
    file = made("peft", tmp_path, "peft_patterns")
    config = file.with_name("adapter_config.json")
    said = json.loads(config.read_text())
    config.write_text(json.dumps(said | {"base_model_name_or_path": "user/base", "inference_mode": False, "new": 1}))
    assert loraforge.read(file).scale.provenance == "recorded"  # it says nothing of the scale
    swapped = {key.replace("1", "0", 1): alpha for key, alpha in said["alpha_pattern"].items()}  # of the other block
    for other in ({"lora_alpha": said["lora_alpha"] * 2}, {"alpha_pattern": swapped}):  # the second: the same scales
        config.write_text(json.dumps(said | other))
        with pytest.raises(ScaleError, match="of different conversions"):
            loraforge.read(file)


def test_tensors_of_another_conversion_beside_a_yaml_are_refused(tmp_path: Path) -> None:
    one = made("sat", tmp_path)
    loraforge.convert(Case("peft_rslora").folder, to="sat", out=tmp_path / "b", lora_only=True, target_alpha=2)
    shutil.copy(tmp_path / "b" / "1" / one.name, one)
    with pytest.raises(ScaleError, match=r"for other tensors|belongs to another run"):
        loraforge.read(one.parent.parent)


def test_stamp_seals_what_it_writes_and_keeps_a_seal(tmp_path: Path) -> None:
    file = made("diffusers", tmp_path)
    before = entry(file)
    loraforge.stamp(file, out=tmp_path / "again.safetensors")
    assert entry(tmp_path / "again.safetensors") == before
    rewrite(file, larger)
    with pytest.raises(ScaleError):
        loraforge.stamp(file, out=tmp_path / "no.safetensors")
    loraforge.stamp(file, trained_scale=1.0, out=tmp_path / "new.safetensors")
    new = entry(tmp_path / "new.safetensors")
    assert new["tensors"] not in (before["tensors"], f"sha256:{'0' * 64}")
    assert "earlier" not in new
    assert loraforge.read(tmp_path / "new.safetensors").scale.provenance == "given"
