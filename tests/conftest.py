from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from helpers.oracle import SAT_CASES, Case
from hypothesis import settings

from loraforge.cli.app import main
from loraforge.plugin.registry import Registry, current, use

# What is installed beside loraforge must not change its own tests; those of plugins ask for them.
os.environ["LORAFORGE_PLUGINS"] = ""
pytest.register_assert_rewrite("hostile.refusal")
settings.register_profile("default", max_examples=60, deadline=None)
settings.load_profile("default")


@pytest.fixture(params=SAT_CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch):
    """Run the command line in this process, where no Hub is there to be waited for."""
    monkeypatch.setattr("loraforge.hub.client._TRIES", 1)

    def run(*words: object) -> Result:
        return CliRunner().invoke(main, [str(word) for word in words])

    return run


@pytest.fixture
def hub():
    """A Hub on loopback, of this test only."""
    from helpers.hub import Hub

    with Hub() as hub:
        yield hub


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A tiny real pipeline as pipelines.pipeline_folder writes it. Only to read: the session shares it."""
    made: dict[Any, Path] = {}

    def folder(kind: str, **options: Any) -> Path:
        from helpers.pipelines import pipeline_folder  # needs torch, which most tests do without

        key = (kind, *sorted(options.items()))
        if key not in made:
            made[key] = pipeline_folder(kind, tmp_path_factory.mktemp("pipelines") / kind, **options)
        return made[key]

    return folder


@pytest.fixture(autouse=True)
def no_plugins_of_this_machine(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """No user's own plugins in a test, and none of one test in the next."""
    for name in ("XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(tmp_path_factory.getbasetemp() / name.lower()))
    yield
    if current().files:
        use(Registry())
