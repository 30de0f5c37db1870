"""The tables of positions that SAT stores and Diffusers computes, for bases that go to SAT.

Sources: CogVideo sat/dit_video_concat.py (`get_3d_sincos_pos_embed`, `Rotary3DPositionEmbeddingMixin`): a quarter of
the channels is for the frame, three eighths each for row and column; sines before cosines in the table that is
added to the inputs, each frequency twice in the tables that rotate.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from loraforge.algebra.lora import Array

BASE = 10_000.0
WORDS = 64
"""Rows of the table of word positions in SAT's configurations (`max_sequence_length`)."""


def grid(config: Mapping[str, Any]) -> tuple[int, int, int]:
    """Frames, rows and columns of patches of a sample, as Diffusers' config.json has them."""
    frames = (config["sample_frames"] - 1) // config["temporal_compression_ratio"] + 1
    patch = config["patch_size"]
    return (
        frames // (config.get("patch_size_t") or 1),
        config["sample_height"] // patch,
        config["sample_width"] // patch,
    )


def sincos(config: Mapping[str, Any], width: int) -> Array:
    """[1, text + patches, width]: zeros for the text, then sines and cosines of where a patch lies. float64."""
    frames, rows, columns = grid(config)
    space, time = config["spatial_interpolation_scale"], config["temporal_interpolation_scale"]
    t, y, x = np.meshgrid(
        np.arange(frames, dtype=np.float32) / np.float32(time),
        np.arange(rows, dtype=np.float32) / np.float32(space),
        np.arange(columns, dtype=np.float32) / np.float32(space),
        indexing="ij",
    )
    axes = [_waves(x, width // 4 * 3 // 2), _waves(y, width // 4 * 3 // 2)]
    table = np.concatenate([_waves(t, width // 4), *axes], axis=1)
    return np.concatenate([np.zeros((config["max_text_seq_length"], width)), table])[None]


def _waves(place: Array, channels: int) -> Array:
    """[patches, channels]: sines, then cosines, of a coordinate at falling frequencies."""
    omega = BASE ** -(np.arange(channels // 2, dtype=np.float64) / (channels / 2.0))
    angles = place.reshape(-1, 1) * omega
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def rotary(config: Mapping[str, Any], head: int) -> tuple[Array, Array]:
    """[patches, head] twice: the sines and the cosines that rotate queries and keys. float32."""
    frames, rows, columns = grid(config)
    parts = [
        (np.arange(count, dtype=np.float32), channels)
        for count, channels in ((frames, head // 4), (rows, head // 8 * 3), (columns, head // 8 * 3))
    ]
    angles = [np.repeat(np.outer(place, _frequencies(channels)), 2, axis=1) for place, channels in parts]
    t, y, x = angles
    whole = np.concatenate(
        [
            np.broadcast_to(t[:, None, None], (frames, rows, columns, t.shape[1])),
            np.broadcast_to(y[None, :, None], (frames, rows, columns, y.shape[1])),
            np.broadcast_to(x[None, None, :], (frames, rows, columns, x.shape[1])),
        ],
        axis=-1,
    ).reshape(frames * rows * columns, head)
    return np.sin(whole), np.cos(whole)


def _frequencies(channels: int) -> Array:
    power = np.arange(0, channels, 2, dtype=np.float32)[: channels // 2] / np.float32(channels)
    found: Array = (np.float32(1) / np.float32(BASE) ** power).astype(np.float32)
    return found
