"""The tables of positions that SAT stores and Diffusers computes, for bases that are converted to SAT.

Sources: CogVideo sat/dit_video_concat.py (`get_3d_sincos_pos_embed`, `Rotary3DPositionEmbeddingMixin`): a quarter of
the channels is for the frame, three eighths each for row and column; sines before cosines in the table that is
added to the inputs, each frequency twice in the tables that rotate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from loraforge.algebra.lora import Array

BASE = 10_000.0
WORDS = 64
"""Rows of the table of word positions in SAT's configurations (`max_sequence_length`)."""


def grid(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Frames, rows and columns of patches of a sample, as Diffusers' config.json has them."""
    frames = (config["sample_frames"] - 1) // config["temporal_compression_ratio"] + 1
    rows, columns = (config[f"sample_{side}"] // config["patch_size"] for side in ("height", "width"))
    return frames // (config.get("patch_size_t") or 1), rows, columns


def sincos(config: Mapping[str, Any], width: int) -> Array:
    """[1, text + patches, width]: zeros for the text, then sines and cosines of a patch's coordinates. float64."""
    frames, rows, columns = _coordinates(config)
    space, time = (np.float32(config[f"{axis}_interpolation_scale"]) for axis in ("spatial", "temporal"))
    space_width = width // 4 * 3 // 2
    waves = [_waves(frames / time, width // 4), _waves(columns / space, space_width), _waves(rows / space, space_width)]
    return np.concatenate([np.zeros((config["max_text_seq_length"], width)), np.concatenate(waves, axis=1)])[None]


def _waves(coordinates: Array, channels: int) -> Array:
    """[patches, channels]: sines, then cosines, of a coordinate at falling frequencies."""
    omega = BASE ** -(np.arange(channels // 2, dtype=np.float64) / (channels / 2.0))
    angles = coordinates.reshape(-1, 1) * omega
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def rotary(config: Mapping[str, Any], head: int, wave: Callable[[Array], Array]) -> Array:
    """[patches, head]: the sines (`wave` is np.sin) or cosines that rotate queries and keys. float32."""
    widths = head // 4, head // 8 * 3, head // 8 * 3
    angles = list[Array]()
    for coordinates, channels in zip(_coordinates(config), widths, strict=True):
        power = np.arange(0, channels, 2, dtype=np.float32)[: channels // 2] / np.float32(channels)
        frequencies = np.float32(1) / np.float32(BASE) ** power
        angles.append(np.repeat(np.outer(coordinates, frequencies), 2, axis=1))
    return wave(np.concatenate(angles, axis=1))


def _coordinates(config: Mapping[str, Any]) -> Array:
    """[3, patches]: the frame, row and column of each patch. float32."""
    return np.indices(grid(config), np.float32).reshape(3, -1)
