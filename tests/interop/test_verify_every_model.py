"""verify --in of an adapter that has a few modules of a released model, whose base model is not at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import loraforge
from loraforge.names.catalog import architectures

RELEASED = {
    (name, str(variant.shapes), variant.absent): (name, variant.name)
    for name, arch in architectures().items()
    if arch.in_blocks
    for variant in reversed(arch.variants)
}
"""One of those that no shape tells apart."""


@pytest.mark.parametrize(("name", "variant"), RELEASED.values())
def test_the_real_loader_fills_the_modules_of_two_blocks(name: str, variant: str, tmp_path: Path) -> None:
    """Sizes of heads and lists of blocks are not shapes of a LoRA: those of the released model are taken."""
    arch, rng, state = architectures()[name], np.random.default_rng(0), {}
    shapes = next(v.shapes for v in arch.variants if v.name == variant)
    for template, stack in arch.layouts["diffusers"].modules.items():
        shape = shapes.get(stack[0], ())
        if template.holes == {"{i}"} and len(stack) == 1 and len(shape) == 2 and stack[0] not in arch.unadapted:
            for i in range(2):
                path = template.fill((("i", i),))
                state[f"{arch.component}.{path}.lora_A.weight"] = rng.standard_normal((2, shape[1]), np.float32)
                state[f"{arch.component}.{path}.lora_B.weight"] = rng.standard_normal((shape[0], 2), np.float32)
    save_file(state, tmp_path / "style.safetensors")
    result = loraforge.verify(tmp_path / "style.safetensors", in_="diffusers", trained_scale=1, architecture=name)
    assert result.same and len(result.segments) == len(state) // 2 > 0
