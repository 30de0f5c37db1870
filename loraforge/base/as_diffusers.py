"""A base model as Diffusers stores it: shards and their index."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from loraforge.base.job import Model, Shard
from loraforge.base.model import INDEX, STEM
from loraforge.files.tensorfile import KEY, TensorInfo

if TYPE_CHECKING:
    from loraforge.base.job import Model
    from loraforge.base.stream import NewTensor

FILE = f"{STEM}.safetensors"
SHARD = 10_000_000_000
"""Bytes of weights in one file, as save_pretrained cuts them."""


def _safetensors_model(tensors: list[NewTensor], said: str, beside: Mapping[str, Any]) -> Model:
    """The files save_pretrained would make. `beside`: JSON documents by name."""
    cut = list(_cut(sorted(tensors, key=lambda tensor: tensor.key)))
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


def _cut(tensors: list[NewTensor]) -> Iterator[list[NewTensor]]:
    part, size = list[Any](), 0
    for tensor in tensors:
        nbytes = TensorInfo(*tensor.entry, 0).nbytes
        if part and size + nbytes > SHARD:
            yield part
            part, size = [], 0
        part.append(tensor)
        size += nbytes
    yield part
