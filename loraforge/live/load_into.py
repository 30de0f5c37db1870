"""Loads an adapter of any format into a live Diffusers pipeline or transformer, at the scale of its training.

Sources: diffusers loaders/peft.py (`load_lora_adapter`), peft tuners/tuners_utils.py (`BaseTunerLayer.set_scale`,
`set_adapter`).
"""

from __future__ import annotations

import inspect
import itertools
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Unpack

from loraforge.adapter import relayout
from loraforge.adapter.adapter import Adapter, Storage
from loraforge.adapter.drop import without
from loraforge.adapter.fit import Plan, Policy, carry_out, plan, refusal, too_lossy
from loraforge.conversion.read import read
from loraforge.errors import ConversionError, LoraforgeError, Try, leaving_out, of_pipeline
from loraforge.files.mapped import steady
from loraforge.format.diffusers import STYLE
from loraforge.fusion.with_torch import as_tensor
from loraforge.live.acting import Cast, Update, fuses_itself, group_offload, idle, is_bypassed, placed
from loraforge.live.state import LiveState, guarded, layers
from loraforge.live.target import of_its_model, refuse_misfits, transformer_of
from loraforge.scale import peft_config
from loraforge.scale.rule import Scale
from loraforge.scale.stated import Stated, takes_stated
from loraforge.text import command, listed, shown


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was loaded into the transformer."""

    name: str
    """Its name in PEFT and Diffusers: for `pipe.set_adapters`, `pipe.delete_adapters`."""
    modules: int
    """How many layers of the transformer it changes."""
    scale: Scale
    scalings: tuple[float, ...]
    """The distinct scales of training, as its layers have them."""
    strength: float
    base_model: str | None
    notes: tuple[str, ...]


@takes_stated
def load_into(
    pipe: Any,
    adapter: str | Path | Adapter,
    strength: float = 1.0,
    *,
    name: str | None = None,
    drop: Sequence[str] = (),
    **stated: Unpack[Stated],
) -> Loaded:
    """Load `adapter` into `pipe`, a Diffusers pipeline or its transformer, beside the adapters that it has.

    `strength` 1 is as trained, 0 switches it off to the last bit. Works before and after offloading is enabled. The
    arguments that state a scale, and `drop`, are those of `convert`.

    Returns what was loaded, after a check that every layer acts with the right numbers. Raises a LoraforgeError and
    leaves the pipeline as it was if the adapter's scale is unknown, if it is for another base model, if a layer could
    not act, or if a library is missing.
    """
    with of_pipeline("a live pipeline"):
        for library in ("diffusers", "peft", "torch"):
            import_module(library)
    transformer = transformer_of(pipe)
    if not isinstance(strength, int | float) or not math.isfinite(strength):
        raise LoraforgeError(f"the strength {shown(strength)} is no number.", "strength=1.0")
    if not isinstance(adapter, str | Path | Adapter):
        text = f"{type(adapter).__name__} is no adapter: give a path, or what read() gave."
        raise LoraforgeError(text, "loraforge.read")
    if name is not None and (not isinstance(name, str) or not name or "." in name):
        raise LoraforgeError(f"the name {shown(name)} cannot be part of a module's path.", 'name="style"')
    if name is not None and name in getattr(transformer, "peft_config", {}):
        raise LoraforgeError(f"there is an adapter {name} in it already.", f"pipe.delete_adapters({name!r})")
    try:
        whole = adapter if isinstance(adapter, Adapter) else read(adapter, drop=drop, **stated)
        return _load(transformer, without(whole, drop)[0], strength, name)
    except LoraforgeError as error:
        raise _in_python(error, adapter) from error


def _load(transformer: Any, adapter: Adapter, strength: float, name: str | None) -> Loaded:
    adapter = of_its_model(transformer, adapter)
    if adapter.differences:
        text = f"no layer of PEFT is given the whole differences of {listed([*adapter.differences])}: fuse adds them."
        raise ConversionError(text, leaving_out(adapter.differences))
    plans = fitted(adapter)
    refuse_misfits(transformer, adapter, plans)
    name = name or _free_name(transformer, adapter)
    state, metadata = _as_diffusers(plans, adapter.model.component)
    updates = dict[str, Update]()  # that each layer should add, of the very tensors that Diffusers gets
    for one in plans:
        start = f"{adapter.model.component}.{one.path}"
        A, B, magnitude = (state.get(f"{start}.lora_{name}") for name in ("A.weight", "B.weight", "magnitude_vector"))
        updates[one.path] = Update(A, B, one.delta[0].scaling, magnitude)
    casts = placed(transformer, updates)
    maps = adapter.source.file.maps if adapter.source else ()
    with guarded(transformer, name) as before, steady(*maps):
        notes = list(_unfused(transformer, updates))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)  # as intended
            warnings.filterwarnings("ignore", "Adapter cannot be set when the model is merged", UserWarning)
            warnings.filterwarnings("ignore", ".* to a meta parameter", UserWarning)  # see `_settle`
            transformer.load_lora_adapter(state, prefix=adapter.model.component, adapter_name=name, metadata=metadata)
        if odd := {path for path, _ in layers(transformer, name)} ^ updates.keys():
            text = f"Diffusers put the adapter into other modules than it has: {listed(sorted(odd), 3)}."
            raise LoraforgeError(f"{text} It was taken out again.", "pip install --upgrade diffusers peft")
        _settle(transformer, name, casts)
        notes += _others_as_before(transformer, before)
        set_strength(transformer, name, strength)
        if bad := list(idle(transformer, name, {path: cast.rounded for path, cast in casts.items()}, strength)):
            text = f"the adapter would not act as it should ({listed(bad, 3)}). It was taken out again."
            raise LoraforgeError(text, "pip install --upgrade diffusers peft")
        group = group_offload(transformer)
        if group is not None and not group.offload_to_disk_path:  # else the new layers stay on its device
            from diffusers.hooks import group_offloading

            group_offloading._maybe_remove_and_reapply_group_offloading(transformer)
    notes = [*adapter.notes, *notes, *_rounding(casts)]
    return Loaded(name, len(plans), adapter.scale, adapter.scalings, strength, adapter.base_model, tuple(notes))


def _in_python(error: LoraforgeError, adapter: Any) -> LoraforgeError:
    """The same error, with options of the command line in its remedies turned into arguments of load_into."""
    shown_as = repr(str(adapter)) if isinstance(adapter, str | Path) else "adapter"
    remedies = []
    for remedy in error.remedies:
        if not remedy.options:
            remedies.append(remedy)
        elif arguments := _arguments([*map(str, remedy.options)]):
            remedies.append(Try(f"load_into(pipe, {shown_as}, {arguments})", remedy.why))
    error.remedies = tuple(remedies)
    return error


def _arguments(words: list[str]) -> str | None:
    """Options of the command line as arguments of load_into; None if it does not have one of them."""
    known = inspect.signature(load_into).parameters
    arguments = dict[str, Any]()
    while words:
        option, _, value = words.pop(0).removeprefix("--").partition("=")
        key = option.replace("-", "_")
        if key not in known:
            return None
        if key in ("as_loaded", "override_scale"):
            arguments[key] = True
            continue
        value = value or (words.pop(0) if words else "")
        arguments[key] = [*arguments.get(key, []), value] if key == "drop" else value
        if key in ("alpha", "trained_scale", "strength"):
            with suppress(ValueError):  # a placeholder such as N stays as it is
                arguments[key] = float(value)
    return ", ".join(f"{key}={value!r}" for key, value in arguments.items())


def _unfused(transformer: Any, paths: Iterable[str]) -> Iterator[str]:
    """Unfuse q, k and v if the adapter has one of them, and yield a note that says so."""
    modules = dict(transformer.named_modules())
    parents: dict[str, Any] = {path: modules.get(path.rpartition(".")[0]) for path in paths}
    if bypassing := {id(parent): parent for path, parent in parents.items() if is_bypassed(parent, path)}:
        for attention in filter(fuses_itself, bypassing.values()):
            attention.unfuse_projections()
        if any(not hasattr(attention, "unfuse_projections") for attention in bypassing.values()):
            # not by unfuse_qkv_projections(), which empties the original processors
            transformer.set_attn_processor(dict(transformer.original_attn_processors))
        yield (
            "the fused q, k and v projections were unfused, as no adapter acts in them; the result is the same. "
            "fuse_qkv_projections() after this switches adapters off there"
        )


def _settle(transformer: Any, name: str, casts: Mapping[str, Cast]) -> None:
    """Move factors that PEFT put on `meta`, on another device or into another type to the place of their layer."""
    import torch

    for path, cast in casts.items():
        layer, new = transformer.get_submodule(path), cast.rounded
        holders = ((layer.lora_A, new.A), (layer.lora_B, new.B), (layer.lora_magnitude_vector, new.magnitude))
        for holder, tensor in holders:
            if tensor is None:
                continue
            weight = holder[name].weight
            other_type = weight.dtype != (cast.dtype or weight.dtype)
            if weight.device == cast.device and not other_type:
                continue
            if weight.device.type == "meta" or other_type:
                weight = tensor  # else PEFT's own, which may be padded
            holder[name].weight = torch.nn.Parameter(weight.detach().to(cast.device, cast.dtype), requires_grad=False)


def _others_as_before(transformer: Any, before: LiveState) -> Iterator[str]:
    """Let the other adapters act as they did, beside the new one. Yields a note if something had to change."""
    off = any(state.disabled for state in before.layers.values())
    fused = sorted({name for state in before.layers.values() for name in state.merged})
    for path, layer in layers(transformer):
        state = before.layers.get(path)
        if layer.disable_adapters:
            layer.enable_adapters(True)
        others = () if state is None or off else dict.fromkeys((*state.active, *state.merged))
        _activate(layer, list(others))
    if off:
        yield (
            "adapters were switched off (disable_lora): the new one is on, the others stay off; "
            "pipe.set_adapters([...]) chooses which act"
        )
    elif fused:
        yield f"{listed(fused, 3)} had been fused into the weights (fuse_lora), and acts beside them now, the same"


def _rounding(casts: Mapping[str, Cast]) -> Iterator[str]:
    """A note on the largest error from rounding to the type of the transformer, if there is any."""
    error, worst = max((cast.off, path) for path, cast in casts.items())
    if error:
        types = {str(cast.rounded.B.dtype).removeprefix("torch.") for cast in casts.values()}
        yield (
            f"its numbers are stored in {' and '.join(sorted(types))}, the type of the transformer: the update is "
            f"off by {error:.2g} of its size at worst ({worst})"
        )


def set_strength(transformer: Any, name: str, strength: float) -> None:
    """Let a loaded adapter act at `strength` times its trained scale; at 0 its layers are skipped."""
    for _, layer in layers(transformer, name):
        layer.set_scale(name, strength)
        others = [active for active in layer.active_adapters if active != name]
        _activate(layer, [*others, *([name] if strength else [])])


def _activate(layer: Any, names: list[str]) -> None:
    """Activate these adapters, but train none: PEFT before 0.18 always makes active adapters trainable."""
    layer.set_adapter(names)
    for factors in layer.adapter_layer_names:
        getattr(layer, factors).requires_grad_(False)


def fitted(adapter: Adapter) -> list[Plan]:
    """One (A, B) for each module, under Diffusers' names. Raises ConversionError if a module has no name there."""
    arch = adapter.model
    if "diffusers" not in arch.layouts:
        raise ConversionError(f"Diffusers has no names for {arch.title}.", command("loraforge", "layouts"))
    relaid = relayout.relayout(adapter.modules, arch, adapter.layout, "diffusers")
    mixed = any(len({w.scaling for w in delta}) > 1 for delta, _ in relaid.values())
    policy = Policy(1.0, "F32") if mixed else Policy(None)  # Diffusers has one scaling per module
    ranks = {path: max(w.rank for w in delta) for path, delta in adapter.modules.items()}
    return plan(relaid, Storage(), policy, arch.layouts["diffusers"].stacked, "diffusers", ranks)


