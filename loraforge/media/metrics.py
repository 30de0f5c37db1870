"""How much two clips differ, and how much one changes: PSNR, SSIM and flicker. Numbers only, no files.

PSNR and SSIM are computed by scikit-image, so that others can reproduce them. Only a few frames are converted
to floats at a time: a clip of 161 frames of 1360 x 768 takes 4 GB as float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from loraforge.errors import LoraforgeError, of_pipeline

Frames = npt.NDArray[np.uint8]
"""[frames, height, width, 3], RGB, levels 0..255."""
_LEVELS = 255
"""The largest possible difference between two pixels."""
_WINDOW = 7
"""Side, in pixels, of the window that scikit-image's SSIM compares by default."""


def alike(clips: Sequence[Frames], *texts: Sequence[str]) -> tuple[int, int, int]:
    """Number of frames, height and width, the same for all clips. `texts` are lists with one text per clip.

    Raises LoraforgeError if there is no clip, one is not RGB in bytes, two differ in shape, or texts are missing.
    """
    if not clips:
        raise LoraforgeError("there is no clip to compare.")
    for n, clip in enumerate(clips):
        if clip.ndim != 4 or clip.shape[3] != 3 or clip.dtype.name != "uint8" or not clip.size:
            raise LoraforgeError(
                f"clip {n + 1} is an array of {clip.dtype.name} {list(clip.shape)}, "
                "instead of uint8 [frames, height, width, 3] with at least one frame."
            )
        if clip.shape != clips[0].shape:
            raise LoraforgeError(
                f"clip {n + 1} has the shape {list(clip.shape)} and clip 1 {list(clips[0].shape)} "
                "([frames, height, width, 3]): only clips of one shape can be compared."
            )
    for text in texts:
        if len(text) != len(clips):
            raise LoraforgeError(f"{len(clips)} clips have {len(text)} texts; each clip needs one.")
    count, height, width, _ = clips[0].shape
    return count, height, width


def psnr(a: Frames, b: Frames) -> tuple[float, ...]:
    """Per frame, 10 log10(255^2 / mean squared difference) in dB, over all pixels and colours.

    Infinity if the frames are identical. Raises LoraforgeError if the clips differ in shape.
    """
    alike((a, b))
    with of_pipeline("PSNR"):
        from skimage.metrics import peak_signal_noise_ratio
    return tuple(
        # scikit-image would divide by zero, with a warning, if nothing differs
        math.inf if np.array_equal(one, other) else float(peak_signal_noise_ratio(one, other, data_range=_LEVELS))
        for one, other in zip(a, b, strict=True)
    )


def ssim(a: Frames, b: Frames) -> tuple[float, ...]:
    """Per frame, the mean structural similarity of the three colours: 1.0 if identical, about 0 if unrelated.

    With scikit-image's defaults: a uniform window of 7 x 7, K1 0.01, K2 0.03. The Gaussian window of Wang et al. 2004
    gives other numbers. Raises LoraforgeError if the clips differ in shape, or a frame is smaller than the window.
    """
    _, height, width = alike((a, b))
    if min(height, width) < _WINDOW:
        window = f"{_WINDOW} x {_WINDOW}"
        raise LoraforgeError(f"SSIM compares windows of {window} pixels, and the frames have {width} x {height}.")
    with of_pipeline("SSIM"):
        from skimage.metrics import structural_similarity
    return tuple(
        float(structural_similarity(one, other, channel_axis=-1, data_range=_LEVELS))
        for one, other in zip(a, b, strict=True)
    )


def flicker(frames: Frames) -> float:
    """Mean absolute change between neighbouring frames, in levels of 0..255, motion included; 0.0 for one frame."""
    count, height, width = alike((frames,))
    if count == 1:
        return 0.0
    changes = 0  # an integer, so that the sum is exact for clips of any length
    for before, after in pairwise(frames):
        # unsigned bytes would wrap around in a plain difference; larger minus smaller does not
        changes += int(np.sum(np.maximum(before, after) - np.minimum(before, after), dtype=np.int64))
    return changes / ((count - 1) * height * width * 3)
