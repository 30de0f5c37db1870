"""A base model through the graph: what is refused, and what is not copied."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.carry import carry

from loraforge.errors import ConversionError
from loraforge.names.bijection import parse
from loraforge.names.catalog import architecture
from loraforge.names.layout import Architecture

ARCH = architecture("cogvideox")
VARIANTS = {variant.name: variant for variant in ARCH.variants}
TWO_B = [VARIANTS["CogVideoX-2B"]]
BLOCK = "transformer.layers.3.attention"
POSITIONS = {"mixins.pos_embed.pos_embedding": np.zeros((1, 5, 4))}


def numbers(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def to_diffusers(base: dict, variants=TWO_B) -> tuple[dict, dict]:
    return carry(base, ARCH, "sat", "diffusers", variants)


def to_sat(base: dict) -> tuple[dict, dict]:
    return carry(base, ARCH, "diffusers", "sat", TWO_B)


def refused(base: dict, said: str, variants=TWO_B, source: str = "sat", target: str = "diffusers") -> None:
    with pytest.raises(ConversionError, match=said):
        carry(base, ARCH, source, target, variants)


def test_rows_are_cut_and_stacked_without_needless_copies() -> None:
    fused, bias, dense = numbers(6, 2), numbers(6), numbers(2, 2)
    base = {
        f"{BLOCK}.query_key_value.weight": fused,
        f"{BLOCK}.query_key_value.bias": bias,
        f"{BLOCK}.dense.weight": dense,
    }
    out, dropped = to_diffusers(base)
    assert dropped == {}
    stem = "transformer_blocks.3.attn1"
    assert out.keys() == {f"{stem}.to_{x}.{p}" for x in "qkv" for p in ("weight", "bias")} | {f"{stem}.to_out.0.weight"}
    assert out[f"{stem}.to_k.weight"].tolist() == [[4, 5], [6, 7]]
    assert out[f"{stem}.to_v.bias"].tolist() == [4, 5]
    assert np.shares_memory(out[f"{stem}.to_k.weight"], fused)
    assert np.shares_memory(out[f"{stem}.to_out.0.weight"], dense)
    back, _ = to_sat(out)
    assert {key: array.tolist() for key, array in back.items()} == {k: a.tolist() for k, a in base.items()}


def test_learned_positions_are_carried_and_computed_ones_dropped() -> None:
    out, dropped = to_diffusers(POSITIONS, [VARIANTS["CogVideoX-5B-I2V"]])
    assert list(out) == ["patch_embed.pos_embedding"]
    assert dropped == {}
    out, dropped = to_diffusers(POSITIONS, TWO_B)
    assert out == {}
    assert "computes from its configuration" in dropped["mixins.pos_embed.pos_embedding"]
    refused(POSITIONS, "needless in CogVideoX-2B, of which it is not known whether this is one", ARCH.variants[:3:2])


def test_other_keys_of_the_same_module_are_dropped_in_every_variant() -> None:
    base = {"mixins.pos_embed.freqs_sin": numbers(2), "mixins.pos_embed.freqs_cos": numbers(2)}
    for variants in ([VARIANTS["CogVideoX-5B-I2V"]], TWO_B, ARCH.variants):
        out, dropped = to_diffusers(base, variants)
        assert out == {}
        assert dropped.keys() == base.keys()


def test_a_segment_only_some_candidates_have_is_carried() -> None:
    """Its presence is the evidence; nothing says that it may be dropped."""
    base = {"ofs_embed.0.weight": numbers(2, 2)}
    assert list(to_diffusers(base, ARCH.variants)[0]) == ["ofs_embedding.linear_1.weight"]
    refused(base, "ofs_embed.0.weight: CogVideoX-2B has no ofs1")


def test_unknown_keys_are_listed() -> None:
    base = {f"{BLOCK}.dense.weight": numbers(2, 2), "nonsense.0": numbers(2), f"{BLOCK}.dense.running_mean": numbers(2)}
    refused(base, rf"nonsense\.0, {BLOCK}\.dense\.running_mean: no parameter of CogVideoX in layout sat")
    refused({"weight": numbers(2)}, "weight: no parameter")
    refused({"mixins.pos_embed.weight": numbers(2)}, "no parameter", [VARIANTS["CogVideoX-5B-I2V"]])
    refused({"patch_embed.pos_embedding": numbers(1, 2, 2)}, "CogVideoX-2B has no pos", TWO_B, "diffusers", "sat")


def test_no_variant_is_no_answer() -> None:
    refused({}, "no released CogVideoX has these shapes", [])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"to_k": None}, r"query_key_value\.weight: k is missing"),
        ({"to_k": numbers(3, 2)}, r"to_q\.weight \[2, 2\].* do not stack"),
        ({"to_k": numbers(2, 3)}, "do not stack"),
        ({"to_k": np.float32(1)}, r"to_k\.weight \[\] cannot be shared by k"),
    ],
)
def test_what_does_not_stack_is_refused(change: dict, said: str) -> None:
    parts = {f"to_{x}": numbers(2, 2) for x in "qkv"} | change
    base = {f"transformer_blocks.0.attn1.{x}.weight": np.asarray(a) for x, a in parts.items() if a is not None}
    refused(base, said, TWO_B, "diffusers", "sat")


def test_what_does_not_divide_is_refused() -> None:
    refused({f"{BLOCK}.query_key_value.weight": numbers(7, 2)}, r"\[7, 2\] cannot be shared by q, k, v")


def test_a_layout_without_the_segment_is_refused_and_ratios_are_kept() -> None:
    toy: Architecture = parse(
        {
            "architecture": "toy",
            "title": "toy",
            "segments": ["a", "mlp"],
            "rows": {"mlp": 4},
            "variants": {"v": {"repo": "x/y", "blocks": 1}},
            "layouts": {
                "fused": {"modules": {"x": ["a", "mlp"]}},
                "split": {"modules": {"a": ["a"], "mlp": ["mlp"]}},
                "less": {"modules": {"a": ["a"]}, "absent": ["mlp"]},
            },
        },
        "toy.toml",
    )
    base = {"x.weight": numbers(10, 1)}
    out, _ = carry(base, toy, "fused", "split", toy.variants)
    assert [len(array) for array in out.values()] == [2, 8]
    assert carry(out, toy, "split", "fused", toy.variants)[0]["x.weight"].tolist() == base["x.weight"].tolist()
    with pytest.raises(ConversionError, match=r"layout less has no place for x\.weight"):
        carry(base, toy, "fused", "less", toy.variants)
    with pytest.raises(ConversionError, match="do not stack"):
        carry({"a.weight": numbers(2, 1), "mlp.weight": numbers(4, 1)}, toy, "split", "fused", toy.variants)
