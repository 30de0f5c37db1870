"""Beside whichever transformers, Diffusers and PEFT are installed: convert, and ask the real loaders."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from helpers.oracle import Case

CASES = ("sat_2b_r4", "peft_patterns", "peft_dora", "diffusers_save_lora_weights_meta")


@pytest.mark.parametrize("loader", ["diffusers", "peft"])
@pytest.mark.parametrize("scale_in", ["tensors", "metadata"])
@pytest.mark.parametrize("name", CASES)
def test_the_loader_has_what_was_written(name: str, scale_in: str, loader: str, tmp_path: Path, cli: Any) -> None:
    case = Case(name)
    source = case.run(tmp_path) if name.startswith("sat") else case.source
    said = ["--scale-in", scale_in] if loader == "diffusers" else []
    assert cli("convert", source, "--to", loader, "-o", tmp_path / "out", *said).exit_code == 0
    done = cli("verify", source, tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    done = cli("verify", tmp_path / "out", "--in", loader, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["same"]


@pytest.mark.skipif("LORAFORGE_OLDEST" not in os.environ, reason="make oldest makes the environment")
def test_it_is_the_environment_that_is_meant() -> None:
    """What transformers 4 wants and what loraforge wants fit together, and pip found it."""
    from importlib.metadata import version

    assert version("transformers").startswith("4.")
    assert version("huggingface_hub").startswith("0.")
    assert version("diffusers").startswith("0.35.")
