"""What older versions of Diffusers stop at or apply otherwise, and what mends it."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers.made import ATTENTION, peft, rows
from helpers.oracle import DATA, Case
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.programs import table

WEIGHTS = "pytorch_lora_weights.safetensors"


def entry(file: Path) -> dict:
    with safe_open(file, "np") as opened:
        return json.loads(opened.metadata()["lora_adapter_metadata"])


# --- the header entry, and files that were written without it


@pytest.mark.parametrize("options", [{}, {"scale_in": "metadata"}, {"pad_ranks": True}, {"dtype": "bf16"}])
@pytest.mark.parametrize("name", ["sat_2b_r4", "peft_patterns", "peft_dora"])
def test_the_entry_has_what_older_versions_look_for(name: str, options: dict, tmp_path: Path) -> None:
    case = Case(name)
    report = loraforge.convert(case.source, to="diffusers", out=tmp_path / "o", **case.said, **options)
    said = entry(tmp_path / "o" / WEIGHTS)
    for key in ("rank_pattern", "alpha_pattern"):
        assert isinstance(said[f"transformer.{key}"], dict)
    assert f"weight_name='{WEIGHTS}')" in report.load
    stops = {row.runtime for row in rows(tmp_path / "o").values() if row.raises}
    assert not stops & {"diffusers", "diffusers-0.39", "diffusers-0.36", "diffusers-0.33"}


@pytest.mark.parametrize("name", ["a.safetensors", "it's.safetensors"])
def test_the_load_line_names_the_file(name: str, tmp_path: Path) -> None:
    report = loraforge.convert(Case("peft_plain").source, to="diffusers", out=tmp_path / name)
    called = {}
    pipe = type("Pipe", (), {"load_lora_weights": lambda _, folder, **options: called.update(options, folder=folder)})
    exec(report.load, {"pipe": pipe()})
    assert called == {"folder": str(tmp_path), "weight_name": name}


def old(place: Path, name: str) -> Path:
    """A file with an entry as older versions of loraforge, or others, wrote it."""
    options = {"meta": {"scale_in": "metadata"}}.get(name, {})
    loraforge.convert(Case("peft_plain").source, to="diffusers", out=place, **options)
    file = place / WEIGHTS
    with safe_open(file, "np") as opened:
        metadata = opened.metadata()
    said = {key: value for key, value in json.loads(metadata["lora_adapter_metadata"]).items() if "_pattern" not in key}
    if name == "others":
        said = {"transformer.r": 8, "transformer.lora_alpha": 4}
        metadata.pop("loraforge")
    if name == "null":
        said |= {"transformer.rank_pattern": None, "transformer.alpha_pattern": {}}
    save_file(load_file(file), file, metadata | {"lora_adapter_metadata": json.dumps(said)})
    return file


@pytest.mark.parametrize("name", ["folded", "meta", "others", "null"])
def test_an_entry_that_lacks_a_name_is_recognised_and_mended(name: str, tmp_path: Path, cli) -> None:
    file = old(tmp_path / "o", name)
    before, known = load_file(file), loraforge.inspect(file)
    row = rows(file)["diffusers-0.39"]
    assert (row.raises, row.applied) == ("KeyError 'rank_pattern' in lora_adapter_metadata", 0)
    assert row.raises == rows(file)["diffusers-0.36"].raises
    newer = "KeyError 'target_modules' in lora_adapter_metadata" if name == "others" else ""  # PEFT looks for them
    assert rows(file)["diffusers"].raises == newer
    told = loraforge.doctor(file, runtime_="diffusers-0.39")
    assert told.verdict == "does nothing"
    for found in (told, loraforge.doctor(file)):
        (line,) = found.fix
    words = shlex.split(line.partition("   #")[0])[1:]
    done = cli(*words)
    assert done.exit_code == 0, done.output
    assert "0.33.1, 0.34.0, 0.35.2" in done.stdout or "Diffusers 0.34.0" in done.stdout
    assert not [row for row in rows(file).values() if row.raises.startswith("KeyError")]
    assert rows(file)["diffusers-0.39"].ratios == (1.0,)
    after = load_file(file)
    assert after.keys() == before.keys() and all(np.array_equal(after[key], before[key]) for key in before)
    again = loraforge.inspect(file)
    assert (again.scalings, again.scale and again.scale.provenance) == (
        known.scalings,
        known.scale and known.scale.provenance,
    )


def test_stamp_without_a_statement_needs_a_record(tmp_path: Path, cli) -> None:
    file = Case("cogvideo_trainer_plain").source
    file = file if file.is_file() else next(file.rglob(WEIGHTS))
    done = cli("stamp", file, "-o", tmp_path / "x.safetensors")
    assert done.exit_code == 1
    assert "does not record the scale" in done.stderr
    assert not (tmp_path / "x.safetensors").exists()
    line = re.search(r"try: loraforge (convert .*?)   #", done.stderr) or re.search(
        r"try: loraforge (.*?)  #", done.stderr
    )
    assert line is not None
    assert cli(*shlex.split(line[1]), "-o", tmp_path / "d").exit_code == 0


# --- modules of several ranks


@pytest.mark.parametrize(
    ("ranks", "wrong"),
    [
        ({m: 8 if m == ATTENTION[5] else 4 for m in ATTENTION}, {"diffusers-0.31", "diffusers-0.32", "diffusers-0.33"}),
        ({m: (4, 8)[n % 2] for n, m in enumerate(ATTENTION)}, {"diffusers-0.31", "diffusers-0.33"}),
        (dict.fromkeys(ATTENTION, 4), set()),
    ],
)
def test_versions_that_take_mixed_ranks_for_another_scale_are_named(ranks: dict, wrong: set, tmp_path: Path) -> None:
    source = peft(tmp_path / "s", ranks)
    report = loraforge.convert(source, to="diffusers", out=tmp_path / "o")
    found = {
        name for name, row in rows(tmp_path / "o").items() if name.startswith("diffusers") and row.ratios != (1.0,)
    }
    assert found == wrong
    note = next((note for note in report.notes if "--pad-ranks" in note), "")
    assert {name for name in wrong if table.runtime(name).title in note} == wrong
    bad = {found.runtime for found in report.programs if found.otherwise and found.runtime.startswith("diffusers")}
    assert bad == wrong
    padded = loraforge.convert(source, to="diffusers", out=tmp_path / "p", pad_ranks=True)
    assert all(row.ratios == (1.0,) for name, row in rows(tmp_path / "p").items() if name.startswith("diffusers"))
    assert not any("--pad-ranks" in note for note in padded.notes)
    assert loraforge.verify(source, tmp_path / "p").same
    assert set(loraforge.inspect(tmp_path / "p").ranks) == {max(ranks.values())}
    assert {step.error for step in padded.steps} == {0.0}


def test_padding_goes_with_formats_that_have_ranks_of_their_own(tmp_path: Path, cli) -> None:
    source = peft(tmp_path / "s", {m: (2, 4, 8)[n % 3] for n, m in enumerate(ATTENTION)})
    for options in ({"to": "peft"}, {"to": "diffusers", "scale_in": "metadata"}):
        loraforge.convert(source, out=tmp_path / options["to"], pad_ranks=True, **options)
        assert loraforge.verify(source, tmp_path / options["to"]).same
        assert loraforge.inspect(tmp_path / options["to"]).ranks == {8: 8}
    refused = cli("convert", source, "--to", "sat", "--lora-only", "--pad-ranks", "-o", tmp_path / "n")
    assert refused.exit_code == 1
    assert "--pad-ranks goes with --to diffusers or peft" in refused.stderr


def test_what_is_passed_over_is_listed_in_the_order_of_the_file() -> None:
    """The order of a set differs from run to run."""
    file = DATA / "videox_fun_kohya_attn_fp32"
    keys = loraforge.skeleton(file)["tensors"]
    (lost,) = (row.lost for row in loraforge.doctor(file).outlooks if row.runtime == "diffusers")
    assert [text.partition(" ")[0] for text in lost] == [*dict.fromkeys(key.split(".")[0] for key in keys)]
