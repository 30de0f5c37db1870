"""Training output folders whose checkpoints are missing, doubled, half written or called by numbers that are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hostile.builders import RANK, run_folder, safetensors
from hostile.peft_builders import cases, config, lora, peft

FILE = "pytorch_lora_weights.safetensors"
SCALE = {"lora_adapter_metadata": json.dumps({"transformer.r": RANK, "transformer.lora_alpha": 2})}
HEALTHY = safetensors(lora("transformer."), SCALE)
Make = Callable[[Path], object]


def diffusers(folder: Path, data: bytes = HEALTHY) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FILE).write_bytes(data)
    return folder


def made(*steps: Make) -> Make:
    """What makes a run folder out of several things."""
    return lambda run: [step(run) for step in steps]


def checkpoint(name: str, data: bytes = HEALTHY) -> Make:
    return lambda run: diffusers(run / name, data)


def peft_checkpoint(name: str) -> Make:
    return lambda run: peft(run / name)


def text(name: str, content: str = "{}") -> Make:
    def write(run: Path) -> None:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text(content)

    return write


def empty(name: str) -> Make:
    return lambda run: (run / name).mkdir(parents=True)


def link(name: str, target: str) -> Make:
    return lambda run: (run / name).symlink_to(target)


def run_of(tmp_path: Path, make: Make) -> Path:
    run = tmp_path / "run"
    run.mkdir()
    try:
        make(run)
    except OSError:
        pytest.skip("not a name on this system, or links need a privilege here")
    return run


NOTHING = {
    "an empty folder": (made(), "no adapter was found"),
    "an empty checkpoint": (empty("checkpoint-5"), "no adapter was found"),
    "a checkpoint of a trainer's state alone": (text("checkpoint-5/random_states_0.pkl", "x"), "no adapter was found"),
    "a file called as a checkpoint": (text("checkpoint-5"), "no adapter was found"),
    "a folder called as a file": (empty("checkpoint-5.safetensors"), "no adapter was found"),
    "a folder called as the tensors": (empty(f"checkpoint-5/{FILE}"), "no adapter was found"),
    "a link to nowhere": (link("checkpoint-5", "nowhere"), "no adapter was found"),
    "a link to itself": (link("checkpoint-5", "checkpoint-5"), "no adapter was found"),
    "tensors that are a link to nowhere": (
        made(empty("checkpoint-5"), link(f"checkpoint-5/{FILE}", "no")),
        "no adapter was found",
    ),
    "a configuration alone": (text("adapter_config.json"), "adapter_model.safetensors"),
    "tensors of 0 bytes": (checkpoint("checkpoint-5", b""), "empty"),
    "tensors cut short": (checkpoint("checkpoint-5", HEALTHY[:-8]), "safetensors"),
    "the newest of 0 bytes": (made(checkpoint("checkpoint-5"), checkpoint("checkpoint-10", b"")), "checkpoint-10"),
    "noise called as a checkpoint": (text("checkpoint-5.safetensors", "noise" * 20), "checkpoint-5"),
    "the newest diverged": (
        made(
            checkpoint("checkpoint-5"),
            checkpoint("checkpoint-10", safetensors({k: v * np.nan for k, v in lora("transformer.").items()}, SCALE)),
        ),
        "NaN",
    ),
}


@pytest.mark.parametrize(("make", "fragment"), **cases(NOTHING))
def test_a_run_without_tensors(tmp_path: Path, refused, make: Make, fragment: str):
    refused(run_of(tmp_path, make), fragment)


ODDLY_NAMED = {
    "a number of 30 digits": checkpoint("checkpoint-" + "9" * 30),
    "a number below 0": checkpoint("checkpoint--5"),
    "a number of two parts": checkpoint("checkpoint-5-6"),
    "a number with a line break": checkpoint("checkpoint-5\n"),
    "no number": checkpoint("checkpoint-last"),
    "a checkpoint in a checkpoint": checkpoint("checkpoint-5/checkpoint-6"),
    "digits of another script": checkpoint("checkpoint-٣"),
}


@pytest.mark.parametrize("make", **cases(ODDLY_NAMED))
def test_the_only_adapter_is_taken_under_any_name(tmp_path: Path, cli, out: Path, make: Make):
    """Its name is no number, and so it is no checkpoint; but it is the only adapter, and that is said."""
    run = run_of(tmp_path, make)
    done = cli("convert", run, "--to", "diffusers", "-o", out)
    assert done.exit_code == 0, done.output
    assert "the only folder in run with an adapter" in done.stderr, done.output


def test_what_is_below_is_proposed(tmp_path: Path, refused):
    """A folder of runs is no run: each of them is one command away."""
    for name in "ab":
        diffusers(tmp_path / "runs" / name / "checkpoint-5")
    refused(tmp_path / "runs", "holds adapters in a, b. Which?")


TWO = {
    "in two folders": made(checkpoint("checkpoint-10"), checkpoint("checkpoint-0010")),
    "with and without the word": made(checkpoint("checkpoint-10"), checkpoint("10")),
    "at two depths": made(checkpoint("checkpoint-10"), checkpoint("lora_weights/10")),
    "as a file and a folder": made(
        checkpoint("checkpoint-10"), lambda run: (run / "checkpoint-10.safetensors").write_bytes(HEALTHY)
    ),
}


@pytest.mark.parametrize("make", **cases(TWO))
@pytest.mark.parametrize("words", [(), ("--iteration", "10")], ids=["newest", "asked for"])
def test_one_number_twice(tmp_path: Path, refused, make: Make, words: tuple[str, ...]):
    refused([run_of(tmp_path, make), *words], "10")


SKIPPED = {
    "an empty one": empty("checkpoint-50"),
    "a configuration alone": text("checkpoint-50/adapter_config.json"),
    "a file": text("checkpoint-50"),
    "tensors that are a folder": empty(f"checkpoint-50/{FILE}"),
}


@pytest.mark.parametrize("newest", **cases(SKIPPED))
def test_a_newest_checkpoint_that_is_skipped_is_told(tmp_path: Path, cli, out: Path, newest: Make):
    """A run that was stopped while it saved: converting the one before is right, hiding that is not."""
    run = run_of(tmp_path, made(checkpoint("checkpoint-10"), newest))
    result = cli("convert", run, "--to", "diffusers", "-o", out)
    assert result.exit_code == 1 or "checkpoint-50" in result.stderr, result.output


BOTH = made(checkpoint("checkpoint-5"), checkpoint("checkpoint-10"))
CHOICES = {
    "that is not there": (BOTH, "7", "no checkpoint 7"),
    "below 0": (BOTH, "-5", "-5"),
    "of 30 digits": (BOTH, str(10**30), "1000000"),
    "without tensors": (made(BOTH, empty("checkpoint-50")), "50", "no checkpoint 50"),
    "that is a file": (made(BOTH, text("checkpoint-50")), "50", "no checkpoint 50"),
    "where nothing is numbered": (diffusers, "5", "no checkpoint 5"),
    "where there is nothing": (empty("checkpoint-5"), "5", "no adapter was found"),
    "beside a final result": (made(diffusers, BOTH), "7", "no checkpoint 7"),
}


@pytest.mark.parametrize(("make", "number", "fragment"), **cases(CHOICES))
def test_an_iteration(tmp_path: Path, refused, make: Make, number: str, fragment: str):
    refused([run_of(tmp_path, make), "--iteration", number], fragment)


@pytest.mark.parametrize("name", [FILE, "x.safetensors"])
@pytest.mark.parametrize("words", [("--iteration", "5"), ("--ema",)], ids=["--iteration", "--ema"])
def test_a_choice_of_one_file(tmp_path: Path, refused, name: str, words: tuple[str, ...]):
    (tmp_path / name).write_bytes(HEALTHY)
    refused([tmp_path / name, *words], words[0])


@pytest.mark.parametrize("make", [BOTH, diffusers, peft_checkpoint("checkpoint-5")], ids=["run", "folder", "PEFT"])
def test_averaged_weights_that_no_such_run_has(tmp_path: Path, refused, make: Make):
    refused([run_of(tmp_path, make), "--ema"], "ema")


MIXED = {
    "in one folder": made(diffusers, text("adapter_config.json"), lambda run: copied(run)),
    "in one checkpoint": made(checkpoint("checkpoint-5"), lambda run: copied(run / "checkpoint-5")),
    "in two checkpoints": made(checkpoint("checkpoint-5"), peft_checkpoint("checkpoint-10")),
    "the result and a checkpoint": made(diffusers, peft_checkpoint("checkpoint-10")),
    "SAT and Diffusers": made(lambda run: run_folder(run, "1000", latest="1000"), checkpoint("checkpoint-10")),
    "SAT and PEFT": made(lambda run: run_folder(run, "1000", latest="1000"), peft_checkpoint("checkpoint-10")),
}


def copied(folder: Path) -> None:
    """PEFT's files, beside what is in the folder."""
    (folder / "adapter_model.safetensors").write_bytes(safetensors(lora()))
    (folder / "adapter_config.json").write_text(json.dumps(config()))


