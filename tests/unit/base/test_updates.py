"""Which rows get which update: blocks of several adapters, pieces of a tensor, rows that nobody touches."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.oracle import DATA, Case
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import torch as torch_file
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.algebra.lora import Delta, LoraWeight
from loraforge.base import stream
from loraforge.base.updates import _runs

FILE = "diffusion_pytorch_model.safetensors"
ROWS, WIDTH = 24, 5


@st.composite
def deltas(draw: st.DrawFn) -> Delta:
    """An update of ROWS rows, in blocks of any heights, some of rank 0."""
    cuts = sorted(draw(st.sets(st.integers(1, ROWS - 1), max_size=4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    blocks = []
    for start, stop in zip([0, *cuts], [*cuts, ROWS], strict=True):
        rank = draw(st.integers(0, 3))
        A, B = rng.standard_normal((rank, WIDTH)), rng.standard_normal((stop - start, rank))
        blocks.append(LoraWeight(A, B, draw(st.sampled_from([0.5, 1.0]))))
    return tuple(blocks)


def dense(delta: Delta) -> np.ndarray:
    return np.concatenate([w.scaling * w.B @ w.A for w in delta])


@given(st.lists(st.tuples(deltas(), st.sampled_from([1.0, -0.5, 0.0])), min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_every_row_gets_the_updates_of_every_adapter(adapters: list[tuple[Delta, float]]) -> None:
    want = sum(strength * dense(delta) for delta, strength in adapters)
    got, taken = np.zeros((ROWS, WIDTH)), np.zeros(ROWS, int)
    for (first, last), terms in _runs(adapters):
        taken[first:last] += 1
        for term in terms:
            assert term.weight.rows == last - first
            got[first:last] += term.scaling * term.weight.B @ term.weight.A
    assert np.allclose(got, want)
    assert taken.max(initial=0) <= 1
    assert not want[taken == 0].any()


def test_a_tensor_in_many_pieces_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row blocks inside SAT's fused matrix too, each cut at every second row."""
    run = Case("sat_2b_r4").run(tmp_path)
    for base in (DATA / "bases" / "2b", DATA / "bases" / "2b" / "sat_base"):
        whole = loraforge.fuse(base, [run], tmp_path / base.name / "whole", dtype="fp32")
        monkeypatch.setattr(stream, "ELEMENTS", 2 * 64)
        monkeypatch.setattr(stream, "PIECE", 100)
        pieces = loraforge.fuse(base, [run], tmp_path / base.name / "pieces", dtype="fp32")
        monkeypatch.undo()
        assert pieces.total.relative_size == pytest.approx(whole.total.relative_size, rel=1e-6)
        for folder in ("whole", "pieces"):
            if base.name == "sat_base":
                loraforge.convert_base(tmp_path / base.name / folder, "diffusers", tmp_path / base.name / f"{folder}-d")
            else:
                shutil.copytree(tmp_path / base.name / folder, tmp_path / base.name / f"{folder}-d")
        one, other = (load_file(tmp_path / base.name / f"{folder}-d" / FILE) for folder in ("whole", "pieces"))
        assert all(np.abs(one[key] - other[key]).max() <= 1e-6 for key in one)


def edited(place: Path, **tensors: np.ndarray | None) -> Path:
    """The tiny 2B base in float32 with other tensors; None takes one away."""
    base = Path(shutil.copytree(DATA / "bases" / "2b", place, ignore=shutil.ignore_patterns("sat_base", "inputs*")))
    loraforge.convert_base(DATA / "bases" / "2b" / "sat_base", "diffusers", place.parent / "fp32", force=True)
    held = {**load_file(place.parent / "fp32" / FILE), **tensors}
    save_file({key: tensor for key, tensor in held.items() if tensor is not None}, base / FILE, {"format": "pt"})
    return base


