"""Laws of fusing, on random weights: the report is what anybody computes, and backends agree within one rounding."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loraforge.algebra.half import widen
from loraforge.algebra.lora import LoraWeight
from loraforge.base.retention import retention
from loraforge.fusion.backend import Sums, Term
from loraforge.fusion.choose import backends, choose
from loraforge.fusion.with_numpy import NumpyBackend
from loraforge.fusion.with_torch import TorchBackend

TYPES: dict[str, Any] = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}
EPS = {"bf16": 2.0**-8, "fp16": 2.0**-11, "fp32": 2.0**-24}


@st.composite
def fusions(draw: st.DrawFn) -> dict[str, Any]:
    """Weights, one to three terms, and the type of the result. Half of the terms are DoRA."""
    rows, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    kind = draw(st.sampled_from(sorted(TYPES)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    factor = TYPES[draw(st.sampled_from(sorted(TYPES)))]
    terms = []
    for _ in range(draw(st.integers(1, 3))):
        rank, dora = draw(st.integers(1, 5)), draw(st.booleans())
        A, B = (
            rng.standard_normal((rank, width)),
            rng.standard_normal((rows, rank)) * draw(st.sampled_from([1e-3, 0.3])),
        )
        magnitude = (0.5 + rng.random(rows)).astype(np.float32) if dora else None
        scaling = draw(st.sampled_from([1 / 128, 0.5, 1.0]))
        terms.append(
            Term(
                LoraWeight(A.astype(factor), B.astype(factor), scaling, magnitude),
                draw(st.sampled_from([1.0, -0.5, 2.0])),
            )
        )
    weight = rng.standard_normal((rows, width)).astype(TYPES[kind])
    return {"weight": weight, "terms": terms, "kind": kind, "to": draw(st.sampled_from([kind, "fp32"]))}


def ideal(weight: np.ndarray, terms: list[Term]) -> np.ndarray:
    """The whole update in float64, written down from the definition of LoRA and of DoRA."""
    W, total = widen(weight), np.zeros(weight.shape)
    for term in terms:
        w = term.weight
        low = w.scaling * term.strength * (widen(w.B) @ widen(w.A))
        if w.magnitude is None:
            total += low
        else:
            V = W + low
            total += w.magnitude.astype(np.float64)[:, None] * V / np.linalg.norm(V, axis=1)[:, None] - W
    return total


@given(fusions())
@settings(max_examples=150, deadline=None)
@pytest.mark.parametrize("backend", [NumpyBackend(), TorchBackend()], ids=lambda b: b.name)
def test_one_rounding_and_the_numbers_of_the_report(backend: Any, case: dict[str, Any]) -> None:
    W, D = widen(case["weight"]), ideal(case["weight"], case["terms"])
    fused, sums = backend.fuse(case["weight"], case["terms"], TYPES[case["to"]], "cpu")
    assert fused.dtype == TYPES[case["to"]]
    size = np.abs(W) + np.abs(D)
    slack = 1e-5 * size.max() + 6e-8  # of the sums in float32, and float16's smallest number
    assert (np.abs(widen(fused) - (W + D)) <= EPS[case["to"]] * np.abs(W + D) + slack).all()
    # the report, from nothing but the stored numbers and the definition
    kept = widen(fused) - W
    found = retention("x", sums)
    assert sums.entries == W.size
    assert found.unchanged == (widen(fused) == W).mean()
    assert found.relative_size == pytest.approx(np.linalg.norm(D) / np.linalg.norm(W), rel=1e-3, abs=1e-6)
    noise = 1e-5 * np.linalg.norm(size) / np.linalg.norm(D)
    assert found.relative_error == pytest.approx(np.linalg.norm(kept - D) / np.linalg.norm(D), rel=1e-3, abs=noise)
    if kept.any():
        cosine = (kept * D).sum() / np.linalg.norm(kept) / np.linalg.norm(D)
        assert found.cosine == pytest.approx(cosine, abs=1e-3)


@given(fusions())
@settings(max_examples=100, deadline=None)
def test_backends_agree_within_one_rounding(case: dict[str, Any]) -> None:
    one, ours = NumpyBackend().fuse(case["weight"], case["terms"], TYPES[case["to"]], "cpu")
    two, theirs = TorchBackend().fuse(case["weight"], case["terms"], TYPES[case["to"]], "cpu")
    size = np.abs(widen(case["weight"])) + np.abs(ideal(case["weight"], case["terms"]))
    assert (
        np.abs(widen(one) - widen(two)) <= 2 * EPS[case["to"]] * np.abs(widen(one)) + 2e-6 * size.max() + 1.2e-7
    ).all()
    assert ours.base == pytest.approx(theirs.base, rel=1e-5)
    assert ours.ideal == pytest.approx(theirs.ideal, rel=1e-3, abs=1e-9)


@given(fusions(), st.integers(1, 39))
@settings(max_examples=50, deadline=None)
def test_rows_are_fused_alike_however_they_are_cut(case: dict[str, Any], cut: int) -> None:
    """A piece is the same as its part of the whole, and the sums of the pieces are the sums of the whole."""
    weight, terms, dtype = case["weight"], case["terms"], TYPES[case["to"]]
    cut = min(cut, len(weight))
    whole, sums = NumpyBackend().fuse(weight, terms, dtype, "cpu")
    parts, total = [], Sums()
    for start, stop in ((0, cut), (cut, len(weight))):
        if stop > start:
            piece, found = NumpyBackend().fuse(
                weight[start:stop], [Term(t.weight.take(start, stop), t.strength) for t in terms], dtype, "cpu"
            )
            parts.append(piece)
            total += found
    assert np.allclose(widen(np.concatenate(parts)), widen(whole), rtol=2 * EPS[case["to"]], atol=1e-6)
    assert total.entries == sums.entries
    assert total.ideal == pytest.approx(sums.ideal, rel=1e-5)


def test_auto_is_numpy_where_there_is_no_gpu_and_a_missing_device_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert list(backends()) == ["numpy", "torch"]
    assert (choose()[0].name, choose()[1]) == ("numpy", "cpu")
    assert choose("torch")[0].name == "torch"
    for name, device, said in (("numpy", "cuda", "device cuda"), ("magic", "auto", "no fusion backend 'magic'")):
        with pytest.raises(Exception, match=said):
            choose(name, device)
    monkeypatch.setattr("loraforge.fusion.with_torch.find_spec", lambda _: None)
    with pytest.raises(Exception, match="torch cannot run here"):
        choose("torch")
    monkeypatch.setattr(TorchBackend, "devices", lambda _: ("cuda", "cpu"))
    assert (choose()[0].name, choose()[1]) == ("torch", "cuda")
    assert (choose("auto", "cuda:1")[0].name, choose("auto", "cuda:1")[1]) == ("torch", "cuda:1")
    assert choose("auto", "cpu")[0].name == "numpy"
