"""A base model as Diffusers stores it: shards and their index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from loraforge.base.job import Model
from loraforge.base.model import INDEX, STEM
from loraforge.base.stream import NewTensor, Shard
from loraforge.files.tensorfile import KEY

FILE = f"{STEM}.safetensors"
SHARD = 10_000_000_000
"""The most bytes of weights in one file, as in save_pretrained."""


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
