"""Which file of a run is taken, and what is said about it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import yaml
from helpers.oracle import DATA, Case
from helpers.sat import PREFIX, lora_tensors, write_run

import loraforge
from loraforge.files.opening import open_tensors


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    return lora_tensors([0], hidden=16, rank=2)


def taken(run: Path, **choice) -> tuple[str, str]:
    report = loraforge.convert(run, to="diffusers", out=run.parent / "out", dry_run=True, **choice)
    return Path(report.source["path"]).parent.name, " ".join(report.notes)


def test_latest_decides(tensors, tmp_path: Path) -> None:
    run = write_run(tmp_path, tensors, iterations=("500", "1000", "1500"), latest="1000\n")
    name, said = taken(run)
    assert name == "1000"
    assert "`latest` names" in said
    assert "500, 1000, 1500" in said


def test_iteration_and_ema(tensors, tmp_path: Path) -> None:
    run = write_run(tmp_path, tensors, iterations=("500", "500-ema", "1000", "1000-ema"))
    assert taken(run)[0] == "1000"
    assert taken(run, ema=True)[0] == "1000-ema"
    assert taken(run, iteration=500)[0] == "500"
    assert taken(run, iteration=500, ema=True)[0] == "500-ema"


def test_latest_that_names_the_averaged_weights(tensors, tmp_path: Path) -> None:
    run = write_run(tmp_path, tensors, iterations=("1000", "1000-ema"), latest="1000-ema")
    assert taken(run)[0] == "1000-ema"


def test_without_latest_the_newest(tensors, tmp_path: Path) -> None:
    run = write_run(tmp_path, tensors, iterations=("900", "1000", "1000-ema"), latest=None)
    name, said = taken(run)
    assert name == "1000"
    assert "newest; there is no `latest`" in said


def test_a_file_an_iteration_folder_and_a_run_are_the_same(case: Case, tmp_path: Path) -> None:
    run = case.run(tmp_path)
    file = next(run.glob("*/*.pt"))
    results = []
    for n, source in enumerate((run, file.parent, file)):
        report = loraforge.convert(source, to="diffusers", out=tmp_path / str(n))
        assert report.scale.provenance == "recorded"  # the YAML was found in the parents
        results.append(Path(report.output["path"]).read_bytes())
    assert results[0] == results[1] == results[2]


def test_the_default_name_is_the_runs(case: Case, tmp_path: Path, monkeypatch) -> None:
    run = case.run(tmp_path)
    monkeypatch.chdir(tmp_path)
    report = loraforge.convert(run, to="diffusers")
    iteration = case.manifest["iteration"]
    assert report.output["path"] == os.path.join(
        f"lora-disney-11-20-10-00-{iteration}-diffusers", "pytorch_lora_weights.safetensors"
    )
    assert Path(report.output["path"]).is_file()


@pytest.mark.parametrize("wrapper", ["module", "model", "state_dict", None])
@pytest.mark.parametrize("prefix", [PREFIX, ""])
def test_nesting_and_prefix(tensors, wrapper: str | None, prefix: str, tmp_path: Path) -> None:
    renamed = {key.replace(PREFIX, prefix): tensor for key, tensor in tensors.items()}
    torch.save({wrapper: renamed} if wrapper else renamed, tmp_path / "some.pt")
    report = loraforge.convert(tmp_path / "some.pt", to="diffusers", out=tmp_path / "out")
    assert len(report.steps) == 4
    assert report.source["format"] == "sat"


def test_t5_and_vae_around_it_are_counted_and_left_alone(tmp_path: Path) -> None:
    report = loraforge.convert(Case("sat_2b_full_r4").run(tmp_path), to="diffusers", out=tmp_path / "out")
    assert report.others == {"VAE": 104, "text encoder (T5)": 13, "transformer (base)": 53}
    assert "13 tensors of text encoder (T5)" in "\n".join(report.lines())


def test_tensors_that_are_views_of_one_storage(tensors, tmp_path: Path) -> None:
    """Strided and shared storages, as a trainer that slices or transposes its parameters saves them."""
    shared = {
        key: torch.cat([t, t])[: len(t)] if "matrix_A" in key else t.T.contiguous().T for key, t in tensors.items()
    }
    torch.save({"module": shared}, tmp_path / "views.pt")
    torch.save({"module": tensors}, tmp_path / "plain.pt")
    files = []
    for name in ("views", "plain"):
        loraforge.convert(tmp_path / f"{name}.pt", to="diffusers", out=tmp_path / f"{name}.safetensors")
        data = (tmp_path / f"{name}.safetensors").read_bytes()
        files.append(data[8 + int.from_bytes(data[:8], "little") :])
    assert files[0] == files[1]


def test_same_input_same_bytes(case: Case, tmp_path: Path) -> None:
    files = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        report = loraforge.convert(case.run(tmp_path / name), to="diffusers", out=tmp_path / name / "out")
        files.append(Path(report.output["path"]).read_bytes())
    assert files[0] == files[1]
    assert str(tmp_path).encode() not in files[0]


@pytest.mark.parametrize(
    ("case", "family"),
    [("sat_2b_r4", "CogVideoX-2B"), ("sat_5b_r8", "CogVideoX-5B"), ("sat_5b_i2v_r8", "CogVideoX-5B-I2V")],
)
def test_base_weights_in_the_checkpoint_tell_what_lora_shapes_cannot(case: str, family: str, tmp_path: Path) -> None:
    """At the real widths: what the patch embedding of the base weights adds to attention shapes."""
    real = {"CogVideoX-2B": (1920, 16), "CogVideoX-5B": (3072, 16), "CogVideoX-5B-I2V": (3072, 32)}[family]
    tensors = lora_tensors([0], hidden=real[0], rank=1)
    tensors[f"{PREFIX}mixins.patch_embed.proj.weight"] = torch.zeros(real[0], real[1], 2, 2)
    run = write_run(tmp_path, tensors, lora={"r": 1})
    assert loraforge.inspect(run).fits == (family,)
    del tensors[f"{PREFIX}mixins.patch_embed.proj.weight"]
    alone = loraforge.inspect(write_run(tmp_path / "alone", tensors))
    assert family in alone.fits
    assert (len(alone.fits) == 1) == (family == "CogVideoX-2B")


def test_training_config_without_lora_alpha_records_sats_default(tensors, tmp_path: Path) -> None:
    report = loraforge.convert(write_run(tmp_path, tensors, lora={"r": 2}), to="diffusers", out=tmp_path / "out")
    assert report.scale.provenance == "recorded"
    assert report.scalings == (0.5,)


def test_a_config_of_a_base_run_records_nothing(tensors, tmp_path: Path) -> None:
    run = write_run(tmp_path, tensors)
    (run / "training_config.yaml").write_text(yaml.safe_dump({"model": {"scale_factor": 1}}))
    assert "records no scale" in taken(run)[1]


def test_real_run_folders_have_the_names_this_file_builds(tmp_path: Path) -> None:
    """The builder in tests/helpers/sat.py spells keys as the real trainer does."""
    file, _ = open_tensors(DATA / "sat_2b_r4" / "sat_ckpt" / "1000" / "mp_rank_00_model_states.pt")
    assert set(lora_tensors(range(2), 64, 4)) == {key for key in file.tensors if "matrix_" in key}