@pytest.mark.parametrize("make", **cases(MIXED))
def test_two_formats(tmp_path: Path, refused, make: Make):
    refused(run_of(tmp_path, make), "--from")


def test_an_iteration_that_only_one_of_two_formats_has(tmp_path: Path, cli, out: Path):
    run = run_of(tmp_path, MIXED["in two checkpoints"])
    result = cli("convert", run, "--to", "diffusers", "-o", out, "--iteration", 5)
    assert "no checkpoint 5" not in result.stderr, result.output


@pytest.mark.parametrize("make", [diffusers, BOTH], ids=["result", "checkpoints"])
def test_a_stray_configuration(tmp_path: Path, cli, out: Path, make: Make):
    run = run_of(tmp_path, made(make, text("adapter_config.json")))
    result = cli("convert", run, "--to", "diffusers", "-o", out)
    assert result.exit_code == 0, result.output


INSIDE = ["converted", "checkpoint-5", "checkpoint-5/x.safetensors", "checkpoint-6", "."]


@pytest.mark.parametrize("place", INSIDE)
@pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "--force"])
def test_a_result_inside_the_run(tmp_path: Path, refused, place: str, force: tuple[str, ...]):
    run = run_of(tmp_path, BOTH)
    refused([run, "-o", run / place, *force], "source")


