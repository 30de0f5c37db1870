"""Figures of clips whose differences are known by formula, and scikit-image's own on the same frames."""

from __future__ import annotations

import math
import sys
import warnings

import numpy as np
import pytest

from loraforge.errors import LoraforgeError
from loraforge.media.metrics import flicker, psnr, ssim

NOISE = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), np.uint8)


def levels(*values: int, size: tuple[int, int] = (16, 24)) -> np.ndarray:
    """Frames of one level each."""
    return np.stack([np.full((*size, 3), value, np.uint8) for value in values])


@pytest.mark.parametrize("difference", [1, 10, 255])
def test_psnr_of_a_constant_difference_is_its_formula(difference: int) -> None:
    found = psnr(levels(0, 0), levels(difference, difference))
    assert found == pytest.approx([20 * math.log10(255 / difference)] * 2)


def test_psnr_is_per_frame_and_infinite_without_a_warning_where_nothing_differs() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert psnr(levels(5, 100, 7), levels(5, 110, 7)) == (math.inf, pytest.approx(28.1308, abs=1e-4), math.inf)


def test_psnr_does_not_wrap_around() -> None:
    assert psnr(levels(250), levels(5)) == psnr(levels(5), levels(250)) == (pytest.approx(20 * math.log10(255 / 245)),)


def test_ssim_is_one_for_the_same_and_the_formula_for_flat_frames() -> None:
    assert ssim(NOISE, NOISE) == (1.0, 1.0, 1.0)
    c1 = (0.01 * 255) ** 2  # without variance only the comparison of means is left
    assert ssim(levels(50), levels(100)) == pytest.approx([(2 * 50 * 100 + c1) / (50**2 + 100**2 + c1)])


def test_ssim_is_per_frame_and_falls_with_noise() -> None:
    slightly = NOISE.copy()
    slightly[1] ^= 8
    slightly[2] ^= 64
    same, near, far = ssim(NOISE, slightly)
    assert same == 1.0 and 0.9 < near < 1.0 and far < near


def test_figures_are_those_of_scikit_image() -> None:
    from skimage.metrics import peak_signal_noise_ratio, structural_similarity

    other = NOISE[::-1].copy()
    assert psnr(NOISE, other)[0] == peak_signal_noise_ratio(NOISE[0], other[0])
    assert ssim(NOISE, other)[0] == structural_similarity(NOISE[0], other[0], channel_axis=2)


def test_ssim_refuses_frames_smaller_than_its_window() -> None:
    assert ssim(levels(3, size=(7, 7)), levels(3, size=(7, 7))) == (1.0,)
    with pytest.raises(LoraforgeError, match=r"windows of 7 x 7 pixels, and the frames have 9 x 6"):
        ssim(levels(3, size=(6, 9)), levels(3, size=(6, 9)))


def test_flicker_of_a_ramp_and_of_steps() -> None:
    assert flicker(levels(0, 3, 6, 9)) == 3.0
    assert flicker(levels(0, 255, 0)) == 255.0  # downwards as upwards
    assert flicker(levels(10, 10, 40)) == 15.0
    assert flicker(levels(7)) == 0.0
    one_colour = levels(0, 0)
    one_colour[1, ..., 0] = 30
    assert flicker(one_colour) == 10.0


def test_flicker_is_the_mean_that_floats_give() -> None:
    assert flicker(NOISE) == pytest.approx(np.abs(np.diff(NOISE.astype(float), axis=0)).mean(), rel=1e-12)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_clips_of_two_shapes_are_refused(measure) -> None:
    with pytest.raises(LoraforgeError, match=r"clip 2 has the shape \[2, 16, 24, 3\] and clip 1 \[1, 16, 24, 3\]"):
        measure(levels(1), levels(1, 2))


@pytest.mark.parametrize(
    "wrong", [levels(1)[0], levels(1).astype(float), levels(1)[..., :1], levels(1)[:0]], ids=lambda array: array.shape
)
def test_what_is_no_clip_is_refused(wrong: np.ndarray) -> None:
    with pytest.raises(LoraforgeError, match=r"instead of uint8 \[frames, height, width, 3\]"):
        flicker(wrong)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_without_the_library_the_extra_is_named(measure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.metrics", None)
    with pytest.raises(LoraforgeError, match=r"skimage.* is not installed") as caught:
        measure(levels(1), levels(1))
    assert caught.value.remedies[0].command.startswith("pip install 'torch>=2.6' ")
