"""Checks that the LoRA layers of a live transformer apply their adapter: each layer is inspected, without a forward.

Sources: peft tuners/lora/layer.py (`LoraLayer.forward`); diffusers models/attention_processor.py
(a fused processor reads `to_qkv`), models/attention.py and models/transformers/transformer_wan.py
(`fuse_projections`), hooks/layerwise_casting.py, hooks/group_offloading.py; accelerate hooks.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraforge.errors import LoraforgeError, Try
from loraforge.text import listed

CEILING = 0.01
"""The largest relative error of a module's update from rounding; with more, loading is refused."""
FUSED: Mapping[str, tuple[str, ...]] = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
}
"""Fused layer of an attention -> the projections it computes in their place."""


@dataclass(frozen=True, slots=True)
class Update:
    """The update that one layer is to add: `scaling` times B A."""

    A: Any
    B: Any
    scaling: float
    magnitude: Any = None

    @property
    def is_finite(self) -> bool:
        return all(bool(t.isfinite().all()) for t in (self.A, self.B, self.magnitude) if t is not None)

    def to(self, dtype: Any) -> Update:
        """The update with its tensors in a type; unchanged if the type is None."""
        if dtype is None:
            return self
        magnitude = None if self.magnitude is None else self.magnitude.to(dtype)
        return Update(self.A.to(dtype), self.B.to(dtype), self.scaling, magnitude)

    def off(self, A: Any, B: Any) -> float:
        """The relative difference, in Frobenius norms, between this update and that of other factors of any rank."""
        import torch

        own_A, own_B, A, B = (t.detach().cpu().double().flatten(1) for t in (self.A, self.B, A, B))
        if torch.equal(own_A, A) and torch.equal(own_B, B):
            return 0.0
        left, right = torch.cat([B, -own_B], 1), torch.cat([A, own_A], 0)
        # |L R|^2 is the sum over (L'L) * (RR'), which needs no matrix as large as the weight
        size = float(((own_B.T @ own_B) * (own_A @ own_A.T)).sum())
        change = float(((left.T @ left) * (right @ right.T)).sum())
        return math.sqrt(max(change, 0.0) / size) if size > 0 else math.inf if change else 0.0


def _place(layer: Any, group: Any) -> tuple[Any, Any, bool]:
    """Device, type and `away` of the factors of a layer; `group` is the configuration of the group offload, or None."""
    hook = getattr(layer, "_hf_hook", None)
    aligned = next((h for h in (hook, *getattr(hook, "hooks", ())) if getattr(h, "offload", False)), None)
    weight, casting = layer.weight, _hook(layer, "layerwise_casting")
    dtype = casting.compute_dtype if casting else getattr(layer, "compute_dtype", None) or weight.dtype
    dtype = dtype if dtype.is_floating_point else None
    if weight.device.type == "meta" and aligned is not None and aligned.execution_device is not None:
        import torch

        return torch.device(aligned.execution_device), dtype, True
    if group is not None and group.offload_to_disk_path:
        # a group is read back by position, so that new tensors are not part of it
        return group.onload_device, dtype, True
    return weight.device, dtype, False


def group_offload(transformer: Any) -> Any:
    """The configuration of Diffusers' group offload, or None."""
    return next((hook.config for hook in group_hooks(transformer)), None)


def group_hooks(transformer: Any) -> list[Any]:
    """The hooks of Diffusers' group offload, in the order of their modules."""
    hooks = (_hook(module, "group_offloading") for module in transformer.modules())
    return [hook for hook in hooks if hook is not None]


def _hook(module: Any, name: str) -> Any:
    registry = getattr(module, "_diffusers_hook", None)
    return registry.get_hook(name) if registry is not None else None


@dataclass(frozen=True, slots=True)
class Cast:
    """An update, and the same converted to the type of its layer."""

    exact: Update
    rounded: Update
    device: Any
    dtype: Any
    """None to keep PEFT's choice, as for base weights that are packed integers."""
    away: bool
    """Whether the base weight is on another device until the forward of its layer."""

    @property
    def is_narrow(self) -> bool:
        """Whether the type of the layer has one byte."""
        return self.dtype is not None and self.dtype.itemsize < 2

    @property
    def off(self) -> float:
        """The relative error of the update from that conversion."""
        return self.exact.off(self.rounded.A, self.rounded.B)


class TypeTooNarrowError(LoraforgeError):
    """The type of the transformer cannot hold the adapter's numbers, or cannot be computed with."""


