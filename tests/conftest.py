from __future__ import annotations

import pytest
from click.testing import CliRunner, Result
from hypothesis import settings
from oracle import SAT_CASES, Case

from loraforge.cli import main

pytest.register_assert_rewrite("hostile.refusal")
settings.register_profile("default", max_examples=60, deadline=None)
settings.load_profile("default")


@pytest.fixture(params=SAT_CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture
def cli():
    """Run the command line in this process."""

    def run(*words: object) -> Result:
        return CliRunner().invoke(main, [str(word) for word in words])

    return run
