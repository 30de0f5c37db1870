"""A base model as Diffusers stores it: shards and their index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from loraforge.base.job import Model, Shard
from loraforge.base.model import INDEX, STEM
from loraforge.base.stream import NewTensor
from loraforge.files.tensorfile import KEY

FILE = f"{STEM}.safetensors"
SHARD = 10_000_000_000
"""Bytes of weights in one file, as save_pretrained cuts them."""


def _safetensors_model(tensors: list[NewTensor], said: str, beside: Mapping[str, Any]) -> Model:
    """The files save_pretrained would make. `beside`: JSON documents by name."""
    cut, size = [list[NewTensor]()], 0
    for tensor in sorted(tensors, key=lambda tensor: tensor.key):
        if cut[-1] and size + tensor.nbytes > SHARD:
            cut.append([])
            size = 0
        cut[-1].append(tensor)
        size += tensor.nbytes
    names = [FILE if len(cut) == 1 else f"{STEM}-{n:05}-of-{len(cut):05}.safetensors" for n in range(1, len(cut) + 1)]
    shards = {
        name: Shard("safetensors", tuple(part), {"format": "pt", KEY: said})
        for name, part in zip(names, cut, strict=True)
    }
    texts = {name: json.dumps(document, indent=2) + "\n" for name, document in beside.items()}
    if len(cut) > 1:
        where = {tensor.key: name for name, shard in shards.items() for tensor in shard.tensors}
        total = sum(shard.nbytes for shard in shards.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
        texts[INDEX] = json.dumps(index, indent=2) + "\n"
    return Model(shards, {}, texts)