def placed(transformer: Any, updates: Mapping[str, Update]) -> dict[str, Cast]:
    """Every update in the type and for the device of its layer. Raises LoraforgeError if one cannot compute so."""
    modules, group = dict(transformer.named_modules()), group_offload(transformer)
    casts, problems = dict[str, Cast](), dict[int, list[str]]()
    for path, update in updates.items():
        layer = modules[path]
        device, dtype, away = _place(getattr(layer, "base_layer", layer), group)
        casts[path] = cast = Cast(update, update.to(dtype), device, dtype, away)
        if (n := next((n for n, (_, hinders, *_) in enumerate(_OBSTACLES) if hinders(cast)), None)) is not None:
            problems.setdefault(n, []).append(path)
    for n, paths in problems.items():
        why, _, kind, *remedies = _OBSTACLES[n]
        raise kind(f"{why}, in {listed(paths, 3)}. Nothing was loaded.", *remedies)
    return casts


_WIDER = Try("pipe.transformer.to(torch.bfloat16)", "before load_into; or torch.float32")
_CASTING = "pipe.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.bfloat16)"
_OBSTACLES: Sequence[tuple[str, Callable[[Cast], bool], type[LoraforgeError], *tuple[Try, ...]]] = (
    ("the base weights are on `meta`, and no offload loads them layer by layer",
     lambda cast: cast.device.type == "meta", LoraforgeError,
     Try("pipe = DiffusionPipeline.from_pretrained(...)", "which fills the weights; then load_into")),
    ("a DoRA needs the base weights, which are offloaded or in float8",
     lambda cast: cast.exact.magnitude is not None and (cast.away or cast.is_narrow), LoraforgeError,
     Try("load_into(pipe, adapter)", "before the offload or the casting is switched on")),
    ("the base weights are float8 without layerwise casting, and PyTorch cannot compute with them directly",
     lambda cast: cast.is_narrow, TypeTooNarrowError,
     Try(_CASTING, "before load_into, which then keeps its layers in bfloat16")),
    ("the adapter contains NaN or infinity", lambda cast: not cast.exact.is_finite, LoraforgeError),
    ("the adapter's numbers are too large for the type of the transformer, and become infinity",
     lambda cast: not cast.rounded.is_finite, TypeTooNarrowError, _WIDER),
    (f"rounding to the type of the transformer changes the update by more than {CEILING:.0%} of its size",
     lambda cast: cast.off > CEILING, TypeTooNarrowError, _WIDER),
)  # fmt: skip
"""Obstacle, whether it applies, the error, and what to do about it. The first that applies to a layer is raised."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A layer that should have the adapter, and what it should add."""

    layer: Any
    parent: Any
    path: str
    name: str
    update: Update
    strength: float

    @property
    def factors(self) -> tuple[Any, Any]:
        return self.layer.lora_A[self.name].weight, self.layer.lora_B[self.name].weight


def idle(transformer: Any, name: str, updates: Mapping[str, Update], strength: float) -> Iterator[str]:
    """`why: path` for every layer of the adapter `name` that does not add `strength` times its update."""
    modules = dict(transformer.named_modules())
    for path, update in updates.items():
        asked = Asked(modules.get(path), modules.get(path.rpartition(".")[0]), path, name, update, strength)
        if why := next((why for why, holds in _IDLE.items() if holds(asked)), None):
            yield f"{why}: {path}"


def is_bypassed(parent: Any, path: str) -> bool:
    """Whether an attention computes this projection by a fused layer, which bypasses the LoRA layers."""
    by_processor = type(getattr(parent, "processor", None)).__name__.startswith("Fused")
    own = path.rpartition(".")[2]
    return (by_processor or fuses_itself(parent)) and any(
        own in parts and hasattr(parent, layer) for layer, parts in FUSED.items()
    )


def fuses_itself(attention: Any) -> bool:
    """Whether an attention fused its projections by itself; older ones have another processor instead."""
    return hasattr(attention, "unfuse_projections") and bool(getattr(attention, "fused_projections", False))


_IDLE: Mapping[str, Callable[[Asked], bool]] = {
    "there is no layer of it": lambda asked: asked.name not in getattr(asked.layer, "lora_A", ()),
    "adapters are switched off there": lambda asked: asked.layer.disable_adapters,
    "it is not active there": lambda asked: (asked.name in asked.layer.active_adapters) != bool(asked.strength),
    "only a fused adapter acts there": lambda asked: asked.layer.merged,
    "a fused projection is used instead": lambda asked: is_bypassed(asked.parent, asked.path),
    "its numbers are on `meta`": lambda asked: any(t.device.type == "meta" for t in asked.factors),
    "its scale differs": lambda asked: (
        not math.isclose(float(asked.layer.scaling[asked.name]), asked.update.scaling * asked.strength, rel_tol=1e-6)
    ),
    "its numbers differ": lambda asked: not asked.update.off(*asked.factors) < 1e-6,
}
"""Why a layer does not act as it should -> whether that is so. Checked in this order."""
