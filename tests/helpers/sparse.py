"""Adapters of any size as files without numbers: a header, and a hole where the tensors would be."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from loraforge.names.catalog import architecture
from loraforge.names.layout import Variant

Modules = Mapping[str, tuple[int, ...]]
"""Module path -> shape of its base weight: rows, inputs, and a convolution's kernel."""


def sparse(
    file: Path,
    modules: Modules,
    rank: int = 4,
    *,
    prefix: str = "transformer.",
    spelled: tuple[str, str] = (".lora_A.weight", ".lora_B.weight"),
    metadata: Mapping[str, str] | None = None,
    turned: bool = False,
) -> Path:
    """Write an adapter of these modules in float16, all zero. `turned`: with A and B transposed."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for path, (rows, inputs, *kernel) in modules.items():
        down, up = [rank, inputs, *kernel], [rows, rank, *(1 for _ in kernel)]
        for word, shape in zip(spelled, (down[::-1], up[::-1]) if turned else (down, up), strict=True):
            size = 2
            for side in shape:
                size *= side
            header[f"{prefix}{path}{word}"] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
            end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + end)
    return file


def attention(width: int, blocks: int, first: int = 0, inputs: int | None = None) -> dict[str, tuple[int, ...]]:
    """q, k, v and the output of every block, as CogVideoX, LTX-Video, Sana and others have them in Diffusers."""
    names = ("to_q", "to_k", "to_v", "to_out.0")
    return {
        f"transformer_blocks.{n}.attn1.{name}": (width, inputs or width)
        for n in range(first, first + blocks)
        for name in names
    }


def every_matrix(variant: Variant) -> dict[str, tuple[int, ...]]:
    """What an all-linear adapter of a released CogVideoX adapts, its convolution included."""
    arch = architecture("cogvideox")
    values = {**arch.solved(variant).values, "t": 512}
    found: dict[str, tuple[int, ...]] = {}
    for template, segments in arch.layouts["diffusers"].modules.items():
        if segments[0] in variant.absent or segments[0] in arch.unadapted:
            continue
        sizes = [arch.dimensions[segment] for segment in segments]
        rows = sum(times * values[symbol] for (times, symbol), _ in sizes)
        times, symbol = sizes[0][1]
        shape = rows, times * values[symbol], *variant.shapes.get(segments[0], ())[2:]
        for n in range(variant.blocks if template.holes else 1):
            found[template.fill((("i", n),)) if template.holes else template.text] = shape
    return found


BASE_2B, BASE_5B = "zai-org/CogVideoX-2b", "zai-org/CogVideoX-5b"
