"""`--as-in PROGRAM` keeps what a program does with a file; it is no statement about training."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.oracle import DATA, Case
from helpers.scalefiles import PATHS, adapter
from safetensors.numpy import load_file

import loraforge
from loraforge.errors import ScaleError
from loraforge.programs import as_in
from loraforge.programs.table import runtimes

ENTRY = {"r": 4, "lora_alpha": 2, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}
META = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in ENTRY.items()})}

KEPT: dict[str, tuple[dict[str, str] | None, str, float]] = {
    "nothing recorded": (None, "diffusers", 1.0),
    "recorded, and read": (META, "diffusers", 0.5),
    "recorded, and ignored": (META, "diffusers-0.33", 1.0),
    "a program that scales by itself": (None, "load_cogvideox_lora", 1 / 128),
    "by the rank": (None, "cli_demo-old", 0.25),
}


@pytest.mark.parametrize(("metadata", "program", "scale"), KEPT.values(), ids=KEPT)
@pytest.mark.parametrize("to", ["diffusers", "peft"])
def test_it_keeps_what_the_program_applies(
    metadata: dict[str, str] | None, program: str, scale: float, to: str, tmp_path: Path, cli: Any
) -> None:
    source = adapter(tmp_path / "x.safetensors", metadata)
    done = cli("convert", source, "--to", to, "-o", tmp_path / "out", "--as-in", program)
    assert done.exit_code == 0, done.output
    assert "as trained" not in done.output and f"as it acts in {runtimes()[program].title}" in done.output
    made = loraforge.verify(source, tmp_path / "out", trained_scale=scale, override_scale=True)
    assert made.same
    report = json.loads(
        cli("convert", source, "--to", to, "-o", tmp_path / "out", "--as-in", program, "--force", "--json").stdout
    )
    assert report["scalings"] == [scale]
    assert report["scale"]["provenance"] == "assumed" and report["scale"]["program"] == runtimes()[program].title


def test_it_is_no_better_known_after_a_second_conversion(tmp_path: Path, cli: Any) -> None:
    source = adapter(tmp_path / "x.safetensors")
    loraforge.convert(source, to="diffusers", out=tmp_path / "a", as_in="diffusers")
    for verb in (("convert", tmp_path / "a", "--to", "peft", "-o", tmp_path / "b"), ("inspect", tmp_path / "a")):
        assert "as trained" not in cli(*verb).output
    assert "trained at" not in cli("inspect", tmp_path / "b").stdout
    verdict = cli("doctor", tmp_path / "a")
    assert verdict.exit_code == 1 and verdict.stdout.startswith("cannot tell (1): its scale is not that of training")


def test_as_loaded_is_as_in_diffusers(tmp_path: Path, cli: Any) -> None:
    source = adapter(tmp_path / "x.safetensors", META)
    one = loraforge.convert(source, to="diffusers", out=tmp_path / "a", as_loaded=True)
    other = loraforge.convert(source, to="diffusers", out=tmp_path / "b", as_in="diffusers")
    assert one.scale == other.scale and one.scalings == (0.5,)
    assert loraforge.convert(source, to="diffusers", out=tmp_path / "c", as_loaded=True, as_in="diffusers")
    done = cli("convert", source, "--to", "peft", "--as-loaded", "--as-in", "sat", "-o", tmp_path / "d")
    assert done.exit_code == 1 and "--as-loaded is --as-in diffusers" in done.stderr


REFUSED = {
    "names it does not know": ("bare", "diffusers", "applies none of its modules"),
    "no configuration beside it": ("peft", "peft", "stops at adapter_config.json"),
    "of another format": ("diffusers", "sat", "applies none of its modules"),
    "no such program": ("diffusers", "comfy", "there is no program 'comfy'; there are diffusers"),
}


@pytest.mark.parametrize(("words", "program", "says"), REFUSED.values(), ids=REFUSED)
def test_nothing_is_kept_where_the_program_applies_nothing(
    words: str, program: str, says: str, tmp_path: Path, cli: Any
) -> None:
    source = adapter(tmp_path / "x.safetensors", words=words)
    done = cli("convert", source, "--to", "diffusers", "-o", tmp_path / "out", "--as-in", program)
    assert done.exit_code == 1 and says in done.stderr
    assert not (tmp_path / "out").exists()
    for line in re.findall(r"try: loraforge (convert .*--as-in .*?)   #", done.stderr):
        assert cli(*shlex.split(line), "--force").exit_code == 0


def test_a_part_is_refused_and_says_which(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = runtimes()["diffusers"]
    odd = replace(known, name="odd", keys={"attn1.to_q": "ignored", **known.keys})
    monkeypatch.setattr(as_in, "runtimes", lambda: {"odd": odd})
    monkeypatch.setattr(as_in, "running", lambda _: [odd])
    with pytest.raises(ScaleError, match=r"applies 6 of its 8 modules, and passes over attn1\.to_q x4") as refusal:
        loraforge.convert(adapter(tmp_path / "x.safetensors"), to="diffusers", out=tmp_path / "o", as_in="odd")
    assert "No known program applies all of it" in refusal.value.message


def test_each_module_keeps_its_own_scale(tmp_path: Path) -> None:
    """The header gives one module another alpha; Diffusers obeys it, and so does the result."""
    ranks = {f"transformer.{k}": v for k, v in ENTRY.items()} | {
        "transformer.alpha_pattern": {PATHS[0]: 8, PATHS[5]: 1}
    }
    source = adapter(tmp_path / "x.safetensors", {"lora_adapter_metadata": json.dumps(ranks)})
    report = loraforge.convert(source, to="diffusers", out=tmp_path / "out", as_in="diffusers")
    assert report.scalings == (0.25, 0.5, 2.0)
    assert loraforge.verify(source, tmp_path / "out").same
    plain = loraforge.convert(source, to="diffusers", out=tmp_path / "plain", as_in="diffusers-0.33")
    assert plain.scalings == (1.0,)


def test_it_is_offered_beside_the_candidates(tmp_path: Path, cli: Any) -> None:
    done = cli("convert", adapter(tmp_path / "x.safetensors"), "--to", "peft", "-o", tmp_path / "out")
    assert "--as-in" in done.stderr and "right if you like that" in done.stderr
    lines = re.findall(
        r"try: loraforge (convert .*--as-in .*?)   # if you like what (.*) does with it today: scale (.*)", done.stderr
    )
    assert len(lines) >= 2
    for line, title, scale in lines:
        report = json.loads(cli(*shlex.split(line), "--json", "--force").stdout)
        assert report["scalings"] == [pytest.approx(float(scale))] and report["scale"]["program"] == title
    found = cli("doctor", tmp_path / "x.safetensors").stdout
    assert "--as-in diffusers" in found


def test_dora_keeps_its_magnitudes_or_is_refused(tmp_path: Path) -> None:
    source = Case("peft_dora").source
    kept = loraforge.convert(source, to="diffusers", out=tmp_path / "d", as_in="peft")
    assert kept.scalings == loraforge.convert(source, to="diffusers", out=tmp_path / "e").scalings
    assert loraforge.verify(tmp_path / "d", tmp_path / "e").same
    with pytest.raises(ScaleError, match="applies none"):
        loraforge.convert(source, to="diffusers", out=tmp_path / "f", as_in="diffusers")


def test_fuse_says_no_word_of_training(tmp_path: Path, cli: Any) -> None:
    source = adapter(tmp_path / "x.safetensors")
    done = cli("fuse", DATA / "bases" / "2b", source, "-o", tmp_path / "f", "--as-in", "diffusers", "--dry-run")
    assert done.exit_code == 0, done.output
    assert "at scale 1 (assumed: --as-in diffusers" in done.stdout and "trained at" not in done.stdout


@pytest.mark.parametrize("scale", [0.5, 0.7])
def test_verify_takes_the_statements_of_convert(scale: float, tmp_path: Path, cli: Any) -> None:
    """The tutorial's way: what was stated to convert is stated to verify, of the file that records nothing."""
    source = adapter(tmp_path / "x.safetensors")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "any.yaml").write_text(f"rank: 4\nlora_alpha: {scale * 4}\n")
    loraforge.convert(source, to="diffusers", out=tmp_path / "a", trained_scale=scale)
    said = (["--trained-scale", scale], ["--alpha", scale * 4], ["--training-config", tmp_path / "c" / "any.yaml"])
    for words in said:
        for pair in ((source, tmp_path / "a"), (tmp_path / "a", source)):
            done = cli("verify", *pair, *words)
            assert done.exit_code == 0, done.output
            assert f"read at scale 1 (trained at {'1/2 = ' if scale == 0.5 else ''}{scale}, given" in done.stdout
    assert cli("verify", source, tmp_path / "a").exit_code == 1
    again = cli("verify", tmp_path / "a", tmp_path / "a", "--alpha", 8)
    assert again.exit_code == 1 and "two scales" in again.stderr
    assert cli("verify", source, tmp_path / "a", "--as-in", "diffusers").exit_code == 1
    assert cli("verify", source, tmp_path / "a", "--trained-by", "cogvideo").exit_code == 1


