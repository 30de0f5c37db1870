"""Which transformer of a pipeline an adapter goes into, and whether it is of the adapter's architecture.

Source: diffusers pipelines/wan/pipeline_wan.py (`transformer` denoises to `boundary_ratio`, `transformer_2` after).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from loraforge.adapter.adapter import Adapter
from loraforge.adapter.fit import Plan
from loraforge.adapter.fits import fits
from loraforge.base.updates import misfit, name_of
from loraforge.errors import ConversionError, LoraforgeError, Try
from loraforge.names.catalog import architecture, architectures
from loraforge.names.layout import COMPONENT, COMPONENTS
from loraforge.text import command, listed

_STEPS = {COMPONENT: "for the first steps, of much noise", f"{COMPONENT}_2": "for the last steps, of little noise"}


def transformer_of(pipe: Any) -> Any:
    """The transformer of a pipeline, or the one that is given, without its wrappers.

    Raises LoraforgeError if there is none, or two: as in Wan 2.2, where each of them has adapters of its own.
    """
    parts = vars(pipe) if hasattr(pipe, "__dict__") and not hasattr(pipe, "load_lora_adapter") else {}
    several = [name for name, part in parts.items() if name in _STEPS and part is not None]
    if len(several) > 1:
        text = f"{type(pipe).__name__} has two transformers, and an adapter is of one of them: say which. "
        ways = [Try(f"load_into(pipe.{name}, adapter)", _STEPS[name]) for name in several]
        raise LoraforgeError(f"{text}A pair of adapters is loaded by two calls.", *ways)
    component = next((name for name in COMPONENTS if hasattr(pipe, name)), COMPONENT)
    transformer = _inner(getattr(pipe, component, pipe))
    if hasattr(transformer, "load_lora_adapter"):
        return transformer
    if transformer is None and pipe is not None:
        ways = [Try(f"load_into(pipe.{name}, adapter)") for name in several]
        raise LoraforgeError(f"the {component} of {type(pipe).__name__} is None.", *ways or [_ORDER])
    raise LoraforgeError(f"{type(pipe).__name__} is no pipeline of Diffusers, nor the transformer of one.", _ORDER)


_ORDER = Try("load_into(pipe, adapter)", "in this order")


def _inner(model: Any) -> Any:
    """The transformer inside the wrappers of torch.compile, PEFT and data parallelism."""
    while True:
        children = vars(model).get("_modules", {}) if hasattr(model, "__dict__") else {}
        wrapped = next((children[key] for key in ("_orig_mod", "module") if [*children] == [key]), None)
        if wrapped is None and hasattr(type(model), "get_base_model"):  # a PeftModel
            wrapped = model.get_base_model()
        if wrapped is None:
            return model
        model = wrapped


def of_its_model(transformer: Any, adapter: Adapter) -> Adapter:
    """The adapter, decided to be of the transformer's architecture if it may be of it.

    A transformer of a class that no architecture names is told by its modules alone. Raises ConversionError if it is
    another architecture's.
    """
    kinds = {kind.__name__ for kind in type(transformer).__mro__}
    for name in (adapter.architecture, *adapter.rivals):
        if kinds & architecture(name).transformers:
            return adapter.as_of(name)
    if other := next((arch for arch in architectures().values() if kinds & arch.transformers), None):
        text = f"{name_of(adapter)} is one of {adapter.model.title}, and the transformer is of {other.title}."
        raise ConversionError(text, _look(adapter))
    return adapter


def _look(adapter: Adapter) -> str:
    return command("loraforge", "inspect", adapter.source.path if adapter.source else "--help")


def refuse_misfits(transformer: Any, adapter: Adapter, plans: list[Plan]) -> None:
    """Raise ConversionError if the transformer lacks a module, or has it in another shape; it names the right base."""
    if problems := list(_misfits(transformer, plans)):
        right = adapter.base_model or " or ".join(variant.name for variant in fits(adapter))
        base = f"It is for {right}." if right else "Use the base model of its training."
        text = f"{name_of(adapter)} does not fit this transformer: {listed(problems, 3)}. {base}"
        raise ConversionError(text, _look(adapter))


def _misfits(transformer: Any, plans: list[Plan]) -> Iterator[str]:
    """A text for every module that does not fit. Also works on `meta`."""
    modules = dict(transformer.named_modules())
    for one in plans:
        module = modules.get(one.path)
        module = getattr(module, "base_layer", module)  # if another adapter is loaded
        yield from misfit(one.path, _shape(module) if hasattr(module, "weight") else None, one.delta)


def _shape(module: Any) -> tuple[int, ...]:
    """The logical shape of a weight; a quantised one is stored in another shape."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return module.out_features, module.in_features
    return tuple(module.weight.shape)
