"""Folding, where it is subtle: shares of the power of two, float16, odd scalings, zero and negative ones."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from loraforge.algebra.folding import fold
from loraforge.algebra.lora import LoraWeight, collapse, split

TYPES = {"fp32": np.float32, "bf16": ml_dtypes.bfloat16, "fp16": np.float16}


def weight(dtype, scaling: float, rank: int = 8, size: float = 1e-2, seed: int = 0) -> LoraWeight:
    random = np.random.default_rng(seed)
    return LoraWeight(
        (random.standard_normal((rank, 48)) * 2e-2).astype(dtype),
        (random.standard_normal((32, rank)) * size).astype(dtype),
        scaling,
    )


def dense(w: LoraWeight) -> np.ndarray:
    return w.scaling * (w.B.astype(np.float64) @ w.A.astype(np.float64))


@pytest.mark.parametrize("scaling", [1 / 128, 1 / 256, 0.5, 1.0, 2.0, 64.0, -0.25])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_powers_of_two_are_exact(dtype: str, scaling: float) -> None:
    w = weight(TYPES[dtype], scaling)
    folded, error = fold(w, w.A.dtype.type, w.B.dtype.type)
    assert error == 0.0
    assert folded.scaling == 1.0
    assert np.array_equal(dense(folded), dense(w))


@pytest.mark.parametrize("scaling", [1 / 96, 1 / 3, 0.7, 1.5, -1 / 96])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_other_scalings_are_one_rounding_and_say_so(dtype: str, scaling: float) -> None:
    w = weight(TYPES[dtype], scaling)
    folded, error = fold(w, w.A.dtype.type, w.B.dtype.type)
    real = np.linalg.norm(dense(folded) - dense(w)) / np.linalg.norm(dense(w))
    eps = float(ml_dtypes.finfo(TYPES[dtype]).eps)
    assert 0 < real <= eps
    assert error == pytest.approx(real, rel=0.5)  # the report's figure is measured on probes
    if scaling > 0 and dtype != "fp16":
        power = 2.0 ** np.round(np.log2(folded.A[0, 0].astype(float) / w.A[0, 0].astype(float)))
        assert np.array_equal(folded.A.astype(np.float64), w.A.astype(np.float64) * power)  # only B is rounded


def test_float16_keeps_more_than_putting_everything_into_b() -> None:
    """B around 1e-5 at 1/128: folded into B alone, a fifth of the update is lost to subnormals."""
    w = weight(np.float16, 1 / 128, rank=128, size=1e-5)
    folded, error = fold(w, np.float16, np.float16)
    naive = LoraWeight(w.A, (w.B.astype(np.float32) / 128).astype(np.float16), 1.0)
    loss = np.linalg.norm(dense(naive) - dense(w)) / np.linalg.norm(dense(w))
    real = np.linalg.norm(dense(folded) - dense(w)) / np.linalg.norm(dense(w))
    assert loss > 0.1
    assert real < loss / 20
    assert error == pytest.approx(real, rel=0.5)


def test_float16_takes_the_best_share_there_is() -> None:
    for size in (1e-5, 1e-4, 1e-3, 1e-1):
        w = weight(np.float16, 1 / 128, rank=16, size=size)
        every = []
        for share in range(-7, 1):
            A = (w.A.astype(np.float64) * 2.0**share).astype(np.float16)
            B = (w.B.astype(np.float64) * 2.0 ** (-7 - share)).astype(np.float16)
            every.append(np.linalg.norm(dense(LoraWeight(A, B, 1.0)) - dense(w)) / np.linalg.norm(dense(w)))
        folded, _ = fold(w, np.float16, np.float16)
        assert np.linalg.norm(dense(folded) - dense(w)) / np.linalg.norm(dense(w)) <= min(every) * 1.3


def test_float16_that_overflows_says_so() -> None:
    w = weight(np.float16, 2.0**40)
    assert fold(w, np.float16, np.float16)[1] == np.inf
    assert fold(w, np.float32, np.float32)[1] == 0.0


def test_a_scaling_of_zero_gives_no_update() -> None:
    folded, error = fold(weight(np.float32, 0.0), np.float32, np.float32)
    assert error == 0.0
    assert not dense(folded).any()
    assert folded.A.any()


def test_an_untrained_adapter_is_exact() -> None:
    w = LoraWeight(np.ones((4, 8), np.float16), np.zeros((8, 4), np.float16), 1 / 96)
    folded, error = fold(w, np.float16, np.float16)
    assert error == 0.0
    assert not folded.B.any()


def test_collapse_makes_a_block_diagonal_and_split_undoes_it() -> None:
    blocks = tuple(weight(np.float32, 0.5, rank=r, seed=r) for r in (2, 3, 5))
    one = collapse(blocks)
    assert one.rank == 10
    assert np.array_equal(dense(one), np.concatenate([dense(w) for w in blocks]))
    for part, w in zip(split((one,), [32, 32, 32]), blocks, strict=True):
        assert len(part) == 1
        assert np.array_equal(part[0].A, w.A)
        assert np.array_equal(part[0].B, w.B)


def test_collapse_keeps_the_rank_where_a_is_shared() -> None:
    w = weight(np.float32, 0.5)
    one = collapse((w.take(0, 10), w.take(10, 32)))
    assert one.rank == w.rank
    assert np.array_equal(dense(one), dense(w))
