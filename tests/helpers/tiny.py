"""Tiny models of every architecture, with random weights, and Diffusers' own converter of an original checkpoint."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import tomli
import torch
from diffusers.loaders import single_file_utils

from loraforge.names.catalog import architecture
from loraforge.names.diffusers_config import Placed, sizes
from loraforge.names.layout import Architecture, Variant

TABLE: dict[str, Any] = tomli.loads((Path(__file__).parents[1] / "interop" / "tiny_models.toml").read_text("utf-8"))
State = dict[str, np.ndarray]


@dataclass(frozen=True)
class Tiny:
    """A model of an architecture; its blocks may be `more` than the table says, or fewer."""

    name: str
    number: int
    more: int = 0

    def __str__(self) -> str:
        return f"{self.name}-{self.number}" + (f"{self.more:+}-block" if self.more else "")

    @property
    def whole(self) -> Architecture:
        return architecture(self.name)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The arguments of its Diffusers class."""
        stated = {key: value for key, value in TABLE[self.name]["models"][self.number].items() if key != "variant"}
        blocks = [key for key, value in self.whole.config.items() if str(value).startswith("{blocks ")]
        return stated | {key: stated[key] + self.more for key in blocks if key in stated}

    @property
    def variant(self) -> Variant:
        """The released model that it is like."""
        name = TABLE[self.name]["models"][self.number].get("variant")
        return next(v for v in self.whole.variants if name in (None, v.name))

    def model(self) -> torch.nn.Module:
        torch.manual_seed(self.number)
        return getattr(diffusers, self.whole.transformer_of(self.variant))(**self.config)

    @cached_property
    def state(self) -> State:
        """Every parameter in Diffusers' names, random: no two rows are alike."""
        rng = np.random.default_rng(self.number)
        return {key: rng.standard_normal(t.shape, np.float32) for key, t in self.model().state_dict().items()}

    @property
    def arch(self) -> Architecture:
        """The architecture, with the number of this model's last block."""
        return self.whole.ending(self.whole.layouts["diffusers"].last_block(self.state))

    @property
    def placed(self) -> list[Placed]:
        """The segments of every weight."""
        arch, every = self.arch, list[Placed]()
        layout = arch.layouts["diffusers"]
        for key, array in self.state.items():
            path, _, parameter = key.rpartition(".")
            located = layout.locate(path)
            assert located, key
            stack = layout.modules[located[0]]
            if parameter == arch.named(stack)[0]:
                heights = arch.sizes(stack, array.shape[0])
                assert heights, key
                parts = zip(stack, heights, strict=True)
                every += [(path, segment, located[1], (rows, *array.shape[1:])) for segment, rows in parts]
        return every

    def by_diffusers(self, original: Mapping[str, np.ndarray]) -> State:
        """An original checkpoint as Diffusers' converter moves it, with this model's sizes for the released ones."""
        convert, prefix = getattr(single_file_utils, TABLE[self.name]["converter"]), TABLE[self.name].get("prefix", "")
        more = {"config": dict(self.model().config)} if "config" in inspect.signature(convert).parameters else {}
        tensors = {prefix + key: torch.from_numpy(array) for key, array in original.items()}
        moved = self._resized(convert)(tensors, **more)
        return {key: tensor.numpy() for key, tensor in moved.items()}

    def _resized(self, convert: Callable[..., Any]) -> Callable[..., Any]:
        code, values = inspect.getsource(convert), self.config | sizes(self.arch, self.placed)
        for released, here in TABLE[self.name].get("constants", {}).items():
            assert released in code, released
            code = code.replace(released, here.format_map(values))
        names = dict(vars(single_file_utils))
        exec(code, names)
        return names[convert.__name__]


def tiny_models(more: tuple[int, ...] = (0,)) -> list[Tiny]:
    """Every model of the table; with `more`, also those with so many blocks more or fewer."""
    return [Tiny(name, n, by) for name, table in TABLE.items() for n in range(len(table["models"])) for by in more]
