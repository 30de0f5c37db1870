"""A configuration counts where it lies in the run's own folder; from anywhere else it is offered, with its path."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers.sat import lora_tensors, write_run
from helpers.scalefiles import adapter

import loraforge
from loraforge.errors import ScaleError
from loraforge.scale.run_folders import places

ARGS = "rank: 4\nlora_alpha: 64\n"
NAME = "pytorch_lora_weights.safetensors"


def config(place: Path, text: str = ARGS) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    return place


OWN = {
    "its own folder": ("run/style.safetensors", "run/args.yaml"),
    "checkpoint-N": (f"run/checkpoint-500/{NAME}", "run/args.yaml"),
    "accelerate's": ("run/checkpoint-500/pytorch_model/x.safetensors", "run/config.yaml"),
    "finetrainers": (f"run/lora_weights/000010/{NAME}", "run/args.json"),
    "diffusion-pipe": ("run/epoch12/adapter_model.safetensors", "run/args.yaml"),
    "Lightning": ("run/checkpoints/last.safetensors", "run/hparams.yaml"),
    "Hub-like, one file": (f"me/style/{NAME}", "me/style/args.yaml"),
    "VideoX-Fun": ("run/checkpoint-100.safetensors", "run/args.yaml"),
}


@pytest.mark.parametrize(("file", "where"), OWN.values(), ids=OWN)
def test_the_run_s_own_folder_records_it(file: str, where: str, tmp_path: Path, cli: Any) -> None:
    source, said = adapter(tmp_path / file), config(tmp_path / where, json.dumps({"rank": 4, "lora_alpha": 64}))
    if file.endswith("-100.safetensors"):
        adapter(source.with_name("checkpoint-200.safetensors"), seed=1)
        adapter(source.with_name("checkpoint-200-compatible_with_comfyui.safetensors"), seed=1)
    report = loraforge.convert(source, to="diffusers", out=tmp_path / "out")
    assert (report.scalings, report.scale.provenance) == ((16.0,), "recorded")
    assert f"in {said}" in report.scale.source and str(said) in "\n".join(report.lines())
    assert str(tmp_path) not in (tmp_path / "out" / NAME).read_bytes().decode("latin-1")
    assert str(said) in cli("verify", source, tmp_path / "out").stdout


def test_every_row_of_the_table_is_one_run(tmp_path: Path) -> None:
    for row in places()["results"]:
        folder = tmp_path / row["folder"].replace("/", "_").replace("{n}", "n") / row["folder"].replace("{n}", "7")
        depth = row["folder"].count("/") + 1
        source = adapter(folder / "x.safetensors")
        config(folder.parents[depth - 1] / "args.yaml")
        if "file" in row:
            with pytest.raises(ScaleError, match="does not record"):
                loraforge.convert(source, to="diffusers", out=tmp_path / "o")
        else:
            assert loraforge.convert(source, to="diffusers", out=tmp_path / "o", force=True).scalings == (16.0,)


ANOTHERS: dict[str, tuple[str, str, str, tuple[str, ...]]] = {
    "two folders up": ("Down/other/x/a.safetensors", "Down/args.yaml", ARGS, ()),
    "one folder up": ("Down/x/a.safetensors", "Down/args.yaml", ARGS, ()),
    "a folder that is only called like a checkpoint": ("Down/checkpoint-x/a.safetensors", "Down/args.yaml", ARGS, ()),
    "beside its run": ("runs/a/a.safetensors", "runs/b/args.yaml", ARGS, ()),
    "among several adapters": ("Down/a.safetensors", "Down/args.yaml", ARGS, ("Down/b.safetensors",)),
    "of a run that is there": (
        "runs/a/a.safetensors", "runs/a/args.yaml", f"{ARGS}output_dir: /data/runs/b\n", ("runs/b/b.safetensors",),
    ),
    "of a run that lies below it": (
        "Down/a.safetensors", "Down/args.yaml", f"{ARGS}output_dir: out/b\n", ("Down/b/b.safetensors",),
    ),
    "without a rank": ("run/a.safetensors", "run/args.yaml", "lora_alpha: 64\n", ()),
}  # fmt: skip


@pytest.mark.parametrize(("file", "where", "text", "others"), ANOTHERS.values(), ids=ANOTHERS)
def test_everything_else_is_offered_with_its_path(
    file: str, where: str, text: str, others: tuple[str, ...], tmp_path: Path, cli: Any
) -> None:
    source, near = adapter(tmp_path / file), config(tmp_path / where, text)
    for number, other in enumerate(others):
        adapter(tmp_path / other, seed=number)
    done = cli("convert", source, "--to", "diffusers", "-o", tmp_path / "out")
    assert done.exit_code == 1 and "as trained" not in done.output
    line = next(line for line in done.stderr.splitlines() if str(near) in line and "try:" in line)
    assert line.endswith("scale 16")
    typed = shlex.split(line.partition("try: loraforge ")[2], comments=True)
    assert cli(*typed).exit_code == 0
    assert str(near) in cli("inspect", source).stdout and str(near) in cli("doctor", source).stdout


@pytest.mark.parametrize("output", ["out/run", "/elsewhere/renamed", "C:\\out\\renamed", "."])
def test_an_output_folder_that_is_not_there_contradicts_nothing(output: str, tmp_path: Path) -> None:
    source = adapter(tmp_path / "run/a.safetensors")
    config(tmp_path / "run/args.json", json.dumps({"rank": 4, "lora_alpha": 64, "output_dir": output}))
    assert loraforge.convert(source, to="diffusers", out=tmp_path / "o").scalings == (16.0,)


@pytest.mark.parametrize("other", ["lora_alpha: 32\nrank: 4\n", f"{ARGS}use_rslora: true\n", "lora_alpha: many\n"])
def test_two_in_one_folder_that_disagree_are_both_offered(other: str, tmp_path: Path, cli: Any) -> None:
    source = adapter(tmp_path / "run/a.safetensors")
    config(tmp_path / "run/args.yaml")
    config(tmp_path / "run/hparams.yml", other)
    said = cli("convert", source, "--to", "diffusers", "-o", tmp_path / "o").stderr
    assert f"{tmp_path}/run/args.yaml" in said
    assert ("many" in other) or f"{tmp_path}/run/hparams.yml" in said


def test_another_rank_is_not_offered(tmp_path: Path, cli: Any) -> None:
    source = adapter(tmp_path / "run/a.safetensors")
    config(tmp_path / "run/args.yaml", "rank: 8\nlora_alpha: 64\n")
    done = cli("convert", source, "--to", "diffusers", "-o", tmp_path / "o")
    assert done.exit_code == 1 and "--training-config" not in done.stderr
    assert "not used" in " ".join(loraforge.inspect(source).notes)


def test_what_loraforge_made_of_a_file_is_no_other_run(tmp_path: Path) -> None:
    source = adapter(tmp_path / "run/a.safetensors")
    config(tmp_path / "run/args.yaml")
    loraforge.convert(source, to="diffusers", out=tmp_path / "run/shared.safetensors")
    assert loraforge.convert(source, to="diffusers", out=tmp_path / "o").scalings == (16.0,)


LORA = {"lora_config": {"target": "x", "params": {"r": 4, "lora_alpha": 4}}}
NEAR = {
    "SAT's": ("training_config.yaml", {"model": {"network_config": {"params": {"modules": LORA}}}}),
    "another trainer's": ("args.yaml", {"rank": 4, "lora_alpha": 4}),
    "a JSON": ("args.json", {"rank": 4, "lora_alpha": 4}),
}


@pytest.mark.parametrize(("name", "said"), NEAR.values(), ids=NEAR)
def test_sat_s_default_is_not_assumed_beside_another_statement(
    name: str, said: dict[str, Any], tmp_path: Path, cli: Any
) -> None:
    run = write_run(tmp_path / "Down" / "ckpts", lora_tensors([0], hidden=16, rank=4))
    assert loraforge.convert(run, to="diffusers", out=tmp_path / "a").scale.provenance == "assumed"
    near = config(run.parent / name, json.dumps(said))
    done = cli("convert", run, "--to", "diffusers", "-o", tmp_path / "b")
    assert done.exit_code == 1 and str(near) in done.stderr
    lines = [line for line in done.stderr.splitlines() if "try:" in line and "--as-in" not in line]
    for line, scale in zip(lines, ("1", "0.25"), strict=True):
        assert line.endswith(f"scale {scale}")
        assert cli(*shlex.split(line.partition("try: loraforge ")[2], comments=True), "--force").exit_code == 0


def test_sat_s_run_folder_is_its_own(tmp_path: Path) -> None:
    run = write_run(tmp_path, lora_tensors([0], hidden=16, rank=4), lora={"r": 4, "lora_alpha": 2})
    for source in (run, next(run.glob("*/*.pt"))):
        report = loraforge.convert(source, to="diffusers", out=tmp_path / "a", force=True)
        assert (report.scalings, report.scale.provenance) == ((0.5,), "recorded")
        assert str(run / "training_config.yaml") in report.scale.source
