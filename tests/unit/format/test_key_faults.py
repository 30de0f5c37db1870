"""What is wrong with the shapes of one module is said in words, and the adapter is refused."""

from __future__ import annotations

import pytest

from loraforge.errors import FormatError
from loraforge.files.tensorfile import TensorInfo
from loraforge.format import diffusers, sat_names
from loraforge.format.keys import KeyStyle
from loraforge.names.catalog import architecture

LINEAR = "transformer.transformer_blocks.0.attn1.to_q"
QKV = "transformer.layers.0.attention.query_key_value"


def stack(*shapes: tuple[tuple[int, int], tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of a stacked module in SAT's names, from those of A and B of each part."""
    pairs = {f"{QKV}.matrix_A.{n}": pair[0] for n, pair in enumerate(shapes)}
    return pairs | {f"{QKV}.matrix_B.{n}": pair[1] for n, pair in enumerate(shapes)}


@pytest.mark.parametrize(
    ("style", "layout", "shapes", "message"),
    [
        (
            diffusers.STYLE,
            "diffusers",
            {f"{LINEAR}.lora_A.weight": (4, 8, 2, 1), f"{LINEAR}.lora_B.weight": (8, 4, 1, 1)},
            "is no convolution, and its A has shape [4, 8, 2, 1]",
        ),
        (sat_names.STYLE, "sat", stack(((4, 8), (8, 4)), ((4, 8), (8, 4)), ((4, 8), (6, 4))), "have [8, 8, 6] rows"),
        (sat_names.STYLE, "sat", stack(((4, 8), (8, 4)), ((4, 8), (8, 4)), ((4, 6), (8, 4))), "have [6, 8] inputs"),
    ],
    ids=["kernel of a linear", "rows", "inputs"],
)
def test_shapes_of_one_module(style: KeyStyle, layout: str, shapes: dict[str, tuple[int, ...]], message: str) -> None:
    tensors = {key: TensorInfo("F32", shape, 0) for key, shape in shapes.items()}
    with pytest.raises(FormatError) as refusal:
        style.find(tensors, architecture("cogvideox"), layout)
    assert message in refusal.value.message
