"""Clips as arrays of frames, and the check that several of them can be compared or shown together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from loraforge.errors import LoraforgeError

Frames = npt.NDArray[np.uint8]
"""[frames, height, width, 3], RGB, levels 0..255."""


def alike(clips: Sequence[Frames], *texts: Sequence[str]) -> tuple[int, int, int]:
    """Number of frames, height and width, the same for all clips. `texts` are lists with one text per clip.

    Raises LoraforgeError if there is no clip, one is not RGB in bytes, two differ in shape, or the number of
    texts is wrong. It names no command, because no command line compares clips of different runs.
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
