"""A base model as Diffusers stores it, in shards with their index; and as SAT does, with the tables it insists on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from loraforge.base import positions
from loraforge.base.job import Model
from loraforge.base.model import INDEX, STEM, BaseModel
from loraforge.base.stream import NewTensor, Shard
from loraforge.files.tensorfile import KEY
from loraforge.format.sat_names import CHECKPOINT, ITERATION, SAT_PREFIX
from loraforge.names.diffusers_config import fixed
from loraforge.names.layout import Variant

FILE = f"{STEM}.safetensors"
SHARD = 10_000_000_000
"""The most bytes of weights in one file, as in save_pretrained."""

_UNUSED = "SAT's base class asks for it, and no CogVideoX uses it: zeros"
_COMPUTED = "computed for the sample in the configuration, as SAT does when it starts"


def safetensors_model(tensors: list[NewTensor], origin: str, documents: Mapping[str, Any]) -> Model:
    """The files that save_pretrained would write. `origin` is our header entry; `documents` are JSON files by name."""
    parts, size = [list[NewTensor]()], 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.key):
        if parts[-1] and size + tensor.nbytes > SHARD:
            parts.append([])
            size = 0
        parts[-1].append(tensor)
        size += tensor.nbytes
    count = len(parts)
    names = [FILE if count == 1 else f"{STEM}-{n:05}-of-{count:05}.safetensors" for n in range(1, count + 1)]
    metadata = {"format": "pt", KEY: origin}
    shards = {name: Shard("safetensors", tuple(part), metadata) for name, part in zip(names, parts, strict=True)}
    texts = {name: json.dumps(document, indent=2) + "\n" for name, document in documents.items()}
    if len(parts) > 1:
        weight_map = {tensor.key: name for name, shard in shards.items() for tensor in shard.tensors}
        total = sum(shard.nbytes for shard in shards.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        texts[INDEX] = json.dumps(index, indent=2) + "\n"
    return Model(shards, {}, texts)


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
