"""float16 conversions give the bits numpy gives, everywhere."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from loraforge.algebra.half import finite, halves_times, peak, rounded, shifted, widen

EVERY = np.arange(1 << 16, dtype=np.uint16).view(np.float16)


def same(got: np.ndarray, want: np.ndarray) -> bool:
    number = ~np.isnan(want)
    return np.array_equal(got[number].view(np.uint16), want[number].view(np.uint16)) and bool(
        np.isnan(got[~number]).all()
    )


def test_every_half_widens_exactly() -> None:
    assert np.array_equal(widen(EVERY), EVERY.astype(np.float64), equal_nan=True)


def test_every_half_survives_there_and_back() -> None:
    finite = EVERY[np.isfinite(EVERY)]
    assert same(rounded(finite.astype(np.float64), np.float16).astype(np.float16), finite)


def test_every_midpoint_goes_to_the_even_neighbour() -> None:
    positive = np.sort(EVERY[np.isfinite(EVERY) & (EVERY >= 0)].astype(np.float64))
    between = np.concatenate([(positive[1:] + positive[:-1]) / 2, [65519.0, 65520.0, 1e300]])
    for x in (between, -between):
        with np.errstate(over="ignore"):
            assert same(rounded(x, np.float16).astype(np.float16), x.astype(np.float32).astype(np.float16))


@given(arrays(np.float32, 40, elements=st.floats(width=32, allow_nan=False)))
def test_any_number_rounds_as_numpy_rounds_it(x: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        assert same(rounded(x.astype(np.float64), np.float16).astype(np.float16), x.astype(np.float16))


@given(arrays(np.uint16, 40), st.floats(-1e3, 1e3, width=32))
def test_a_product_with_a_number_is_looked_up(bits: np.ndarray, factor: float) -> None:
    factor += 0.0  # the tables are kept by number, and -0.0 is the number 0.0
    with np.errstate(all="ignore"):
        want = bits.view(np.float16).astype(np.float64) * factor
        stored, lost = (table.take(bits) for table in halves_times(factor))
        assert same(stored, want.astype(np.float16))
        assert np.array_equal(lost, (stored.astype(np.float64) - want).astype(np.float32), equal_nan=True)


TYPES = {np.float16: np.uint16, ml_dtypes.bfloat16: np.uint16, np.float32: np.uint32, np.float64: np.uint64}


@given(st.data(), st.sampled_from(list(TYPES)), st.integers(-20, 20))
def test_shifting_the_exponent_is_multiplying_by_a_power_of_two(data: st.DataObject, kind: type, power: int) -> None:
    bits = data.draw(arrays(TYPES[kind], 6))
    x = bits.view(kind)
    moved = shifted(x, power)
    with np.errstate(all="ignore"):
        want = (x.astype(np.longdouble) * np.longdouble(2.0) ** power).astype(np.float64).astype(kind)
        exact = np.isfinite(x.astype(np.float64)).all() and np.array_equal(
            want.astype(np.longdouble), x.astype(np.longdouble) * np.longdouble(2.0) ** power
        )
    if moved is not None and np.isfinite(x.astype(np.float64)).all():
        assert exact
        assert np.array_equal(moved.view(TYPES[kind]), want.view(TYPES[kind]))
    normal = np.abs(x.astype(np.float64)) >= float(ml_dtypes.finfo(kind).smallest_normal)
    there = np.abs(want.astype(np.float64)) >= float(ml_dtypes.finfo(kind).smallest_normal)
    if exact and (normal & there & np.isfinite(want.astype(np.float64))).all():
        assert moved is not None


@given(kind=st.sampled_from([np.float16, ml_dtypes.bfloat16, np.float32, np.float64]), data=st.data())
def test_the_largest_magnitude_is_found_by_the_bits(kind: type, data: st.DataObject) -> None:
    x = data.draw(arrays(np.float64, st.integers(0, 9), elements=st.floats(-1e4, 1e4))).astype(kind)
    assert finite(x) and peak(x) == np.abs(x.astype(np.float64)).max(initial=0)
    for bad in (np.nan, np.inf, -np.inf, -np.nan):
        assert not finite(np.append(x, np.array(bad, kind)))
