"""What versions of PEFT make of keys with an adapter's name inside, and of configurations that say too little."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from oracle import DATA
from safetensors.numpy import load_file, save_file

import loraforge

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
        found = loraforge.doctor(place, runtime_=row)
        assert found.healthy == (row in loads), (row, found.why)
        assert found.healthy or found.verdict == "does nothing"


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("targets", [None, "left out"])
def test_peft_must_be_told_the_modules(targets: object, row: str, tmp_path: Path) -> None:
    found = loraforge.doctor(folder(tmp_path / "a", target_modules=targets), runtime_=row)
    assert (found.verdict, found.outlooks[0].raises) == ("does nothing", "adapter_config.json without target_modules")


def test_what_is_written_says_them(tmp_path: Path) -> None:
    place = folder(tmp_path / "a", ".style", target_modules=None)
    loraforge.convert(place, to="peft", out=tmp_path / "b")
    assert all(loraforge.doctor(tmp_path / "b", runtime_=row).healthy for row in ROWS)
