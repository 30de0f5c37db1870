"""Every file a person or program exchanges with us follows its schema, and the schemas refuse what they should."""

from __future__ import annotations

import dataclasses
import json
from importlib.resources import files
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import tomli
from helpers.oracle import DATA, Case
from safetensors import safe_open
from safetensors.numpy import save_file

import loraforge
from loraforge.tables import package_tables

SCHEMAS = Path(__file__).parents[2] / "schemas"
ARCHITECTURES = Path(loraforge.__file__).parent / "names" / "architectures"


def check(document: object, name: str) -> None:
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(document, schema, jsonschema.Draft202012Validator)


def test_convert_inspect_and_provenance(case: Case, tmp_path: Path, cli) -> None:
    run, out = case.run(tmp_path), tmp_path / "out"
    result = cli("convert", run, "--to", "diffusers", "-o", out, "--json")
    check(json.loads(result.stdout), "convert")
    check(
        json.loads(cli("convert", run, "--to", "diffusers", "-o", out, "--json", "--dry-run", "--force").stdout),
        "convert",
    )
    for source in (run, out):
        check(json.loads(cli("inspect", source, "--json").stdout), "inspect")
        check(json.loads(cli("inspect", source, "--skeleton").stdout), "skeleton")
    with safe_open(out / "pytorch_lora_weights.safetensors", framework="numpy") as file:
        check(json.loads(file.metadata()["loraforge"]), "provenance")


def test_fuse_and_convert_base(case: Case, tmp_path: Path, cli) -> None:
    run, base, out = case.run(tmp_path), DATA / "bases" / "2b", tmp_path / "out"
    if case.base == base:
        check(json.loads(cli("fuse", base, run, "-o", out, "--json", "--dry-run").stdout), "fuse")
        check(json.loads(cli("fuse", base, run, "-o", out, "--json").stdout), "fuse")
        with safe_open(out / "diffusion_pytorch_model.safetensors", framework="numpy") as file:
            check(json.loads(file.metadata()["loraforge"]), "fused")
    check(
        json.loads(cli("convert-base", run, "--to", "diffusers", "-o", tmp_path / "base", "--json").stdout),
        "convert-base",
    )
    with safe_open(tmp_path / "base" / "diffusion_pytorch_model.safetensors", framework="numpy") as file:
        check(json.loads(file.metadata()["loraforge"]), "fused")


@pytest.mark.parametrize("name", ["sat_2b_r4/sat_ckpt", "peft_plain", "cogvideo_trainer_plain", "bases/2b/sat_base"])
def test_doctor(name: str, cli) -> None:
    check(json.loads(cli("doctor", DATA / name, "--json").stdout), "doctor")


def test_inspect_of_something_else(tmp_path: Path, cli) -> None:
    document = json.loads(cli("inspect", DATA / "bases" / "2b" / "sat_base", "--json").stdout)
    check(document, "inspect")
    assert document["base"]["kind"] == "sat" and document["problem"] is None
    save_file({"decoder.conv_in.weight": np.ones((2, 2), np.float32)}, tmp_path / "x.safetensors")
    result = cli("inspect", tmp_path / "x.safetensors", "--json")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    check(document, "inspect")
    assert "is a VAE" in document["problem"] and document["base"] is None


def test_tables() -> None:
    tables = {
        "facts/trainers": "trainers", "scale/places": "places",
        "programs/programs": "runtimes", "facts/variants": "settings",
        **{f"facts/symptoms/{name}": "symptoms" for name in package_tables("facts/symptoms")},
    }  # fmt: skip
    for name, kind in tables.items():
        check(tomli.loads((files("loraforge") / f"{name}.toml").read_text("utf-8")), kind)


@pytest.mark.parametrize("path", [p.stem for p in ARCHITECTURES.glob("*.toml")])
def test_a_key_that_an_architecture_has_not_is_refused(path: str) -> None:
    """Of a plugin's file when it is loaded; of ours here."""
    data = tomli.loads((ARCHITECTURES / f"{path}.toml").read_text("utf-8"))
    check(data, "architecture")
    variant, layout = next(iter(data["variants"].items())), {"modules": {}, "prefix": "a"}
    for change in (
        {"extra": 1},
        {"layouts": {**data["layouts"], "x": layout}},
        {"variants": {variant[0]: {key: value for key, value in variant[1].items() if key != "repo"}}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            check({**data, **change}, "architecture")
    with pytest.raises(jsonschema.ValidationError):
        check({key: value for key, value in data.items() if key != "segments"}, "architecture")


@pytest.mark.parametrize(("kind", "name"), [(loraforge.Report, "convert"), (loraforge.Inspection, "inspect")])
def test_fields_and_properties_agree(kind: type, name: str) -> None:
    schema = json.loads((SCHEMAS / f"{name}.schema.json").read_text())
    assert {field.name for field in dataclasses.fields(kind)} | {"schema"} == schema["properties"].keys()