def test_an_empty_checkpoint_of_every_number(tmp_path: Path, refused_alone):
    """2,000 of them are looked through, and not listed."""
    refused_alone(run_of(tmp_path, made(*(empty(f"checkpoint-{n}") for n in range(2_000)))))


def test_a_long_run_is_not_listed_in_full(tmp_path: Path, refused):
    run = run_of(tmp_path, made(*(checkpoint(f"checkpoint-{n}") for n in range(300))))
    assert len(refused([run, "--iteration", 1_000], "more")) < 1_000


GOOD: dict[str, Any] = {
    "two": (BOTH, "10"),
    "with zeros before": (made(checkpoint("checkpoint-0009"), checkpoint("checkpoint-10")), "10"),
    "in order of numbers, not of letters": (made(checkpoint("checkpoint-9"), checkpoint("checkpoint-10")), "10"),
    "nine digits": (made(checkpoint("checkpoint-9"), checkpoint("checkpoint-999999999")), "999999999"),
    "a link to another place": (made(checkpoint("elsewhere"), link("checkpoint-5", "elsewhere")), None),
    "a link to the run itself": (made(checkpoint("checkpoint-5"), link("checkpoint-6", ".")), None),
    "lora_weights that is a file": (made(checkpoint("checkpoint-5"), text("lora_weights")), None),
}


@pytest.mark.parametrize(("make", "taken"), **cases(GOOD))
def test_runs_as_they_should_be_convert(tmp_path: Path, cli, out: Path, make: Make, taken: str | None):
    result = cli("convert", run_of(tmp_path, make), "--to", "diffusers", "-o", out)
    assert result.exit_code == 0, result.output
    assert taken is None or f"took checkpoint {taken} of" in result.stderr
