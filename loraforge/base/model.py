"""A base model as files: a Diffusers pipeline or transformer folder, a SAT run or checkpoint, or one tensor file.

Sources: diffusers models/modeling_utils.py and utils/hub_utils.py (file names, index of the shards),
SwissArmyTransformer sat/training/model_io.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from loraforge.files.tensorfile import TensorFile
from loraforge.names.diffusers_config import Placed
from loraforge.names.layout import Architecture, Variant

Kind = Literal["pipeline", "transformer", "file", "sat"]
STEM = "diffusion_pytorch_model"
INDEX = f"{STEM}.safetensors.index.json"
NAME = re.compile(
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?!safetensors|bin)[\w-]+?)?(?P<part>-\d+-of-\d+)?"
    r"(?:\.(?!safetensors|bin)[\w-]+?)?\.(?P<suffix>safetensors|bin)(?P<index>\.index(?:\.[\w-]+)?\.json)?"
)
"""Weight files of Diffusers, Transformers and DeepSpeed's zero_to_fp32: in parts or whole, of a variant or not."""
LORA = re.compile(r"\.(matrix|lora)_[AB]\.")


@dataclass(frozen=True)
class BaseModel:
    """An opened base model. Only headers are read; a weight is read when it is used."""

    path: Path
    """What the user gave."""
    kind: Kind
    files: tuple[TensorFile, ...]
    """The shards, in the order of their names."""
    architecture: Architecture
    layout: str
    prefix: str
    """The prefix of every parameter's name: empty, or SAT's `model.diffusion_model.`"""
    notes: tuple[str, ...] = ()
    index: str = ""
    """Name of the index that lists the shards; empty if there is one file."""

    @property
    def folder(self) -> Path:
        """Where the tensor files lie."""
        return self.files[0].path.parent

    @cached_property
    def held(self) -> Mapping[str, TensorFile]:
        """Every key -> the shard it is in."""
        return {key: file for file in self.files for key in file.tensors}

    @cached_property
    def parameters(self) -> Mapping[str, str]:
        """Parameter name, in the layout's spelling -> its key. `.original.` is what SAT's LoRA run inserts."""
        own = [key for key in self.held if key.startswith(self.prefix) and not LORA.search(key)]
        return {key.removeprefix(self.prefix).replace(".original.", "."): key for key in own}

    @cached_property
    def lora(self) -> tuple[str, ...]:
        """The keys of a LoRA in the same files, where SAT's runs store it."""
        return tuple(key for key in self.held if LORA.search(key))

    def shape(self, parameter: str) -> tuple[int, ...] | None:
        """The shape of a parameter, or None if the base has no such parameter."""
        key = self.parameters.get(parameter)
        return None if key is None else self.held[key].tensors[key].shape

    @cached_property
    def placed(self) -> tuple[Placed, ...]:
        """The segments of every weight that the layout knows."""
        layout, every = self.architecture.layouts[self.layout], list[Placed]()
        for name in self.parameters:
            path, _, parameter = name.rpartition(".")
            located, shape = layout.locate(path), self.shape(name)
            segments = layout.modules[located[0]] if located else ()
            usual, here = self.architecture.named(segments)[:1], self.architecture.named(segments, self.layout)[:1]
            if located and shape and (usual, here) == (("weight",), (parameter,)):
                heights = self.architecture.sizes(segments, shape[0]) or ()
                parts = zip(segments, heights, strict=False)
                every += [(path, segment, located[1], (rows, *shape[1:])) for segment, rows in parts]
        return tuple(every)

    @cached_property
    def variants(self) -> tuple[Variant, ...]:
        """The released models whose shapes and segments it has; if none, those that it resembles in another width."""
        shapes = [(segment, index, shape) for _, segment, index, shape in self.placed]
        present = {segment for segment, _, _ in shapes}
        fitting = [v for v in self.architecture.variants if not any(v.objection(*entry) for entry in shapes)]
        every = {s for stack in self.architecture.layouts[self.layout].modules.values() for s in stack}
        lacking = {v.name: v.shapes.keys() & every - present for v in fitting}
        telling = next((shape for segment, _, shape in shapes if segment == self.architecture.told_by), None)
        similar = self.architecture.like(telling) if telling else ()
        known = [v for v in [v for v in fitting if not lacking[v.name]] or similar if v.absent.isdisjoint(present)]
        fewest = min((len(every - v.absent - present) for v in known), default=0)
        return tuple(v for v in known if len(every - v.absent - present) == fewest)
