"""Put an adapter of any format into a live Diffusers pipeline or transformer, at the scale it was trained at.

Sources: diffusers loaders/peft.py (`load_lora_adapter`), loaders/lora_base.py (what it does with offload
hooks), peft tuners/tuners_utils.py (`BaseTunerLayer.set_scale`, `set_adapter`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraforge import peftrules
from loraforge.adapter import Adapter, Scale, Storage
from loraforge.catalog import architecture
from loraforge.errors import ConversionError, LoraforgeError, Try, command, listed, shown, told
from loraforge.formats.diffusers import STYLE
from loraforge.read import read
from loraforge.recorded import COMPONENT

if TYPE_CHECKING:
    from loraforge.fit import Plan
    from loraforge.lora import Array

EXTRA = Try("pip install 'loraforge[pipeline]'", "torch, diffusers, peft, transformers, video writing")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What went into the transformer."""

    name: str
    """Under which PEFT and Diffusers know it: for `pipe.set_adapters`, `pipe.delete_adapters`."""
    modules: int
    scale: Scale
    scalings: tuple[float, ...]
    """The distinct scales of training, which its layers have."""
    strength: float
    base_model: str | None
    notes: tuple[str, ...]


def load_into(
    pipe: Any,
    adapter: str | Path | Adapter,
    strength: float = 1.0,
    *,
    name: str | None = None,
    alpha: float | None = None,
    trained_scale: float | None = None,
    trained_by: str | None = None,
    training_config: str | Path | None = None,
    as_loaded: bool = False,
    override_scale: bool = False,
) -> Loaded:
    """Load `adapter` into `pipe`, a Diffusers pipeline or its transformer, beside the adapters that are in it.

    `strength` 1 is as trained, 0 switches it off to the last bit. Load before `enable_model_cpu_offload` and the like;
    afterwards works where Diffusers can put its hooks back. The arguments that state a scale are those of `convert`.

    Returns what was loaded. Raises a LoraforgeError, with the pipeline as it was, when the adapter's scale is unknown,
    when it is for another base model, or when a library is missing.
    """
    transformer = getattr(pipe, COMPONENT, pipe)
    _libraries()
    if not hasattr(transformer, "load_lora_adapter"):
        text = f"{type(pipe).__name__} is no pipeline of Diffusers, nor the transformer of one."
        raise LoraforgeError(text, Try("load_into(pipe, adapter)", "in this order"))
    if not isinstance(strength, int | float) or not math.isfinite(strength):
        raise LoraforgeError(f"the strength {shown(strength)} is no number.", "strength=1.0")
    if not isinstance(adapter, str | Path | Adapter):
        raise LoraforgeError(
            f"{type(adapter).__name__} is no adapter: give a path, or what read() gave.", "loraforge.read"
        )
    if name is not None and name in getattr(transformer, "peft_config", {}):
        raise LoraforgeError(f"there is an adapter {name} in it already.", f"pipe.delete_adapters({name!r})")
    if not isinstance(adapter, Adapter):
        adapter = read(
            adapter, alpha=alpha, trained_scale=trained_scale, trained_by=trained_by,
            training_config=training_config, as_loaded=as_loaded, override_scale=override_scale,
        )  # fmt: skip
    plans = fitted(adapter)
    if problems := list(misfits(transformer, plans)):
        raise ConversionError(other_base(adapter, problems), _look(adapter))
    name = name or _free_name(transformer, adapter)
    state, metadata = _as_diffusers(plans)
    active = {path: list(layer.active_adapters) for path, layer in layers(transformer)}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)  # which is what is wanted
        transformer.load_lora_adapter(
            state, prefix=COMPONENT, adapter_name=name, metadata=metadata, _pipeline=_to_rehook(pipe, transformer)
        )
    _check(transformer, name, {plan.path for plan in plans})
    for path, layer in layers(transformer):  # PEFT leaves the latest alone active
        _activate(layer, active.get(path, []))
    set_strength(transformer, name, strength)
    scalings = tuple(sorted({w.scaling for delta in adapter.modules.values() for w in delta}))
    return Loaded(name, len(plans), adapter.scale, scalings, strength, adapter.base_model, adapter.notes)


def set_strength(transformer: Any, name: str, strength: float) -> None:
    """Let a loaded adapter act at `strength` times its trained scale; at 0 its layers are passed by."""
    for _, layer in layers(transformer, name):
        layer.set_scale(name, strength)
        others = [active for active in layer.active_adapters if active != name]
        _activate(layer, [*others, *([name] if strength else [])])


def _activate(layer: Any, names: list[str]) -> None:
    """Let these adapters act, and train none. PEFT before 0.18 makes trainable what acts, without a way to say no."""
    layer.set_adapter(names)
    for factors in layer.adapter_layer_names:
        getattr(layer, factors).requires_grad_(False)


