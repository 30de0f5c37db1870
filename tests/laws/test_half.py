"""float16 conversions give the bits numpy gives, everywhere."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from loraforge.half import narrow, widen

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def same(got: np.ndarray, want: np.ndarray) -> bool:
    number = ~np.isnan(want)
    return np.array_equal(got[number].view(np.uint16), want[number].view(np.uint16)) and bool(np.isnan(got[~number]).all())


def test_every_half_widens_exactly() -> None:
    assert np.array_equal(widen(EVERY), EVERY.astype(np.float64), equal_nan=True)


def test_every_half_survives_there_and_back() -> None:
    finite = EVERY[np.isfinite(EVERY)]
    assert same(narrow(finite.astype(np.float64), np.float16), finite)


def test_every_midpoint_goes_to_the_even_neighbour() -> None:
    positive = np.sort(EVERY[np.isfinite(EVERY) & (EVERY >= 0)].astype(np.float64))
    between = np.concatenate([(positive[1:] + positive[:-1]) / 2, [65519.0, 65520.0, 1e300]])
    for x in (between, -between):
        with np.errstate(over="ignore"):
            assert same(narrow(x, np.float16), x.astype(np.float32).astype(np.float16))


@given(arrays(np.float32, 40, elements=st.floats(width=32, allow_nan=False)))
def test_any_number_rounds_as_numpy_rounds_it(x: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        assert same(narrow(x.astype(np.float64), np.float16), x.astype(np.float16))
