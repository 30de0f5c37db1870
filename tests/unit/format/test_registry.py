"""What the plugins add, and what is wrong with them, is the same whatever is asked first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from itertools import permutations
from pathlib import Path

import pytest
from helpers import plugin

import loraforge
from loraforge.format.registry import broken, known_plugins, owners
from loraforge.fusion.choose import backends
from loraforge.names.catalog import architectures, read_data_files
from loraforge.plugin.registry import Registry, current, use

FAULTY = """
from loraforge import hookimpl
from loraforge.fusion.with_numpy import NumpyBackend

@hookimpl
def loraforge_formats():
    return [object()]

@hookimpl
def loraforge_architectures():
    return [7]

@hookimpl
def loraforge_fusion_backends():
    return [object(), NumpyBackend()]
"""
FILES = {
    "faulty.py": FAULTY,
    "broken.py": "import a_module_that_is_not_there",
    "raising.py": plugin.HOOK.format(hook="loraforge_fusion_backends", body="raise ValueError('no such luck')"),
    "kohya.toml": plugin.KOHYA,
    "again.toml": plugin.KOHYA,
    "nowhere.toml": plugin.KOHYA.replace('"diffusers"', '"klingon"'),
    "typing.toml": "[format]\nname = 'x'\n",
    "taken.toml": plugin.DIFFSYNTH.replace("layouts.toy", "layouts.sat"),
}
QUESTIONS: dict[str, Callable[[], object]] = {
    "formats": lambda: {name: (form.summary, owners()[name]) for name, form in loraforge.formats().items()},
    "architectures": lambda: {name: [*arch.layouts] for name, arch in architectures().items()},
    "backends": lambda: {name: backend.summary for name, backend in backends().items()},
    "data files": lambda: [(file.owner, file.name) for file in current().read(read_data_files).value],
    "broken": lambda: [asdict(one) for one in broken()],
}
SAID = {
    "faulty": ["which is no TOML file", "that is no format", "that is no backend", "a fusion backend 'numpy' already"],
    "broken": ["a_module_that_is_not_there"],
    "raising": ["no such luck"],
    "again": ["format 'toy-kohya' is already added by kohya"],
    "nowhere": ["there is no layout cogvideox/klingon"],
    "typing": ["format lacks"],
    "taken": ["cogvideox has a layout sat already"],
}


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, ...]:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tuple(tmp_path / name for name in FILES)


def test_the_order_of_questions_changes_no_answer(files: tuple[Path, ...]) -> None:
    answers = []
    for order in permutations(QUESTIONS):
        use(Registry(files))
        answers.append({name: QUESTIONS[name]() for name in order})
    assert all(answer == answers[0] for answer in answers)


def test_all_that_is_wrong_is_told_whoever_asks(files: tuple[Path, ...]) -> None:
    use(Registry(files))
    faults = {one.name: one.errors for one in broken()}
    assert faults.keys() == SAID.keys()
    for name, words in SAID.items():
        assert len(faults[name]) == len(words)
        assert all(part in text for part, text in zip(words, faults[name], strict=True)), faults[name]
    assert known_plugins()["kohya"].adds == ("format toy-kohya",)
    assert "format sat" in known_plugins()["loraforge"].adds
    assert "fusion backend numpy" in known_plugins()["loraforge"].adds


def test_a_registry_that_is_not_in_use_is_read_for_itself(files: tuple[Path, ...]) -> None:
    loraforge.use_plugin(files[3])
    assert "toy-kohya" in loraforge.formats()
    use(Registry())
    assert "toy-kohya" not in loraforge.formats() and not broken()