STATED: dict[str, tuple[list[str], float]] = {
    "--alpha": (["--alpha", "2"], 0.5),
    "--trained-scale": (["--trained-scale", "0.7"], 0.7),
    "--training-config": (["--training-config", "CONFIG"], 16),
    "--as-in": (["--as-in", "cli_demo-old"], 0.25),
    "--as-loaded": (["--as-loaded"], 1),
}


@pytest.mark.parametrize(("words", "scale"), STATED.values(), ids=STATED)
def test_stamp_takes_the_statements_of_convert(words: list[str], scale: float, tmp_path: Path, cli: Any) -> None:
    source = adapter(tmp_path / "x.safetensors", {"keep": "this"})
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "any.yaml").write_text("rank: 4\nlora_alpha: 64\n")
    words = [str(tmp_path / "c" / "any.yaml") if word == "CONFIG" else word for word in words]
    done = cli("stamp", source, *words, "--architecture", "cogvideox", "-o", tmp_path / "y.safetensors")
    assert done.exit_code == 0, done.output
    assert ("as trained" in done.stdout) == (not words[0].startswith("--as-"))
    seen = loraforge.inspect(tmp_path / "y.safetensors")
    assert seen.scalings == (pytest.approx(scale),) and seen.metadata["keep"] == "this"
    assert str(tmp_path) not in json.dumps(seen.metadata)
    left, right = load_file(source), load_file(tmp_path / "y.safetensors")
    assert all(np.array_equal(left[key], right[key]) for key in left)


