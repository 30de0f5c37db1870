"""`loraforge doctor` on a corpus: each fault is called by its name, no healthy file is called anything else."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from click.testing import CliRunner

from hostile.doctor_corpus import beside, changed, no_header
from hostile.doctor_faults import FAULTS, HEALTHY, converted
from hostile.refusals import Refusal
from hostile.remedies import faults
from loraforge.cli.app import main

SCHEMA = json.loads((Path(__file__).parents[2] / "schemas" / "doctor.schema.json").read_text())


def examined(file: Path, words: tuple[str, ...], place: Path) -> tuple[dict, int]:
    """The JSON and the exit code; the text for a terminal must come out too, with the same verdict."""
    typed = [word.replace("{place}", str(place)) for word in words]
    found = CliRunner().invoke(main, ["doctor", str(file), *typed, "--json"])
    assert isinstance(found.exception, SystemExit | None), repr(found.exception)
    assert found.stdout, found.output
    said = json.loads(found.stdout)
    jsonschema.validate(said, SCHEMA)
    shown = CliRunner().invoke(main, ["doctor", str(file), *typed])
    assert shown.exit_code == found.exit_code
    assert shown.stdout.startswith(f"{said['verdict']}: "), shown.output
    return said, found.exit_code


NAMED = ("--architecture", "cogvideox")
"""Nothing in most of these files shows what they are of."""


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_called_by_its_name(name: str, tmp_path: Path):
    fault = FAULTS[name]
    said, code = examined(fault.make(tmp_path), (*fault.words, *NAMED), tmp_path)
    found = f"{said['verdict']}: {said['why']}"
    assert code == 1, found
    assert said["verdict"] == fault.verdict or (
        fault.verdict.startswith("cannot tell") and said["verdict"].startswith(fault.verdict)
    ), found
    assert fault.why.lower() in said["why"].replace(str(tmp_path), "").lower(), found
    assert not Path("executed").exists()


@pytest.mark.parametrize("name", FAULTS)
def test_each_fix_of_a_fault_helps(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Typed as it stands, it ends well, or with another verdict; and so does what that says to type."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    fault = FAULTS[name]
    typed = Refusal(name, fault.make, ("doctor", "{made}", *fault.words)).typed(folder)
    _, walk = faults(typed, folder)
    assert not walk.faults, "\n\n".join(walk.faults)


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_wrong_with_a_healthy_file(name: str, tmp_path: Path):
    make, words = HEALTHY[name]
    said, code = examined(make(tmp_path), (*words, *NAMED), tmp_path)
    assert (said["verdict"], code) == ("acts as trained", 0), said
    assert said["fix"] == []


def test_there_are_enough():
    assert len(FAULTS) >= 40
    assert len(HEALTHY) >= 15


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        (("--base", "{place}/nowhere"), "nowhere does not exist"),
        (("--runtime", "comfy"), "no program 'comfy'"),
        (("--training-config", "{place}/args.yaml"), "args.yaml cannot be read"),
        (("--alpha", "nan"), "--alpha nan"),
        (("--alpha", "4", "--trained-scale", "1"), "give one of them"),
        (("--trained-by", "cogvideo"), "means rank 128"),
    ],
)
def test_what_the_user_said_wrongly_is_no_verdict(words: tuple[str, ...], fragment: str, tmp_path: Path):
    typed = [word.replace("{place}", str(tmp_path)) for word in words]
    result = CliRunner().invoke(main, ["doctor", str(changed(no_header)(tmp_path)), *typed])
    assert (result.exit_code, result.stdout) == (1, "")
    assert fragment in result.stderr
    assert "Traceback" not in result.stderr


def test_another_alpha_than_the_one_recorded_is_the_users_word(tmp_path: Path):
    result = CliRunner().invoke(main, ["doctor", str(changed()(tmp_path)), "--alpha", "8"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "two scales" in result.stderr


def test_an_alpha_beside_the_file_that_contradicts_its_header_is_noted(tmp_path: Path):
    for alpha, notes in ((16, 1), (4, 0)):
        said, code = examined(
            beside(changed(), "args.yaml", f"rank: 8\nlora_alpha: {alpha}\n")(tmp_path), NAMED, tmp_path
        )
        assert (code, len(said["notes"])) == (0, notes), said
        where = f"lora_alpha 16, rank 8 in {tmp_path}"
        assert all(where in note and "args.yaml says the scale 2" in note for note in said["notes"])


def test_it_is_not_noted_of_what_loraforge_folded(tmp_path: Path):
    file = beside(converted("sat_2b_r4", "diffusers"), "args.yaml", "rank: 4\nlora_alpha: 1\n")(tmp_path)
    said, code = examined(file, (), tmp_path)
    assert (code, said["notes"]) == (0, [])
