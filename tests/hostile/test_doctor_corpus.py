"""`loraforge doctor` on a corpus: each fault is called by its name, no healthy file is called anything else."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from hostile.doctor_corpus import changed
from hostile.doctor_faults import FAULTS, HEALTHY
from loraforge.cli import main
from loraforge.doctor import AS_TRAINED


def examined(file: Path, words: tuple[str, ...], place: Path) -> tuple[dict, int]:
    """The JSON and the exit code; the text for a terminal must come out too, with the same verdict."""
    typed = [word.replace("{place}", str(place)) for word in words]
    found = CliRunner().invoke(main, ["doctor", str(file), *typed, "--json"])
    assert isinstance(found.exception, SystemExit | None), repr(found.exception)
    assert found.stdout, found.output
    said = json.loads(found.stdout)
    shown = CliRunner().invoke(main, ["doctor", str(file), *typed])
    assert shown.exit_code == found.exit_code
    assert shown.stdout.startswith(f"{said['verdict']}: "), shown.output
    return said, found.exit_code


def run_each(fixes: list[str]) -> None:
    """Every command that mends it can be typed as it stands."""
    for fix in fixes:
        program, *words = shlex.split(fix, comments=True) or [""]
        if program == "loraforge":
            result = CliRunner().invoke(main, words)
            assert result.exit_code in (0, 1), f"{fix} -> {result.output}"
            assert isinstance(result.exception, SystemExit | None), f"{fix}: {result.exception!r}"


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_called_by_its_name(name: str, tmp_path: Path):
    fault = FAULTS[name]
    said, code = examined(fault.make(tmp_path), fault.words, tmp_path)
    found = f"{said['verdict']}: {said['why']}"
    assert code == 1, found
    assert said["verdict"] == fault.verdict or (
        fault.verdict.startswith("cannot tell") and said["verdict"].startswith(fault.verdict)
    ), found
    assert fault.why.lower() in said["why"].replace(str(tmp_path), "").lower(), found
    assert said["fix"], found
    run_each(said["fix"])
    assert not Path("executed").exists()


@pytest.mark.parametrize("name", HEALTHY)
def test_nothing_is_wrong_with_a_healthy_file(name: str, tmp_path: Path):
    make, words = HEALTHY[name]
    said, code = examined(make(tmp_path), words, tmp_path)
    assert (said["verdict"], code) == (AS_TRAINED, 0), said
    assert said["fix"] == []


def test_there_are_enough():
    assert len(FAULTS) >= 40
    assert len(HEALTHY) >= 15


def test_a_base_that_is_not_there_is_the_users_word(tmp_path: Path):
    result = CliRunner().invoke(main, ["doctor", str(changed()(tmp_path)), "--base", str(tmp_path / "nowhere")])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "nowhere does not exist" in result.stderr
