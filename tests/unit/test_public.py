"""What others build on keeps its name: exports, commands and options, the kit, schemas."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import click
import pytest

import loraforge
import loraforge.testing

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


@pytest.mark.parametrize("part", ["exports", "parameters", "commands", "testing", "schemas"])
def test_nothing_public_is_gone(part: str) -> None:
    assert found()[part] == json.loads(LIST.read_text("utf-8"))[part]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(found(), indent=1, sort_keys=True) + "\n")
