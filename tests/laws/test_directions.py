"""Laws of conversion between files: the way taken does not matter, and back is back."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from helpers.tolerance import UPDATE, share
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

import loraforge
from loraforge.format.locate import locate
from loraforge.scale.rule import Choice

HIDDEN = 8
TARGETS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0")
TYPES = {"fp32": np.float32, "bf16": ml_dtypes.bfloat16, "fp16": np.float16}


@st.composite
def adapters(draw: st.DrawFn, *, one_rank: bool = False, powers: bool = True) -> dict[str, Any]:
    """A PEFT folder's content: tensors, and a configuration with a rank and an alpha per module."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    dtype = TYPES[draw(st.sampled_from(list(TYPES) if powers else ["fp32"]))]
    paths = [
        f"transformer_blocks.{i}.{t}"
        for i in draw(st.sets(st.integers(0, 11), min_size=1, max_size=3))
        for t in TARGETS
    ]
    chosen = draw(st.sets(st.sampled_from(paths), min_size=1))
    shared = draw(st.sampled_from([1, 2, 4]))
    tensors, ranks, alphas = {}, {}, {}
    for path in sorted(chosen):
        rank = shared if one_rank else draw(st.sampled_from([1, 2, 4] if powers else [1, 2, 3, 5]))
        scaling = draw(st.sampled_from([0.25, 0.5, 1.0, 2.0] if powers else [0.3, 0.5, 1.7]))
        tensors[f"base_model.model.{path}.lora_A.weight"] = random.standard_normal((rank, HIDDEN)).astype(dtype)
        tensors[f"base_model.model.{path}.lora_B.weight"] = random.standard_normal((HIDDEN, rank)).astype(dtype)
        ranks[path], alphas[path] = rank, scaling * rank
    return {"tensors": tensors, "ranks": ranks, "alphas": alphas}


def write(adapter: dict[str, Any], folder: Path) -> Path:
    folder.mkdir()
    config = {
        "peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": list(adapter["ranks"]),
        "rank_pattern": {f"^{path}": rank for path, rank in adapter["ranks"].items()},
        "alpha_pattern": {f"^{path}": alpha for path, alpha in adapter["alphas"].items()},
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    save_file(adapter["tensors"], folder / "adapter_model.safetensors")
    return folder


def dense(source: Path) -> dict[tuple, np.ndarray]:
    """(segment, block) -> the update in float64; zero ones left out."""
    from loraforge.adapter.relayout import to_segments
    from loraforge.names.catalog import architecture

    form, _, file = locate(source, None, Choice())
    adapter = form.read(file, Choice())
    found = {}
    for place, (_, delta) in to_segments(adapter.modules, architecture("cogvideox"), adapter.layout).items():
        update = np.concatenate([w.scaling * product(w.B.astype(np.float64), w.A.astype(np.float64)) for w in delta])
        if update.any():
            found[place] = update
    return found


def product(B: np.ndarray, A: np.ndarray) -> np.ndarray:
    """B @ A summed one component after the other: a BLAS may sum two ranks, or two heights, in different orders."""
    out = np.zeros((len(B), A.shape[1]))
    for column, row in zip(B.T, A, strict=True):
        out += np.outer(column, row)
    return out


def convert(source: Path, to: str, out: Path, **options: Any) -> Path:
    loraforge.convert(source, to=to, out=out, **({"lora_only": True} if to == "sat" else {}), **options)
    return out


@pytest.mark.parametrize(
    "way", [("diffusers", "peft"), ("sat", "diffusers"), ("sat", "peft"), ("peft", "sat"), ("diffusers", "sat")]
)
@settings(max_examples=15)
@given(adapters())
def test_the_way_does_not_matter(way: tuple[str, str], adapter: dict[str, Any]) -> None:
    """a -> b -> c is a -> c is a, to the last bit of the update: the scales are powers of two."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        source = write(adapter, folder / "a")
        want = dense(source)
        by_b = dense(convert(convert(source, way[0], folder / "b", dtype="fp32"), way[1], folder / "bc"))
        direct = dense(convert(source, way[1], folder / "c", dtype="fp32"))
        assert want.keys() == by_b.keys() == direct.keys()
        for key, update in want.items():
            np.testing.assert_array_equal(by_b[key], update)
            np.testing.assert_array_equal(direct[key], update)


@settings(max_examples=15)
@given(adapters(powers=False), st.permutations(["diffusers", "peft", "sat"]))
def test_any_cycle_keeps_the_update_to_rounding(adapter: dict[str, Any], order: list[str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        here = source = write(adapter, folder / "a")
        for step in (*order, "peft"):
            here = convert(here, step, folder / f"{len(list(folder.iterdir()))}")
        before, after = dense(source), dense(here)
        assert before.keys() == after.keys()
        for key, update in before.items():
            assert share(after[key], update) <= UPDATE
        assert loraforge.verify(source, here).same


@pytest.mark.parametrize("by", ["diffusers", "peft"])
@settings(max_examples=15)
@given(adapters(one_rank=True))
def test_sat_and_back_is_the_same_bytes(by: str, adapter: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        sat = convert(write(adapter, folder / "a"), "sat", folder / "sat")
        back = convert(convert(sat, by, folder / "b"), "sat", folder / "back")
        (_, _, one), (_, _, other) = locate(sat, None, Choice()), locate(back, None, Choice())
        assert one.tensors.keys() == other.tensors.keys()
        before, after = dense(sat), dense(back)
        assert all(share(after[key], update) <= UPDATE for key, update in before.items())
        # float16 may split anew, where the usual split would lose bits of a number that is subnormal then
        for key in (key for key in one.tensors if one.tensors[key].dtype != "F16"):
            assert bytes(one.raw(key)) == bytes(other.raw(key)), key


@settings(max_examples=25)
@given(adapters(), st.data())
def test_verify_accepts_the_same_and_rejects_a_thousandth_of_a_row(
    adapter: dict[str, Any], data: st.DataObject
) -> None:
    tensors = {key: tensor.astype(np.float32) for key, tensor in adapter["tensors"].items()}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        one = write(adapter | {"tensors": tensors}, folder / "a")
        key = data.draw(st.sampled_from([key for key in tensors if ".lora_B." in key]))
        row = data.draw(st.integers(0, HIDDEN - 1))
        bent = tensors[key].copy()
        bent[row] *= 1.001
        other = write(adapter | {"tensors": tensors | {key: bent}}, folder / "b")
        assert loraforge.verify(one, one).same
        found = loraforge.verify(one, other)
        assert not found.same
        assert [(s.module, s.rows_off) for s in found.segments if s.rows_off] == [
            (key.removeprefix("base_model.model.").removesuffix(".lora_B.weight"), 1)
        ]
        assert max(s.worst for s in found.segments) == pytest.approx(1e-3, rel=2)


@settings(max_examples=15)
@given(adapters(), st.sampled_from([2.0, 0.5, 128.0, 1 / 128, 1.3, -1.0]))
def test_verify_names_the_one_factor_between_two_adapters(adapter: dict[str, Any], factor: float) -> None:
    tensors = {key: tensor.astype(np.float32) for key, tensor in adapter["tensors"].items()}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        one = write(adapter | {"tensors": tensors}, folder / "a")
        scaled = {key: (t * np.float32(factor) if ".lora_B." in key else t) for key, t in tensors.items()}
        other = write(adapter | {"tensors": scaled}, folder / "b")
        found = loraforge.verify(one, other)
        assert not found.same
        assert found.strength == pytest.approx(factor, rel=1e-6)
        assert any(line.strip().startswith("B is ") and " x A" in line for line in found.lines())
