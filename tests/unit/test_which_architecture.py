"""Of models that share names, widths and depths, the one that a file says; of none if it says nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import loraforge

FLUX = [f"lora_unet_double_blocks_{i}_img_attn_qkv" for i in range(19)]
"""All of the blocks of Flux.1, and of Chroma."""


def written(file: Path, **header: str) -> Path:
    factors = {"lora_down": np.ones((4, 3072), "f4"), "lora_up": np.ones((3 * 3072, 4), "f4")}
    state = {f"{path}.{name}.weight": array for path in FLUX for name, array in factors.items()}
    save_file(state | {f"{path}.alpha": np.float32([2.0]) for path in FLUX}, file, header or None)
    return file


@pytest.mark.parametrize(("header", "architecture"), [
    ({"ss_base_model_version": "flux1"}, "flux"),
    ({"modelspec.architecture": "Flux.1-dev/lora"}, "flux"),
    ({"ss_base_model_version": "chroma"}, "chroma"),
    ({"base_model": "black-forest-labs/FLUX.1-dev"}, "flux"),
    ({"base_model": "lodestones/Chroma1-HD"}, "chroma"),
])  # fmt: skip
def test_what_a_header_says_decides(header: dict[str, str], architecture: str, tmp_path: Path) -> None:
    adapter = loraforge.read(written(tmp_path / "style.safetensors", **header))
    assert adapter.architecture == architecture and not adapter.rivals
    assert next(iter(header.values())) in adapter.shown


def test_blocks_and_width_that_two_models_have_show_neither(tmp_path: Path) -> None:
    file = written(tmp_path / "style.safetensors")
    adapter = loraforge.read(file)
    assert {adapter.architecture, *adapter.rivals} >= {"flux", "chroma"} and not adapter.shown
    assert loraforge.inspect(file).evidence is None
