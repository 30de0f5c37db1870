"""Clips as arrays of frames, and what several must share to be compared or shown together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from loraforge.errors import LoraforgeError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Frames = npt.NDArray[np.uint8]
    """[frames, height, width, 3], RGB, levels 0..255."""


def alike(clips: Sequence[Frames], *texts: Sequence[str]) -> tuple[int, int, int]:
    """Frames, height and width, which all clips share. `texts` are lists of one text per clip.

    Raises LoraforgeError where there is no clip, one is no RGB film of bytes, two differ in shape, or a text
    is missing or left over. It names no command: no command line lets clips of different runs meet.
    """
    if not clips:
        raise LoraforgeError("there is no clip to compare.")
    for n, clip in enumerate(clips):
        if clip.ndim != 4 or clip.shape[3] != 3 or clip.dtype.name != "uint8" or not clip.size:
            raise LoraforgeError(
                f"clip {n + 1} is an array of {clip.dtype.name} {list(clip.shape)}, "
                "where uint8 [frames, height, width, 3] is meant, with at least one frame."
            )
        if clip.shape != clips[0].shape:
            raise LoraforgeError(
                f"clip {n + 1} has the shape {list(clip.shape)} and clip 1 {list(clips[0].shape)} "
                "([frames, height, width, 3]): only clips of one shape can be compared."
            )
    for text in texts:
        if len(text) != len(clips):
            raise LoraforgeError(f"{len(clips)} clips have {len(text)} texts, where each has one.")
    count, height, width, _ = clips[0].shape
    return count, height, width
