"""A LoRA of a norm, or of a table of positions, is refused by the name of the module."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.sat import PREFIX, lora_tensors, write_run
from safetensors.numpy import save_file

import loraforge
from loraforge.errors import FormatError
from loraforge.names.catalog import architecture

LAYOUT = architecture("cogvideox").layouts["diffusers"]


@pytest.mark.parametrize(
    ("module", "what"),
    [
        (template.text.replace("{i}", "0"), architecture("cogvideox").unadapted[segments[0]])
        for template, segments in LAYOUT.modules.items()
        if segments[0] in architecture("cogvideox").unadapted
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_it_is_refused_by_name(module: str, what: str, alone: bool, tmp_path: Path) -> None:
    paths = [module] if alone else [module, "transformer_blocks.0.attn1.to_q"]
    pair = {"lora_A": np.ones((2, 64), np.float32), "lora_B": np.ones((64, 2), np.float32)}
    tensors = {f"transformer.{path}.{factor}.weight": array for path in paths for factor, array in pair.items()}
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_file(tensors, file)
    with pytest.raises(FormatError, match=re.escape(f"{module} is a {what}, which no LoRA adapts")) as caught:
        loraforge.convert(file, to="sat", out=tmp_path / "out", lora_only=True, alpha=2)
    assert caught.value.message.count("which no LoRA adapts") == 1
    assert not (tmp_path / "out").exists()


def test_in_a_sat_run_too(tmp_path: Path) -> None:
    stem = f"{PREFIX}transformer.layers.0.input_layernorm"
    tensors = lora_tensors(range(1), 64, 4)
    tensors |= {f"{stem}.matrix_A.0": torch.ones(4, 64), f"{stem}.matrix_B.0": torch.ones(64, 4)}
    run = write_run(tmp_path, tensors, lora={"r": 4})
    with pytest.raises(FormatError, match=r"layers\.0\.input_layernorm is a norm, which no LoRA adapts"):
        loraforge.convert(run, to="diffusers", out=tmp_path / "out")
