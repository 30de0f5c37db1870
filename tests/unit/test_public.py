"""What others build on keeps its name: exports, commands and options, the kit, schemas."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import loraforge
import loraforge.testing
from loraforge.scale.stated import Stated

LIST = Path(__file__).parents[1] / "data" / "public.json"


def found() -> dict[str, Any]:
    """The public names of this checkout."""
    main = importlib.import_module("loraforge.cli").main

    def verbs(group: click.Group, before: str = "") -> dict[str, list[str]]:
        out = {}
        for name, command in group.commands.items():
            params = [option for param in command.params for option in param.opts]
            out[f"{before}{name}"] = sorted(params)
            out |= verbs(command, f"{before}{name} ") if isinstance(command, click.Group) else {}
        return out

    signatures = {
        name: list(inspect.signature(value).parameters)
        for name in loraforge.__all__
        if inspect.isfunction(value := getattr(loraforge, name))
    }
    return {
        "exports": sorted(loraforge.__all__),
        "parameters": signatures,
        "commands": verbs(main),
        "testing": sorted(n for n in vars(loraforge.testing.FormatConformance) if n.startswith("test")),
        "schemas": sorted(path.name for path in (Path(__file__).parents[2] / "schemas").iterdir()),
    }


@pytest.mark.parametrize("part", ["exports", "commands", "testing", "schemas"])
def test_nothing_public_is_gone(part: str) -> None:
    assert found()[part] == json.loads(LIST.read_text("utf-8"))[part]


def test_no_parameter_is_gone_and_those_given_by_position_keep_their_place() -> None:
    now, listed = found()["parameters"], json.loads(LIST.read_text("utf-8"))["parameters"]
    assert {name: set(words) for name, words in now.items()} == {name: set(words) for name, words in listed.items()}
    for name, words in listed.items():
        kinds = inspect.signature(getattr(loraforge, name)).parameters.values()
        placed = [each.name for each in kinds if each.kind is each.POSITIONAL_OR_KEYWORD]
        assert words[: len(placed)] == placed


STATING = ["convert", "doctor", "fuse", "load_into", "push", "read", "run", "stamp", "verify"]


@pytest.mark.parametrize("name", STATING)
def test_a_keyword_of_no_verb_is_refused_at_once(name: str) -> None:
    with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected keyword argument 'trained_skale'$"):
        getattr(loraforge, name)("no such file", "diffusers", trained_skale=1)


@pytest.mark.parametrize("name", STATING)
def test_help_lists_what_can_be_stated_and_says_where_it_is_documented(name: str) -> None:
    verb = getattr(loraforge, name)
    parameters = inspect.signature(verb).parameters
    assert parameters.keys() >= Stated.__annotations__.keys()
    assert all(parameters[key].default in (None, False) for key in Stated.__annotations__)
    assert "stated" not in parameters
    where = re.search(r"help\('(.+)\.(.+)'\)", verb.__doc__)
    assert where
    text = getattr(importlib.import_module(where[1]), where[2]).__doc__
    assert all(f"    {key}: " in text for key in Stated.__annotations__)


@pytest.mark.parametrize("name", sorted({*STATING} - {"load_into", "read"}))
def test_a_command_has_an_option_for_each_that_can_be_stated(name: str) -> None:
    options = found()["commands"][name]
    assert {f"--{key.replace('_', '-')}" for key in Stated.__annotations__} <= {*options}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(found(), indent=1, sort_keys=True) + "\n")
