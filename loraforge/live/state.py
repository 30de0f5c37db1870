"""The state of a transformer before an adapter is loaded, restored to the last bit if loading fails."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from loraforge.errors import LoraforgeError, Try
from loraforge.live.acting import FUSED, fuses_itself, group_hooks

_ATTRIBUTES = ("peft_config", "_hf_peft_config_loaded", "_prepare_lora_hotswap_kwargs")


def layers(transformer: Any, name: str | None = None) -> Iterator[tuple[str, Any]]:
    """Path and layer of every LoRA layer that has the adapter `name`; of every one if `name` is None."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, layer in transformer.named_modules():
        if isinstance(layer, BaseTunerLayer) and (name is None or name in getattr(layer, "scaling", {})):
            yield path, layer


@dataclass(frozen=True, slots=True)
class LayerState:
    """The state of one LoRA layer."""

    active: tuple[str, ...]
    merged: tuple[str, ...]
    disabled: bool
    weight: Any
    """A copy of the base weight if adapters are fused into it (unfusing rounds), else None."""


class LiveState:
    """Everything in a transformer that loading the adapter `name` may change."""

    def __init__(self, transformer: Any, name: str) -> None:
        self.transformer, self.name = transformer, name
        self.layers = {path: _state(layer) for path, layer in layers(transformer)}
        self.attributes = {name: vars(transformer)[name] for name in _ATTRIBUTES if name in vars(transformer)}
        self.frozen = [(parameter, parameter.requires_grad) for parameter in transformer.parameters()]
        self.hooks = group_hooks(transformer)
        self.processors = dict(getattr(transformer, "attn_processors", {}))
        self.fused = [
            (module, {name: getattr(module, name) for name in FUSED if hasattr(module, name)})
            for module in transformer.modules()
            if fuses_itself(module)
        ]

    def keep_gradients(self) -> None:
        """Restore `requires_grad` of all parameters: PEFT freezes everything except the new adapter."""
        for parameter, needed in self.frozen:
            parameter.requires_grad_(needed)

    def undo(self) -> None:
        """Restore everything. Of hooks, loading changes those of a group offload alone."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Adapter .* was active which is now deleted", UserWarning)
            for path, layer in list(layers(self.transformer)):
                self._undo(path, layer)
        getattr(self.transformer, "peft_config", {}).pop(self.name, None)
        for name in _ATTRIBUTES:
            vars(self.transformer).pop(name, None)
        vars(self.transformer).update(self.attributes)
        if self.processors:
            self.transformer.set_attn_processor(dict(self.processors))
        for attention, parts in self.fused:
            for name, layer in parts.items():
                setattr(attention, name, layer)
            attention.fused_projections = True
        self.keep_gradients()
        if self.hooks != group_hooks(self.transformer):
            from diffusers.hooks import HookRegistry, group_offloading

            registry = HookRegistry.check_if_exists_or_initialize(self.transformer)
            for name in ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading"):
                registry.remove_hook(name, recurse=True)
            group_offloading._apply_group_offloading(self.transformer, self.hooks[0].config)

    def _undo(self, path: str, layer: Any) -> None:
        before = self.layers.get(path)
        if before is None:
            parent, _, child = path.rpartition(".")
            setattr(self.transformer.get_submodule(parent), child, layer.get_base_layer())
            return
        if self.name in layer._all_available_adapter_names():
            layer.delete_adapter(self.name)
        layer._active_adapter, layer._disable_adapters = list(before.active), before.disabled
        if before.weight is not None:
            layer.get_base_layer().weight.data.copy_(before.weight)
            layer.merged_adapters = list(before.merged)


def _state(layer: Any) -> LayerState:
    merged = tuple(getattr(layer, "merged_adapters", ()))
    weight = layer.get_base_layer().weight.detach().clone() if merged else None
    return LayerState(tuple(layer.active_adapters), merged, layer.disable_adapters, weight)


@contextmanager
def guarded(transformer: Any, name: str) -> Iterator[LiveState]:
    """Wraps calls of Diffusers and PEFT: if they raise, the transformer is restored and a LoraforgeError raised."""
    import diffusers
    import peft
    from diffusers.utils import logging

    before, level = LiveState(transformer, name), logging.get_verbosity()
    logging.set_verbosity(50)  # it warns about the other adapters; everything that matters is checked by us
    try:
        yield before
        before.keep_gradients()
    except BaseException as error:
        before.undo()
        if isinstance(error, LoraforgeError) or not isinstance(error, Exception):
            raise
        message = next(iter(str(error).strip().splitlines()), "")[:300]
        raise LoraforgeError(
            f"diffusers {diffusers.__version__} with peft {peft.__version__} cannot load the adapter "
            f"({type(error).__name__}: {message}). The pipeline is as it was.",
            Try("pip install --upgrade diffusers peft", "if one is much older than the other"),
        ) from error
    finally:
        logging.set_verbosity(level)
