"""Tiny models that a trainer adapts, and the truth: what its live network adds, in Diffusers' names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tomli
import torch
from helpers.carry import carry
from helpers.tiny import TABLE, Tiny
from torch import nn

from loraforge.names.layout import Variant

SMALL: dict[str, Any] = tomli.loads((Path(__file__).parent / "small_models.toml").read_text("utf-8"))
Updates = dict[str, np.ndarray]
"""Module path -> what the network adds to its weight."""


@dataclass(frozen=True)
class Small(Tiny):
    """The smallest model of an architecture."""

    number: int = 0

    @cached_property
    def config(self) -> dict[str, Any]:
        """The arguments of its Diffusers class."""
        return dict(SMALL[self.name])

    @property
    def variant(self) -> Variant:
        """The first one."""
        return self.whole.variants[0]

    def weights(self, layout: str) -> dict[str, np.ndarray]:
        """Every parameter in the names of a layout."""
        if layout == "diffusers":
            return self.state
        return carry(self.state, self.arch, "diffusers", layout, [self.variant])[0]

    def tree(self, layout: str, classes: Mapping[str, str]) -> nn.Module:
        """A model that has these names and shapes, and no forward. `classes`: pattern of paths -> class name."""
        root = _made(type(self.name, (Inner,), {}))
        for key, array in self.weights(layout).items():
            path, _, parameter = key.rpartition(".")
            parent, at = root, ""
            *above, last = path.split(".")
            for name in above:
                at = f"{at}.{name}" if at else name
                if name not in parent._modules:
                    kind = next((cls for pattern, cls in classes.items() if re.fullmatch(pattern, at)), "Inner")
                    parent.add_module(name, _made(type(kind, (Inner,), {})))
                parent = parent._modules[name]  # type: ignore[assignment]
            if parameter == "weight" and array.ndim > 1 and last != "gate":  # a router's is a bare parameter
                parent.add_module(last, _layer(array.shape))
            elif last and last not in parent._modules:
                parent.add_module(last, _made(nn.Module))
        return root

    def moved(self, layout: str, updates: Updates) -> Updates:
        """Updates in Diffusers' names, moved by Diffusers' own converter of base weights if it has one."""
        state = {key: np.zeros(array.shape) for key, array in self.weights(layout).items()}
        for path, update in updates.items():
            key = f"{path}.weight"
            state[key] = update.astype("f8").reshape(state[key].shape)
        if layout != "diffusers" and "converter" in TABLE[self.name]:
            state = self.by_diffusers(state)
        elif layout != "diffusers":
            state = carry(state, self.arch, layout, "diffusers", [self.variant])[0]
        return {key.removesuffix(".weight"): array for key, array in state.items() if array.any()}

    def same_names(self, model: nn.Module, layout: str) -> None:
        """Raises AssertionError unless the trainer's own model has the matrices of a layout, in name and shape."""
        want = {key: array.shape for key, array in self.weights(layout).items() if array.ndim > 1}
        have = {key: tuple(p.shape) for key, p in model.named_parameters() if p.ndim > 1}
        odd = {key for key in want.keys() | have.keys() if want.get(key) != have.get(key)}
        assert not odd, sorted((key, want.get(key), have.get(key)) for key in odd)[:6]


class Inner(nn.Module):
    """A module, or a list of them."""

    def __getitem__(self, number: int) -> nn.Module:
        """The block of this number."""
        return self._modules[str(number)]  # type: ignore[return-value]


def _made(kind: type[nn.Module]) -> nn.Module:
    return kind()


def _layer(shape: Sequence[int]) -> nn.Module:
    """A layer whose weight has this shape."""
    if len(shape) == 2:
        return nn.Linear(shape[1], shape[0])
    kind = nn.Conv2d if len(shape) == 4 else nn.Conv3d
    return kind(shape[1], shape[0], kernel_size=tuple(shape[2:]), stride=tuple(shape[2:]))


def fill(network: nn.Module, seed: int = 3) -> None:
    """Random numbers in every factor of a network: multiples of 1/64, which a half type holds exactly."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randint(-63, 64, parameter.shape, generator=random) / 64)


def product(up: torch.Tensor, down: torch.Tensor) -> np.ndarray:
    """up @ down in float64, of linear layers and of convolutions."""
    B, A = up.detach().double(), down.detach().double()
    return np.asarray((B.flatten(1) @ A.flatten(1)).reshape(B.shape[0], *A.shape[1:]))


@torch.no_grad()
def added(model: nn.Module) -> Updates:
    """What each layer of a live model adds to its weight, in float64: what it makes of the identity without it."""
    updates: Updates = {}
    model.double().eval()
    layers = {path: layer for path, layer in model.named_modules() if not _FACTOR.search(path)}
    bases = {path: getattr(layer, "base_layer", layer) for path, layer in layers.items()}
    bases = {path: base for path, base in bases.items() if isinstance(base, nn.Linear | nn.Conv2d | nn.Conv3d)}
    for base in bases.values():
        for parameter in base.parameters(recurse=False):
            parameter.zero_()
    for path, base in bases.items():
        size = base.weight[0].numel() if base.weight.numel() else 0
        shape = (size, *base.weight.shape[1:])
        update = layers[path].forward(torch.eye(size, dtype=torch.float64).reshape(shape)).reshape(size, -1).T
        if update.any():
            updates[path] = np.asarray(update).reshape(base.weight.shape).copy()
    return updates


_FACTOR = re.compile(r"(^|\.)(base_layer|lora_A|lora_B|lora_down|lora_up|original)(\.|$)")
"""Inside a layer that a trainer has wrapped."""


def factors(model: nn.Module) -> nn.Module:
    """The factors of a model that a trainer has wrapped, as `fill` takes them."""
    return nn.ParameterList(p for name, p in model.named_parameters() if "lora" in name)  # type: ignore[return-value]
