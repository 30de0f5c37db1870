"""Laws that hold for every adapter. Integer factors make equality exact; oracles do not use the code under test."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loraforge.adapter import relayout
from loraforge.algebra.folding import fold
from loraforge.algebra.lora import LoraWeight, collapse, rows
from loraforge.names.bijection import parse
from loraforge.names.catalog import architecture
from loraforge.names.layout import Architecture, Layout, Template

UNIT = 2  # rows of one segment of ratio 1


@st.composite
def factors(draw: st.DrawFn, height: int, width: int) -> LoraWeight:
    rank = draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    return LoraWeight(
        random.integers(-3, 4, (rank, width)).astype(np.float64),
        random.integers(-3, 4, (height, rank)).astype(np.float64),
        draw(st.sampled_from([0.25, 0.5, 1.0])),
    )


@st.composite
def adapters(draw: st.DrawFn, arch: Architecture, layout: str) -> dict[str, tuple[LoraWeight, ...]]:
    """Some modules of some blocks, each as one pair or as one pair per segment."""
    modules = {}
    for template, segments in arch.layouts[layout].modules.items():
        for number in draw(st.sets(st.integers(0, 12), max_size=2)):
            index = tuple((hole[1:-1], number) for hole in sorted(template.holes))
            heights = [UNIT * arch.segments[segment] for segment in segments]
            sizes = heights if draw(st.booleans()) else [sum(heights)]
            modules[template.fill(index)] = tuple(draw(factors(size, 3)) for size in sizes)
    return modules


def row_table(modules, arch: Architecture, layout: str) -> dict[tuple, list[tuple[float, ...]]]:
    """(segment, block numbers) -> the rows of the dense update, computed from the TOML alone."""
    table = {}
    for path, delta in modules.items():
        update = np.concatenate([w.scaling * (w.B @ w.A) for w in delta])
        for template, segments in arch.layouts[layout].modules.items():
            tokens, words = template.text.split("."), path.split(".")
            if len(tokens) == len(words) and all(
                a == b or (a[0] == "{" and b.isdecimal()) for a, b in zip(tokens, words, strict=True)
            ):
                numbers = tuple(int(b) for a, b in zip(tokens, words, strict=True) if a[0] == "{")
                start = 0
                for segment in segments:
                    stop = start + UNIT * arch.segments[segment]
                    table[segment, numbers] = [tuple(row) for row in update[start:stop]]
                    start = stop
    return table


COGVIDEOX = architecture("cogvideox")
RATIOS = parse(
    {
        "architecture": "toy",
        "title": "toy",
        "segments": ["a", "b", "mlp"],
        "rows": {"mlp": 4},
        "layouts": {
            "fused": {"modules": {"x.{i}.all": ["a", "mlp", "b"]}},
            "split": {"modules": {"y.{i}.a": ["a"], "y.{i}.rest": ["b", "mlp"]}},
        },
    },
    "toy.toml",
)


@pytest.mark.parametrize(
    ("arch", "source", "target"),
    [
        (COGVIDEOX, "sat", "diffusers"),
        (COGVIDEOX, "diffusers", "sat"),
        (RATIOS, "fused", "split"),
        (RATIOS, "split", "fused"),
    ],
    ids=["sat-diffusers", "diffusers-sat", "fused-split", "split-fused"],
)
@given(st.data())
def test_relayout_keeps_every_row(arch: Architecture, source: str, target: str, data: st.DataObject) -> None:
    modules = data.draw(adapters(arch, source))
    relaid = {path: delta for path, (delta, _) in relayout.relayout(modules, arch, source, target).items()}
    before, after = row_table(modules, arch, source), row_table(relaid, arch, target)
    for place, lines in before.items():
        assert after.pop(place) == lines
    assert all(not any(map(any, lines)) for lines in after.values())  # rows nobody adapted


@given(st.data())
def test_there_and_back_returns_the_same_factors(data: st.DataObject) -> None:
    modules = data.draw(adapters(COGVIDEOX, "sat"))
    there = {path: delta for path, (delta, _) in relayout.relayout(modules, COGVIDEOX, "sat", "diffusers").items()}
    back = {path: delta for path, (delta, _) in relayout.relayout(there, COGVIDEOX, "diffusers", "sat").items()}
    assert back.keys() == modules.keys()
    assert row_table(back, COGVIDEOX, "sat") == row_table(modules, COGVIDEOX, "sat")
    for path, delta in modules.items():
        if all(
            len(segments) == len(delta) for t, segments in COGVIDEOX.layouts["sat"].modules.items() if t.match(path)
        ):
            for one, other in zip(delta, back[path], strict=True):
                assert np.array_equal(one.A, other.A)
                assert np.array_equal(one.B, other.B)


@given(st.data())
def test_collapse_changes_no_row(data: st.DataObject) -> None:
    scaling = data.draw(st.sampled_from([0.25, 1.0]))
    blocks = [data.draw(factors(data.draw(st.integers(1, 3)), 5)) for _ in range(data.draw(st.integers(1, 4)))]
    blocks = [LoraWeight(w.A, w.B, scaling) for w in blocks]
    one = collapse(tuple(blocks))
    assert one.rows == rows(tuple(blocks))
    assert np.array_equal(scaling * (one.B @ one.A), np.concatenate([scaling * (w.B @ w.A) for w in blocks]))


floats = {np.float32: st.floats(-1e3, 1e3, width=32), ml_dtypes.bfloat16: st.floats(-1e3, 1e3, width=16)}


@pytest.mark.parametrize("dtype", floats, ids=["fp32", "bf16"])
@given(data=st.data(), power=st.integers(-10, 10), sign=st.sampled_from([1, -1]))
def test_fold_then_unfold_gives_the_same_bits(dtype, data: st.DataObject, power: int, sign: int) -> None:
    entries = st.lists(floats[dtype].filter(lambda x: x == 0 or abs(x) > 1e-6), min_size=6, max_size=6)
    A = np.array(data.draw(entries)).reshape(2, 3).astype(dtype)
    B = np.array(data.draw(entries)).reshape(3, 2).astype(dtype)
    folded, error = fold(LoraWeight(A, B, sign * 2.0**power), dtype, dtype)
    assert error == 0.0
    unfolded, error = fold(LoraWeight(folded.A, folded.B, sign * 2.0**-power), dtype, dtype)
    assert error == 0.0
    assert np.array_equal(unfolded.A.view(np.uint8), A.view(np.uint8)) or not B.any()
    assert np.array_equal(unfolded.B + 0, B + 0)


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.floats(1e-6, 10),
    scaling=st.sampled_from([1 / 256, 1 / 128, 1 / 96, 0.5, 3.0]),
)
def test_float16_reports_what_it_lost(seed: int, size: float, scaling: float) -> None:
    random = np.random.default_rng(seed)
    w = LoraWeight(
        (random.standard_normal((4, 16)) * 0.02).astype(np.float16),
        (random.standard_normal((8, 4)) * size).astype(np.float16),
        scaling,
    )
    folded, error = fold(w, np.float16, np.float16)
    want = scaling * (w.B.astype(np.float64) @ w.A.astype(np.float64))
    real = np.linalg.norm(folded.B.astype(np.float64) @ folded.A.astype(np.float64) - want)
    if error == 0.0:
        assert real <= 1e-15 * np.linalg.norm(want)
    else:
        assert error == pytest.approx(real / np.linalg.norm(want), rel=2)


@given(st.text("ab_.{}0123456789i", max_size=12), st.text("ab_.{}0123456789i", max_size=12))
def test_templates_that_share_a_path_overlap(one: str, other: str) -> None:
    try:
        a, b = Template(one), Template(other)
        path = a.fill(tuple((hole[1:-1], 3) for hole in a.holes))
    except (ValueError, KeyError, IndexError):
        return
    if a.match(path) is not None and b.match(path) is not None:
        assert a.overlaps(b)


def test_layouts_are_frozen() -> None:
    assert isinstance(COGVIDEOX.layouts["sat"], Layout)
    with pytest.raises(AttributeError):
        COGVIDEOX.layouts["sat"].name = "other"
