"""Alphas that differ from module to module, as in a resized LoRA: each counts for its module, in every flavour."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import loraforge

ORIGINAL = {
    "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.to_{name}" for name in "qkv"],
    "double_blocks.0.img_attn.proj": ["transformer_blocks.0.attn.to_out.0"],
    "double_blocks.1.txt_mlp.2": ["transformer_blocks.1.ff_context.net.2"],
    "single_blocks.0.linear2": ["single_transformer_blocks.0.proj_out"],
}
"""Module in the names of Flux's own code -> those of Diffusers whose rows it stacks."""
WIDTHS = {"txt_mlp.2": 4, "linear2": 5, "ff_context.net.2": 4, "proj_out": 5}
RANKS, ALPHAS = (2, 5, 3, 4, 6, 3), (1.0, 0.37, 16.0, 4.0, 2.5, 0.0625)


def flattened(prefix: str) -> Callable[[str], str]:
    return lambda path: prefix + path.replace(".", "_")


FLAVOURS: dict[str, tuple[Callable[[str], str], bool]] = {
    "kohya": (flattened("lora_unet_"), True),
    "comfyui": ("diffusion_model.{}".format, True),
    "onetrainer": (flattened("lora_transformer_"), False),
    "lycoris": (flattened("lycoris_"), False),
    "videox-fun": (flattened("lora_unet__"), False),
}
"""Flavour with alphas -> how it spells a module, and whether in the names of Flux's own code."""


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.int64])
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_each_module_acts_at_its_own_alpha(flavour: str, kind: Any, tmp_path: Path) -> None:
    spell, original = FLAVOURS[flavour]
    random, file, updates = np.random.default_rng(5), dict[str, np.ndarray](), dict[str, np.ndarray]()
    modules = ORIGINAL if original else {path: [path] for paths in ORIGINAL.values() for path in paths}
    for n, (path, into) in enumerate(modules.items()):
        width = next((w for end, w in WIDTHS.items() if path.endswith(end)), 1) * 8
        alpha = kind(max(ALPHAS[n], 1) if kind is np.int64 else ALPHAS[n])
        A = random.standard_normal((RANKS[n], width)).astype(np.float32)
        B = random.standard_normal((8 * len(into), RANKS[n])).astype(np.float32)
        name = spell(path)
        file |= {f"{name}.lora_down.weight": A, f"{name}.lora_up.weight": B, f"{name}.alpha": np.asarray(alpha)}
        whole = float(alpha) / RANKS[n] * B.astype(np.float64) @ A
        updates |= dict(zip(into, np.split(whole, len(into)), strict=True))
    save_file(file, tmp_path / "x.safetensors")
    out = tmp_path / "y.safetensors"
    report = loraforge.convert(tmp_path / "x.safetensors", from_=flavour, to="diffusers", out=out, architecture="flux")
    assert report.scale.provenance == "recorded" and len(report.scalings) >= 4
    written = load_file(out)
    assert len(written) == 2 * len(updates)
    for path, update in updates.items():
        A, B = (written[f"transformer.{path}.lora_{factor}.weight"].astype(np.float64) for factor in "AB")
        np.testing.assert_allclose(B @ A, update, rtol=0, atol=1e-6 * np.abs(update).max())
