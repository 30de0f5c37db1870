"""The same files, with every sentence of a verdict, a remedy and a scale reworded: what is decided is the same."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from helpers.oracle import DATA
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import loraforge
from hostile.doctor_faults import FAULTS, HEALTHY
from loraforge import errors
from loraforge.cli.app import main
from loraforge.diagnosis import verdict
from loraforge.errors import LoraforgeError, Try
from loraforge.programs.table import runtimes
from loraforge.publishing.contents import published
from loraforge.scale.rule import Rule, Scale

CASES = {name: (fault.make, fault.words) for name, fault in FAULTS.items()} | HEALTHY
STATED = dict.fromkeys(("alpha", "trained_scale", "trained_by", "training_config", "as_in")) | {
    "override_scale": False, "architecture": "cogvideox"
}  # fmt: skip


def added(remedies: tuple[Try, ...]) -> list[tuple[Any, ...]]:
    """What remedies are to a program, in their order."""
    return [(remedy.verb, remedy.options, remedy.scale) for remedy in remedies]


def diagnosed(file: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    found = []
    with monkeypatch.context() as patch:
        real = loraforge.doctor
        patch.setattr(loraforge, "doctor", lambda *args, **given: found.append(real(*args, **given)) or found[-1])
        done = CliRunner().invoke(main, ["doctor", str(file), *words, "--architecture", "cogvideox"])
    judged = [(one.judgement.kind, one.judgement.numbers, added(one.remedies)) for one in found]
    return done.exit_code, judged


def pushed(file: Path, work: Path, *, as_loaded: bool) -> tuple[Any, ...]:
    work.mkdir()
    try:
        facts, *_ = published(file, "me/style", "zai-org/CogVideoX-2b", {**STATED, "as_loaded": as_loaded}, (), work)
    except LoraforgeError as error:
        return type(error), added(error.remedies)
    return facts.weights, facts.as_trained


def reword(patch: pytest.MonkeyPatch) -> None:
    """Let every sentence be another one from now on."""
    patch.setattr(verdict.Verdict, "text", property(lambda _: "in other words"))
    patch.setattr(errors, "told", lambda _: "a message")
    for kind, field in ((verdict.Verdict, "why"), (Try, "why"), (Scale, "source"), (Rule, "said")):
        patch.setattr(kind, "__init__", in_other_words(kind.__init__, field))


def in_other_words(real: Callable[..., None], field: str) -> Callable[..., None]:
    def init(self: object, *args: object, **given: object) -> None:
        real(self, *args, **given)
        object.__setattr__(self, field, "in other words")

    return init


@pytest.mark.parametrize("name", CASES)
def test_a_reworded_message_changes_no_decision(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, words = CASES[name]
    file, typed = make(tmp_path), [word.replace("{place}", str(tmp_path)) for word in words]

    def decided(run: str) -> list[Any]:
        ways = [pushed(file, tmp_path / f"{run} {as_loaded}", as_loaded=as_loaded) for as_loaded in (False, True)]
        return [diagnosed(file, typed, monkeypatch), *ways]

    before = decided("as it is")
    reword(monkeypatch)
    assert decided("reworded") == before


def test_what_a_header_says_of_the_scale_stands_in_no_command(tmp_path: Path) -> None:
    """A stranger may write `--alpha 4; rm -rf .` where loraforge records who stated the scale."""
    made = loraforge.convert(DATA / "peft_plain", to="diffusers", out=tmp_path / "out", scale_in="metadata")
    file = Path(made.output["path"])
    with safe_open(file, framework="np") as opened:
        header = json.loads(opened.metadata()["loraforge"])
        others = dict(opened.metadata())
    header["scale"] |= {"provenance": "given", "source": "--alpha 4; rm -rf ."}
    save_file(load_file(file), file, others | {"loraforge": json.dumps(header)})
    lines = [
        line
        for program in runtimes()
        for line in loraforge.doctor(file, runtime_=program, architecture="cogvideox").fix
    ]
    assert [line for line in lines if line.startswith("loraforge convert ")]
    assert not [line for line in lines if "rm -rf" in line]


def test_what_the_user_states_stands_in_the_command_with_all_its_digits(tmp_path: Path) -> None:
    file = DATA / "diffusers_save_lora_weights_meta"
    found = loraforge.doctor(file, trained_scale=1 / 3, override_scale=True, architecture="cogvideox")
    (line,) = found.fix[:1]
    assert line.endswith(" --to diffusers --trained-scale 0.333333333333 --override-scale"), found.fix
    done = CliRunner().invoke(
        main, [*shlex.split(line)[1:], "-o", str(tmp_path / "out"), "--architecture", "cogvideox"]
    )
    assert done.exit_code == 0, done.output
