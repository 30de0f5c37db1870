"""Block-diagonal pairs whose alpha did not grow with their rank: what says how it is meant, and what asks."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from loraforge.errors import ReadingsError, ScaleError
from loraforge.scale.split_qkv import APART, WHOLE, Parts, Stacks, parts

R = 4
HEIGHTS = {"qkv": [6, 6, 6], "linear1": [6, 6, 6, 24], "proj": [6]}
SPLIT = {"ss_network_args": json.dumps({"split_qkv": "True"})}
"""As train_network.py of sd-scripts writes it: the values of --network_args are strings."""


def up(path: str, *, diagonal: bool = True) -> np.ndarray:
    random, heights = np.random.default_rng(0), HEIGHTS[path]
    B = random.standard_normal((sum(heights), R * len(heights)))
    if diagonal:
        of_row = np.repeat(np.arange(len(heights)), heights)
        B[of_row[:, None] != np.repeat(np.arange(len(heights)), R)[None]] = 0
    return B


def look(
    alphas: dict[str, float],
    metadata: dict[str, str] | None = None,
    by: str | None = None,
    **ups: np.ndarray,
) -> Parts:
    B = {path: ups.get(path, up(path)) for path in alphas}
    ranks = {path: B[path].shape[1] for path in alphas}
    return parts(alphas, ranks, Stacks(HEIGHTS, B.__getitem__), metadata or {}, by)


ALIKE = dict.fromkeys(HEIGHTS, 1.0)
BOTH = {"qkv": 3, "linear1": 4}


def test_the_header_and_the_tensors_together_say_it() -> None:
    split = look(ALIKE, SPLIT)
    assert split.counts == BOTH
    assert split.note == (
        "sd-scripts trained it with split_qkv (ss_network_args in its header says so): every other program applies it "
        "4x too weak in 1 modules (linear1), 3x too weak in 1 modules (qkv)"
    )


@pytest.mark.parametrize(
    "metadata",
    [{}, {"ss_network_args": '{"split_qkv": "False"}'}, {"ss_network_args": "{"}, {"ss_network_args": "[1]"}],
)
def test_the_tensors_alone_ask_with_both_readings(metadata: dict[str, str]) -> None:
    with pytest.raises(ReadingsError, match="2 modules is block-diagonal") as refusal:
        look(ALIKE, metadata)
    assert [(r.options, r.why) for r in refusal.value.remedies] == [
        (("--trained-by", APART), "with split_qkv: scale 0.25"),
        (("--trained-by", WHOLE), "without it, alpha over the stored rank: scales 0.0625 to 0.25"),
    ]
    assert look(ALIKE, metadata, APART).counts == BOTH
    assert look(ALIKE, metadata, WHOLE).counts == {}


def test_what_is_stated_holds_over_the_header() -> None:
    assert look(ALIKE, SPLIT, WHOLE).counts == {}


@pytest.mark.parametrize("metadata", [SPLIT, {}])
def test_full_pairs_have_one_reading(metadata: dict[str, str]) -> None:
    """Such as after a resize; a header that is older than the tensors does not count."""
    full = {path: up(path, diagonal=False) for path in HEIGHTS}
    assert look(ALIKE, metadata, **full).counts == {}
    with pytest.raises(ScaleError, match="no lora_up in it is block-diagonal"):
        look(ALIKE, metadata, APART, **full)


def test_one_number_outside_the_diagonal_makes_a_full_pair() -> None:
    for row, column in ((0, R), (7, 0), (17, 2 * R - 1)):
        B = up("qkv")
        B[row, column] = 1e-30
        assert look({"qkv": 1.0, "proj": 1.0}, SPLIT, qkv=B).counts == {}
    assert look({"qkv": 1.0}, SPLIT, qkv=np.zeros((18, 3 * R))).counts == {}
    assert look({"qkv": 1.0}, SPLIT, qkv=np.eye(18, 3 * R + 1)).counts == {}  # no third of its rank


@pytest.mark.parametrize("metadata", [SPLIT, {}])
@pytest.mark.parametrize(
    "alphas",
    [
        {"qkv": 12.0, "linear1": 16.0, "proj": 4.0},  # convert_flux_lora.py: alpha is the stored rank
        {"qkv": 3.0, "linear1": 4.0, "proj": 1.0},  # one scale for all
        {"qkv": 12.0},
    ],
)
def test_alphas_that_grew_with_the_rank_have_one_reading(alphas: dict[str, float], metadata: dict[str, str]) -> None:
    assert look(alphas, metadata).counts == {}


@pytest.mark.parametrize("alphas", [{"qkv": 1.0}, {"qkv": 1.0, "linear1": 2.0, "proj": 3.0}])
def test_where_the_alphas_show_nothing_it_asks(alphas: dict[str, Any]) -> None:
    with pytest.raises(ReadingsError):
        look(alphas)
    assert look(alphas, SPLIT).counts == {path: n for path, n in BOTH.items() if path in alphas}


def test_modules_without_segments_are_never_read_apart() -> None:
    assert look({"proj": 1.0}, SPLIT).counts == {}
