"""What versions of PEFT and Diffusers make of keys with an adapter's name inside, and of too short configurations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers.oracle import DATA
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.programs.table import runtimes

ROWS = ("peft", "peft-0.20", "peft-0.13")


def folder(place: Path, name: str = "", **said: object) -> Path:
    """peft_plain with a name inside its keys, and other entries in the configuration's least."""
    shutil.copytree(DATA / "peft_plain", place)
    tensors = load_file(place / "adapter_model.safetensors")
    inside = {key.replace(".weight", f"{name}.weight"): tensor for key, tensor in tensors.items()}
    save_file(inside, place / "adapter_model.safetensors")
    config = json.loads((place / "adapter_config.json").read_text())
    least = {key: config[key] for key in ("peft_type", "r", "lora_alpha", "target_modules")} | said
    kept = {key: value for key, value in least.items() if value != "left out"}
    (place / "adapter_config.json").write_text(json.dumps(kept))
    return place


@pytest.mark.parametrize(("name", "loads"), [("", ROWS), (".default", ("peft",)), (".style", ()), (".default_0", ())])
def test_a_name_inside_the_keys(name: str, loads: tuple[str, ...], tmp_path: Path) -> None:
    place = folder(tmp_path / "a", name)
    for row in ROWS:
        found = loraforge.doctor(place, runtime_=row, architecture="cogvideox")
        assert found.healthy == (row in loads), (row, found.why)
        assert found.healthy or found.verdict == "does nothing"


@pytest.mark.parametrize("name", [".style", ".default_0", ".default", ".a.b"])
def test_a_name_inside_diffusers_keys(name: str, tmp_path: Path) -> None:
    """Each version that was run makes the layers and fills none of their memory."""
    loraforge.convert(DATA / "peft_plain", to="diffusers", out=tmp_path / "a")
    file = tmp_path / "a" / "pytorch_lora_weights.safetensors"
    with safe_open(file, "np") as opened:
        header = opened.metadata()
    tensors = {key.replace(".weight", f"{name}.weight"): tensor for key, tensor in load_file(file).items()}
    save_file(tensors, tmp_path / file.name, header)
    rows = [name for name, row in runtimes().items() if row.program == "Diffusers"]
    assert len(rows) >= 6
    for row in rows:
        assert loraforge.doctor(file, runtime_=row).healthy
        assert not loraforge.doctor(tmp_path / file.name, runtime_=row).healthy


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("targets", [None, "left out"])
def test_peft_must_be_told_the_modules(targets: object, row: str, tmp_path: Path) -> None:
    found = loraforge.doctor(folder(tmp_path / "a", target_modules=targets), runtime_=row)
    assert (found.verdict, found.outlooks[0].raises) == ("does nothing", "adapter_config.json without target_modules")


def test_what_is_written_says_them(tmp_path: Path) -> None:
    place = folder(tmp_path / "a", ".style", target_modules=None)
    loraforge.convert(place, to="peft", out=tmp_path / "b")
    rows = [loraforge.doctor(tmp_path / "b", runtime_=row, architecture="cogvideox") for row in ROWS]
    assert all(found.healthy for found in rows)