def fitted(adapter: Adapter) -> list[Plan]:
    """One (A, B) for each module, under Diffusers' names. Raises ConversionError where it has none for a module."""
    from loraforge import graph  # numpy is loaded with the first adapter, not with --help
    from loraforge.fit import Policy, plan

    arch = architecture(adapter.architecture)
    if "diffusers" not in arch.layouts:
        raise ConversionError(f"Diffusers has no names for {arch.title}.", command("loraforge", "layouts"))
    relaid = graph.relayout(adapter.modules, arch, adapter.layout, "diffusers")
    mixed = any(len({w.scaling for w in delta}) > 1 for delta, _ in relaid.values())
    policy = Policy(1.0, "F32") if mixed else Policy(None)  # one place per module can have one scaling
    ranks = {path: max(w.rank for w in delta) for path, delta in adapter.modules.items()}
    return plan(relaid, Storage(), policy, arch.layouts["diffusers"].stacked, "diffusers", ranks)


def misfits(transformer: Any, plans: list[Plan]) -> Iterator[str]:
    """Every module that the transformer has not got, or has in another shape. Works on the `meta` device too."""
    from loraforge.lora import rows

    modules = dict(transformer.named_modules())
    for plan in plans:
        module = modules.get(plan.path)
        module = getattr(module, "base_layer", module)  # of an adapter that is in it already
        want = plan.delta[0].base_shape(rows(plan.delta))
        if module is None or not hasattr(module, "weight"):
            yield f"there is no {plan.path}"
        elif tuple(module.weight.shape) != want:
            yield f"{plan.path} is {list(module.weight.shape)}, not {list(want)}"


def other_base(adapter: Adapter, problems: list[str]) -> str:
    """Why an adapter does not fit, and which base it is for."""
    from loraforge.base import fits

    right = adapter.base_model or " or ".join(variant.name for variant in fits(adapter))
    text = f"{_called(adapter)} is not for this base model: {listed(problems, 3)}. "
    return text + (f"It is for {right}." if right else "Use the base model of its training.")


def _libraries() -> None:
    try:
        import diffusers  # noqa: F401 - whether it is there
        import peft  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        text = f"an adapter goes into a live pipeline with {error.name}, which is not installed here."
        raise LoraforgeError(text, EXTRA) from error


def _called(adapter: Adapter) -> str:
    return told(adapter.source.path) if adapter.source else "the adapter"


def _look(adapter: Adapter) -> str:
    return command("loraforge", "inspect", adapter.source.path) if adapter.source else "loraforge inspect --help"


def _free_name(transformer: Any, adapter: Adapter) -> str:
    """A name no adapter of the transformer has. PEFT puts names into module paths, so there is no dot in it."""
    start = (adapter.source.run if adapter.source else "adapter").replace(".", "_")
    taken = getattr(transformer, "peft_config", {})
    return next(name for n in range(len(taken) + 1) if (name := f"{start}-{n + 1}" if n else start) not in taken)


def _as_diffusers(plans: list[Plan]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors under Diffusers' keys, as they are, and the LoraConfig that gives every module its scaling."""
    from loraforge.fit import carry_out

    deltas = {plan.path: carry_out(plan)[0] for plan in plans}
    state = {key: _tensor(array) for path, delta in deltas.items() for key, array in STYLE.encode(path, delta)}
    least = peftrules.config(
        {path: delta[0].rank for path, delta in deltas.items()},
        {path: delta[0].scaling for path, delta in deltas.items()},
        dora=any(w.magnitude is not None for delta in deltas.values() for w in delta),
    )
    return state, {f"{COMPONENT}.{key}": value for key, value in least.items()}


def _tensor(array: Array) -> Any:
    """A tensor with memory of its own: the file's is read-only."""
    import numpy as np
    import torch

    plain = np.ascontiguousarray(array)
    if plain.dtype.name == "bfloat16":  # which numpy does not have
        return torch.from_numpy(plain.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(plain.copy())


def layers(transformer: Any, name: str | None = None) -> Iterator[tuple[str, Any]]:
    """Path and layer of every module that has the adapter `name` in it, or any."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for path, layer in transformer.named_modules():
        if isinstance(layer, BaseTunerLayer) and (name is None or name in getattr(layer, "scaling", {})):
            yield path, layer


def _to_rehook(pipe: Any, transformer: Any) -> Any:
    """The pipeline, where its hooks must come off while layers are put in; None where they need not.

    A hook of model offload moves the whole transformer, new layers too; those of sequential and group offload sit on
    single layers, and new ones would have none.
    """
    hook = getattr(transformer, "_hf_hook", None)
    if pipe is transformer or (hook is not None and type(hook).__name__ == "CpuOffload"):
        return None
    return pipe


def _check(transformer: Any, name: str, wanted: set[str]) -> None:
    """Raise LoraforgeError unless exactly these modules have a layer of the adapter now."""
    held = {path for path, _ in layers(transformer, name)}
    if held != wanted:
        transformer.delete_adapters(name)
        odd = listed(sorted(held ^ wanted), 3)
        raise LoraforgeError(
            f"Diffusers put the adapter into other modules than it has: {odd}. It was taken out again.",
            "pip install --upgrade diffusers peft",
        )