def _free_name(transformer: Any, adapter: Adapter) -> str:
    """A name that no adapter of the transformer has, without a dot: PEFT makes names part of module paths."""
    start = (adapter.source.run if adapter.source else "adapter").replace(".", "_")
    names = itertools.chain([start], (f"{start}-{n}" for n in itertools.count(2)))
    return next(name for name in names if name not in getattr(transformer, "peft_config", {}))


def _as_diffusers(plans: list[Plan], component: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors under Diffusers' keys, unchanged, and the LoraConfig that gives every module its scaling."""
    style, done = replace(STYLE, prefixes=(f"{component}.",)), [carry_out(plan) for plan in plans]
    if lossy := too_lossy([step for _, step in done]):
        raise refusal(lossy, len(plans), "the types of their numbers")
    deltas = {step.module: delta for delta, step in done}
    state = {key: as_tensor(array) for path, delta in deltas.items() for key, array in style.encode(path, delta)}
    ranks = {path: delta[0].rank for path, delta in deltas.items()}
    scalings = {path: delta[0].scaling for path, delta in deltas.items()}
    dora = any(w.magnitude is not None for delta in deltas.values() for w in delta)
    config = peft_config.config(ranks, scalings, dora=dora)
    return state, {f"{component}.{key}": value for key, value in config.items()}
