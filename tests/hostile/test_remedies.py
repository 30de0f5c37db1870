"""Every line that a refusal tells its reader to type is typed, on the very input that was refused."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hostile import remedies
from hostile.refusals import INPUTS, Refusal, refusals
from hostile.remedies import Ended, Walk, faults, typed, untypable
from loraforge.errors import LoraforgeError, of_pipeline
from loraforge.facts.symptoms import filled, symptoms

EVERY = list(refusals())
TORCH = [refusal for refusal in EVERY if refusal.words[0] == "run" or "--in" in refusal.words]
OTHERS = [refusal for refusal in EVERY if refusal not in TORCH]
PARTS = {"with torch": TORCH, **{str(n): OTHERS[n::20] for n in range(20)}}
"""The tests over which the refusals are spread, for several workers, of which one loads torch."""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and no Hub to be waited for, also where the client was imported by another test."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("loraforge.hub.client._TRIES", 1)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, in which the commands are typed."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("part", PARTS)
def test_what_a_refusal_says_to_type_helps(part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = list[str]()
    for n, refusal in enumerate(PARTS[part]):
        folder = tmp_path / str(n)
        folder.mkdir()
        monkeypatch.chdir(folder)
        _, walk = faults(refusal.typed(folder), folder)
        wrong += [f"{refusal}\n{fault}" for fault in walk.faults]
    assert not wrong, "\n\n".join(wrong)


def test_there_are_enough() -> None:
    assert len(EVERY) >= 400
    assert len({refusal.name for refusal in EVERY}) >= 100


def test_each_scale_that_may_be_meant_converts(place: Path) -> None:
    for name in ("no scale", "no scale, SAT's rank", "no scale, a configuration near", "bare of PEFT"):
        INPUTS[name](place)
        words = ["convert", "run" if "near" in name else "x.safetensors", "--to", "diffusers", "-o", "out"]
        lines = typed(words).lines
        assert len(lines) >= 2, name
        for line in remedies.each(lines):
            done = typed([*line, "--force"])
            assert done.code == 0, (line, done.output)


def test_a_command_that_explain_prints_can_be_typed(place: Path) -> None:
    """With the adapter named, and the base where one must be: each runs to its end on a healthy file."""
    INPUTS["a base, and an adapter"](place)
    templates = {t for entry in symptoms().values() for t in (entry.check_command, entry.fix_command) if t}
    lines = {str(filled(template, "x.safetensors")) for template in templates}
    assert len(lines) >= 8
    for line in sorted(lines):
        words = ["base" if word == "BASE" else word for word in shlex.split(line)[1:]]
        if "--in" in words:  # the real library is asked elsewhere, and takes seconds
            continue
        done = typed(words if "-o" in words or words[0] != "convert" else [*words, "-o", "out"])
        assert done.code in (0, 1) and not done.message.startswith("Usage"), (line, done.output)


@pytest.mark.parametrize("name", ["torch", "diffusers", "imageio"])
def test_what_is_not_installed_is_installed_as_it_is_named(name: str, place: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(LoraforgeError) as caught, of_pipeline("a run"):
        __import__(name)
    (remedy,) = caught.value.remedies
    words = shlex.split(remedy.command)
    assert not untypable(words, place)
    assert not remedies.PROGRAMS["pip"](words, remedy.command, place), remedy.command
    assert set(words[2:]) == remedies.extras()
    assert remedies.PROGRAMS["pip"](["pip", "install", "loraforge[pipeline]"], "", place)  # it is not there yet


# the judge itself


def _run(*ends: tuple[str, Ended]) -> Callable[[list[str]], Ended]:
    table = dict(ends)
    return lambda words: table[shlex.join(words)]


NO = Ended(1, "x.safetensors holds no adapter of any format at all, as far as is known.", ("loraforge b",))
WRONG = {
    "the same words": (NO, ("b", NO)),
    "the same words, with more around": (NO, ("b", Ended(1, f"broken file: {NO.message}"))),
    "a circle": (NO, ("b", Ended(1, "something else", ("loraforge c",))), ("c", NO)),
    "a circle of three": (
        NO, ("b", Ended(1, "other", ("loraforge c",))), ("c", Ended(1, "third", ("loraforge d",))), ("d", NO)
    ),
    "no such option": (NO, ("b", Ended(2, "No such option"))),
    "a fault of ours": (NO, ("b", Ended(70, "loraforge has a fault here"))),
    "a placeholder": (Ended(1, "no", ("loraforge fuse BASE x -o out",)),),
    "a placeholder that is a name of a file": (Ended(1, "no", ("loraforge layouts check LAYOUT.toml",)),),
    "a comment": (Ended(1, "no", ("# set the weight to 1",)),),
    "options alone": (Ended(1, "no", ("--iteration 1000",)),),
    "Python": (Ended(1, "no", ("pipe.load(x)",)),),
    "it drops the scale": (Ended(1, "no", ("loraforge b --drop '*.alpha'",)), ("b --drop '*.alpha'", Ended(0))),
    "it removes what is elsewhere": (Ended(1, "no", ("rm ../x",)),),
    "it helps nothing": (Ended(1, "no", ("mkdir new",)), ("a", Ended(1, "no", ("mkdir new",)))),
    "it cannot run": (Ended(1, "no", ("rm nowhere",)),),
    "it installs what is not there": (Ended(1, "no", ("pip install 'loraforge[pipeline]'",)),),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_remedy_that_does_not_help_is_found(name: str, place: Path) -> None:
    first, *others = WRONG[name]
    walk = Walk(place, _run(("a", first), *others))
    walk.remedies(["a"], first)
    assert walk.faults


RIGHT = {
    "it succeeds": (NO, ("b", Ended(0))),
    "another refusal, and then it succeeds": (NO, ("b", Ended(1, "other", ("loraforge c",))), ("c", Ended(0))),
    "a folder is made, and then it succeeds": (Ended(1, "no", ("mkdir -p new/one",)), ("a", Ended(0))),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_remedy_that_helps_is_none(name: str, place: Path) -> None:
    first, *others = RIGHT[name]
    walk = Walk(place, _run(("a", first), *others))
    assert walk.remedies(["a"], first)
    assert not walk.faults
    assert not os.listdir(place)


def test_a_command_that_is_not_refused_belongs_into_no_corpus(place: Path) -> None:
    done = Refusal("a list", lambda _: None, ("formats",))
    assert faults(done.typed(place), place)[1].faults