def test_opposite_updates_keep_a_negative_zero(tmp_path: Path) -> None:
    key = "transformer_blocks.0.attn1.to_q.weight"
    base = edited(tmp_path / "base", **{key: np.full((64, 64), -0.0, np.float32)})
    run = Case("sat_2b_r4").run(tmp_path)
    loraforge.fuse(base, [run, run], tmp_path / "out", strength=[1, -1])
    assert np.signbit(load_file(tmp_path / "out" / FILE)[key]).all()


def test_a_number_that_is_none_is_found_where_nothing_is_changed(tmp_path: Path) -> None:
    bias = np.zeros(64, np.float32)
    bias[7] = -np.inf
    base = edited(tmp_path / "base", **{"norm_final.bias": bias})
    with pytest.raises(loraforge.LoraforgeError, match=r"norm_final\.bias of the base model contains NaN"):
        loraforge.fuse(base, [Case("sat_2b_r4").run(tmp_path)], tmp_path / "out")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("out")]


def test_nor_is_it_kept_where_it_is_only_stored_in_another_type(tmp_path: Path) -> None:
    """bf16 into fp32 rounds nothing, and still looks at every number; so does a tensor that is not contiguous."""
    file = tmp_path / "base.pt"
    held = torch.load(next((DATA / "bases/2b/sat_base").glob("*/*.pt")), weights_only=True)["module"]
    key = "model.diffusion_model.time_embed.2.weight"
    held[key][3, 4] = float("nan")
    for name, tensor in (("plain", held[key]), ("strided", held[key].T.clone().T)):
        torch.save({"module": {**held, key: tensor}}, file)
        for dtype in ("keep", "fp16"):
            with pytest.raises(loraforge.LoraforgeError, match=r"time_embed\.2\.weight of the base model contains NaN"):
                loraforge.fuse(file, [Case("sat_2b_r4").run(tmp_path / name / dtype)], tmp_path / "o.pt", dtype=dtype)
    base = Path(shutil.copytree(DATA / "bases" / "2b", tmp_path / "base", ignore=shutil.ignore_patterns("sat_base")))
    tensors = torch_file.load_file(base / FILE)
    tensors["norm_final.bias"][0] = float("inf")
    torch_file.save_file(tensors, base / FILE, {"format": "pt"})
    with pytest.raises(loraforge.LoraforgeError, match=r"norm_final\.bias of the base model contains NaN"):
        loraforge.convert_base(base, "sat", tmp_path / "sat", dtype="fp32")


@pytest.mark.parametrize("key", ["norm_final.bias", "proj_out.weight", "transformer_blocks.1.norm1.norm.weight"])
def test_a_base_that_lacks_a_parameter_is_not_whole(tmp_path: Path, key: str) -> None:
    base = edited(tmp_path / "base", **{key: None})
    with pytest.raises(loraforge.LoraforgeError, match=f"not whole: there is no {key}"):
        loraforge.convert_base(base, "sat", tmp_path / "out")


def test_another_width_is_refused_with_what_it_is_for(tmp_path: Path) -> None:
    stem = "transformer.transformer_blocks.0.attn1.to_q"
    factors = {f"{stem}.lora_A.weight": np.ones((4, 3072)), f"{stem}.lora_B.weight": np.ones((3072, 4))}
    save_file({key: a.astype(np.float16) for key, a in factors.items()}, tmp_path / "wide.safetensors")
    said = r"to_q is \[64, 64\], not \[3072, 3072\]\. It is for CogVideoX-5B or"
    with pytest.raises(loraforge.LoraforgeError, match=said):
        loraforge.fuse(DATA / "bases" / "2b", [tmp_path / "wide.safetensors"], tmp_path / "out", as_loaded=True)


def test_a_base_that_lies_where_the_work_would_is_left_alone(tmp_path: Path) -> None:
    base, run = edited(tmp_path / "x.partial"), Case("sat_2b_r4").run(tmp_path)
    (base / "loraforge-progress.json").write_text("{}")  # as an earlier, killed run leaves it
    with pytest.raises(loraforge.LoraforgeError, match=r"would replace or lie inside .*x\.partial"):
        loraforge.fuse(base, [run], tmp_path / "x")
    assert (base / FILE).is_file()
