"""How far two clips lie apart, and how much one moves: PSNR, SSIM and flicker. Numbers only, no files.

PSNR and SSIM are scikit-image's, so that they can be checked against anyone's. No more than a few frames are
widened to floats at a time: a clip of 161 frames of 1360 x 768 takes 4 GB as float64.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from loraforge.errors import LoraforgeError, of_pipeline
from loraforge.media.clips import alike

if TYPE_CHECKING:
    from loraforge.media.clips import Frames

_LEVELS = 255
"""The largest difference there can be between two pixels."""
_WINDOW = 7
"""Pixels along a side of the window in which scikit-image's SSIM compares, where nothing else is said."""


def psnr(a: Frames, b: Frames) -> tuple[float, ...]:
    """Per frame, 10 log10(255^2 / mean squared difference) in dB, over all pixels and colours.

    Infinity where the frames are identical. Raises LoraforgeError where the clips differ in shape.
    """
    alike((a, b))
    with of_pipeline("PSNR"):
        from skimage.metrics import peak_signal_noise_ratio
    return tuple(
        # scikit-image divides by zero, with a warning, where nothing differs
        math.inf if np.array_equal(one, other) else float(peak_signal_noise_ratio(one, other, data_range=_LEVELS))
        for one, other in zip(a, b, strict=True)
    )


def ssim(a: Frames, b: Frames) -> tuple[float, ...]:
    """Per frame, the mean structural similarity of the three colours: 1.0 where identical, about 0 where unrelated.

    With scikit-image's defaults: a uniform window of 7 x 7, K1 0.01, K2 0.03. Those of Wang et al. 2004, a
    Gaussian of sigma 1.5, give other numbers. Raises LoraforgeError where the clips differ in shape, and where a
    frame is smaller than the window: a smaller window would give numbers that compare with no others.
    """
    _, height, width = alike((a, b))
    if min(height, width) < _WINDOW:
        raise LoraforgeError(
            f"SSIM compares windows of {_WINDOW} x {_WINDOW} pixels, and the frames have {width} x {height}."
        )
    with of_pipeline("SSIM"):
        from skimage.metrics import structural_similarity
    return tuple(
        float(structural_similarity(one, other, channel_axis=-1, data_range=_LEVELS))
        for one, other in zip(a, b, strict=True)
    )


def flicker(frames: Frames) -> float:
    """Mean absolute change between neighbouring frames, in levels of 0..255; 0.0 for one frame.

    It does not tell motion from flicker: compare it only between clips of one prompt and one seed.
    """
    count, height, width = alike((frames,))
    if count == 1:
        return 0.0
    changes = 0  # an integer: the sum is exact, whatever the length
    for before, after in pairwise(frames):
        # bytes have no sign: their difference wraps around, that of the larger and the smaller does not
        changes += int(np.sum(np.maximum(before, after) - np.minimum(before, after), dtype=np.int64))
    return changes / ((count - 1) * height * width * 3)
