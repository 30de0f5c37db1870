"""A base model as SAT stores it, with the tables that SAT insists on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from loraforge.base import positions
from loraforge.base.job import Model
from loraforge.base.model import BaseModel
from loraforge.base.stream import NewTensor, Shard
from loraforge.files.tensorfile import KEY
from loraforge.format.sat_names import CHECKPOINT, ITERATION, SAT_PREFIX
from loraforge.names.diffusers_config import fixed
from loraforge.names.layout import Variant

_UNUSED = "SAT's base class asks for it, and no CogVideoX uses it: zeros"
_COMPUTED = "computed for the sample in the configuration, as SAT does when it starts"


def rebuilt_tensors(
    base: BaseModel, config: Mapping[str, Any], variant: Variant, tensors: list[NewTensor]
) -> dict[str, tuple[NewTensor, str]]:
    """Key -> a tensor that only SAT has, without which it refuses to run, and where its numbers come from."""
    by_key = {tensor.key.removeprefix(SAT_PREFIX): tensor for tensor in tensors}
    patch = by_key["mixins.patch_embed.proj.weight"]
    width = patch.shape[0]
    settings = {**fixed(base.architecture, variant), **config}
    patches = math.prod(positions.grid(settings))
    made: dict[str, tuple[tuple[int, ...], Callable[[], Any], str]] = {}
    if not settings["use_rotary_positional_embeddings"]:
        shape: tuple[int, ...] = (1, settings["max_text_seq_length"] + patches, width)
        made["mixins.pos_embed.pos_embedding"] = shape, partial(positions.sincos, settings, width), _COMPUTED
    else:
        zeros = partial(np.zeros, (positions.WORDS, width))
        made["transformer.position_embeddings.weight"] = (positions.WORDS, width), zeros, _UNUSED
        if len(patch.shape) == 4:  # the code of the 1.0 models keeps them, that of the 1.5 models does not
            head = by_key["mixins.adaln_layer.query_layernorm_list.0.weight"].shape[0]
            for name, wave in (("sin", np.sin), ("cos", np.cos)):
                table = partial(positions.rotary, settings, head, wave)
                made[f"mixins.pos_embed.freqs_{name}"] = (patches, head), table, _COMPUTED
    return {
        key: (NewTensor(f"{SAT_PREFIX}{key}", patch.dtype, shape, made=make), why)
        for key, (shape, make, why) in made.items()
    }


def sat_model(tensors: list[NewTensor], origin: str) -> Model:
    """The files of a SAT run. `origin` is our entry in the checkpoint."""
    name = f"{ITERATION}/{CHECKPOINT}"
    return Model({name: Shard("torch", tuple(tensors), {KEY: origin})}, {}, {"latest": ITERATION})