def test_stamp_of_a_trainer_and_of_nothing(tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = adapter(tmp_path / "x.safetensors", rank=64)
    assert cli("stamp", source, "--trained-by", "cogvideox-factory", "-o", tmp_path / "y.safetensors").exit_code == 0
    assert loraforge.inspect(tmp_path / "y.safetensors").scalings == (1.0,)
    done = cli("stamp", source, "-o", tmp_path / "z.safetensors")
    assert done.exit_code == 1 and "State its alpha" in done.stderr
    line = re.search(r"try: loraforge (stamp .*?)   #", done.stderr)
    assert line and cli(*shlex.split(line[1])).exit_code == 0
    stale = adapter(tmp_path / "s.safetensors", {"lora_alpha": "2"})
    assert cli("stamp", stale, "--alpha", 4, "--override-scale", "-o", tmp_path / "t.safetensors").exit_code == 0
    assert loraforge.inspect(tmp_path / "t.safetensors").scalings == (1.0,)


@pytest.mark.parametrize("kept", [True, False], ids=["in the file", "on the command line"])
def test_the_line_of_doctor_for_a_kept_scale_runs(kept: bool, tmp_path: Path, cli: Any) -> None:
    """It states a scale that may be that of training, over what the file records."""
    source, words = adapter(tmp_path / "x.safetensors", META), ["--as-in", "diffusers-0.33"]
    if kept:
        loraforge.convert(source, to="diffusers", out=tmp_path / "y.safetensors", as_in=words[1])
        source, words = tmp_path / "y.safetensors", []
    done = cli("doctor", source, *words, "--architecture", "cogvideox")
    line = re.search(r"loraforge (doctor .*?)   # if training used that", done.stdout)
    assert done.exit_code == 1 and line, done.stdout
    again = cli(*shlex.split(line[1]), "--architecture", "cogvideox")
    assert "cannot tell" not in again.stdout and again.stdout.strip(), again.output
