"""The same files, with every sentence of a verdict, a remedy and a scale reworded: what is decided is the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import loraforge
from hostile.doctor_faults import FAULTS, HEALTHY
from loraforge import errors
from loraforge.cli.app import main
from loraforge.diagnosis import verdict
from loraforge.errors import LoraforgeError, Try
from loraforge.publishing.contents import published
from loraforge.scale.rule import Rule, Scale

CASES = {name: (fault.make, fault.words) for name, fault in FAULTS.items()} | HEALTHY
STATED = dict.fromkeys(("alpha", "trained_scale", "trained_by", "training_config", "as_in")) | {
    "override_scale": False, "architecture": "cogvideox", "drop": ()
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
    judged = [(one.judgement.kind, one.judgement.reason, one.judgement.numbers, added(one.remedies)) for one in found]
    return done.exit_code, judged


def pushed(file: Path, work: Path, *, as_loaded: bool) -> tuple[Any, ...]:
    work.mkdir()
    try:
        what = published(file, "me/style", "zai-org/CogVideoX-2b", {**STATED, "as_loaded": as_loaded}, work)
    except LoraforgeError as error:
        return type(error), added(error.remedies)
    return what.weights, what.facts.as_trained


def reword(patch: pytest.MonkeyPatch) -> None:
    """Let every sentence be another one from now on."""
    patch.setattr(verdict, "TEXTS", {key: f"words {n}" for n, key in enumerate(verdict.TEXTS)})
    patch.setattr(verdict, "strength_text", lambda _: "in other words")
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
