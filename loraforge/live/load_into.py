"""Put an adapter of any format into a live Diffusers pipeline or transformer, at the scale it was trained at.

Sources: diffusers loaders/peft.py (`load_lora_adapter`), peft tuners/tuners_utils.py (`BaseTunerLayer.set_scale`,
`set_adapter`).
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from loraforge.adapter import relayout
from loraforge.adapter.adapter import Adapter, Storage
from loraforge.adapter.drop import without
from loraforge.adapter.fit import Policy, carry_out, plan, refusal, too_lossy
from loraforge.adapter.fits import fits
from loraforge.algebra.lora import rows
from loraforge.conversion.read import read
from loraforge.errors import ConversionError, LoraforgeError, Try
from loraforge.format.diffusers import STYLE
from loraforge.live.acting import Cast, Update, group_offload, idle, is_bypassed, placed
from loraforge.live.state import LiveState, guarded, layers
from loraforge.names.catalog import architecture
from loraforge.names.layout import COMPONENT
from loraforge.scale import peft_config
from loraforge.scale.rule import Scale
from loraforge.scale.stated import Stated, takes_stated
from loraforge.text import command, listed, shown, told

if TYPE_CHECKING:
    from loraforge.adapter.fit import Plan
    from loraforge.algebra.lora import Array

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
    """Load `adapter` into `pipe`, a Diffusers pipeline or its transformer, beside the adapters that are in it.

    `strength` 1 is as trained, 0 switches it off to the last bit. Works before and after offloading is enabled. The
    arguments that state a scale, and `drop`, are those of `convert`.

    Returns what was loaded, after each layer was asked whether it acts, and with which numbers. Raises a
    LoraforgeError, with the pipeline as it was, when the adapter's scale is unknown, when it is for another base model,
    when a layer could not act, or when a library is missing.
    """
    transformer = _inner(getattr(pipe, COMPONENT, pipe))
    _libraries()
    if not hasattr(transformer, "load_lora_adapter"):
        what = f"the {COMPONENT} of {type(pipe).__name__} is None" if transformer is None and pipe is not None else ""
        text = what or f"{type(pipe).__name__} is no pipeline of Diffusers, nor the transformer of one"
        raise LoraforgeError(f"{text}.", Try("load_into(pipe, adapter)", "in this order"))
    if not isinstance(strength, int | float) or not math.isfinite(strength):
        raise LoraforgeError(f"the strength {shown(strength)} is no number.", "strength=1.0")
    if not isinstance(adapter, str | Path | Adapter):
        raise LoraforgeError(
            f"{type(adapter).__name__} is no adapter: give a path, or what read() gave.", "loraforge.read"
        )
    if name is not None and (not isinstance(name, str) or not name or "." in name):
        raise LoraforgeError(f"the name {shown(name)} cannot be part of a module's path.", 'name="style"')
    if name is not None and name in getattr(transformer, "peft_config", {}):
        raise LoraforgeError(f"there is an adapter {name} in it already.", f"pipe.delete_adapters({name!r})")
    try:
        return _load(transformer, adapter, strength, name, stated, drop)
    except LoraforgeError as error:
        raise _in_python(error, adapter) from error


def _load(
    transformer: Any,
    source: str | Path | Adapter,
    strength: float,
    name: str | None,
    stated: Stated,
    drop: Sequence[str],
) -> Loaded:
    adapter = source if isinstance(source, Adapter) else read(source, drop=drop, **stated)
    adapter, _ = without(adapter, drop)
    plans = fitted(adapter)
    if problems := list(misfits(transformer, plans)):
        raise ConversionError(other_base(adapter, problems), _look(adapter))
    name = name or _free_name(transformer, adapter)
    state, metadata = _as_diffusers(plans)
    wanted = _updates(plans, state)
    cast = placed(transformer, wanted)
    with guarded(transformer, name) as before:
        notes = list(_unfused(transformer, wanted))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)  # which is what is wanted
            warnings.filterwarnings("ignore", "Adapter cannot be set when the model is merged", UserWarning)
            warnings.filterwarnings("ignore", ".* to a meta parameter", UserWarning)  # `_settle` puts them there
            transformer.load_lora_adapter(state, prefix=COMPONENT, adapter_name=name, metadata=metadata)
        _check(transformer, name, set(wanted))
        _settle(transformer, name, cast)
        notes += _others_as_before(transformer, before)
        set_strength(transformer, name, strength)
        if bad := list(idle(transformer, name, {path: one.held for path, one in cast.items()}, strength)):
            text = f"the adapter would not act as it should ({listed(bad, 3)}). It was taken out again."
            raise LoraforgeError(text, "pip install --upgrade diffusers peft")
        _regroup(transformer)
    notes += _rounding(cast)
    return Loaded(
        name, len(plans), adapter.scale, adapter.scalings, strength, adapter.base_model, (*adapter.notes, *notes)
    )


def _inner(model: Any) -> Any:
    """The transformer inside of what torch.compile, PEFT or data parallelism put around it."""
    while True:
        held = vars(model).get("_modules", {}) if hasattr(model, "__dict__") else {}
        around = next((held[key] for key in ("_orig_mod", "module") if key in held and len(held) == 1), None)
        if around is None and hasattr(type(model), "get_base_model"):  # a PeftModel
            around = model.get_base_model()
        if around is None:
            return model
        model = around


def _in_python(error: LoraforgeError, adapter: Any) -> LoraforgeError:
    """The refusal with its additions to a command line as arguments of load_into."""
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
    """Options of the command line as arguments of load_into; None if it has not got one of them."""
    kinds = inspect.signature(load_into).parameters
    found = dict[str, Any]()
    while words:
        key, _, value = words.pop(0).removeprefix("--").replace("-", "_", 1).partition("=")
        key = key.replace("-", "_")
        if key not in kinds:
            return None
        if key in ("as_loaded", "override_scale"):
            found[key] = True
            continue
        value = value or (words.pop(0) if words else "")
        if key in ("alpha", "trained_scale", "strength"):
            found[key] = _number(value)
        elif key == "drop":
            found[key] = [*found.get(key, []), value]
        else:
            found[key] = value
    return ", ".join(f"{key}={value!r}" for key, value in found.items())


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:  # a placeholder such as N
        return text


def _unfused(transformer: Any, wanted: Mapping[str, Update]) -> Iterator[str]:
    """Let q, k and v be computed by layers of their own again where the adapter has them; says so."""
    modules = dict(transformer.named_modules())
    if any(is_bypassed(modules.get(path.rpartition(".")[0]), path) for path in wanted):
        transformer.set_attn_processor(dict(transformer.original_attn_processors))  # unfuse_... empties the original
        yield (
            "the fused q, k and v projections were unfused, as no adapter acts in them; the result is the same. "
            "fuse_qkv_projections() after this switches adapters off there"
        )


def _settle(transformer: Any, name: str, cast: Mapping[str, Cast]) -> None:
    """Put the factors where they are computed with, where PEFT put them on `meta` or into a narrower type."""
    import torch

    for path, one in cast.items():
        layer, place, new = transformer.get_submodule(path), one.place, one.held
        holders = ((layer.lora_A, new.A), (layer.lora_B, new.B), (layer.lora_magnitude_vector, new.magnitude))
        for holder, tensor in holders:
            held = holder[name].weight if tensor is not None else None
            if held is None or (held.device == place.device and held.dtype == (place.dtype or held.dtype)):
                continue
            if held.device.type == "meta" or held.dtype != (place.dtype or held.dtype):
                held = tensor  # the numbers themselves; else what is there, which may be padded
            holder[name].weight = torch.nn.Parameter(held.detach().to(place.device, place.dtype), requires_grad=False)


def _others_as_before(transformer: Any, before: LiveState) -> Iterator[str]:
    """Let the other adapters act as they did, the new one beside them. Says what it had to change."""
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


def _regroup(transformer: Any) -> None:
    """Take the new layers into Diffusers' group offload. One to disk is left alone: they stay on its device."""
    group = group_offload(transformer)
    if group is not None and not group.offload_to_disk_path:
        from diffusers.hooks import group_offloading

        group_offloading._maybe_remove_and_reapply_group_offloading(transformer)


def _rounding(cast: Mapping[str, Cast]) -> Iterator[str]:
    """A note on what the type of the transformer changes, if anything."""
    lost = {path: one.off for path, one in cast.items()}
    if (worst := max(lost, key=lambda path: lost[path])) and lost[worst]:
        types = {str(one.held.B.dtype).removeprefix("torch.") for one in cast.values()}
        yield (
            f"its numbers are stored in {' and '.join(sorted(types))}, the type of the transformer: the update is "
            f"off by {lost[worst]:.2g} of its size at worst ({worst})"
        )


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
    arch = architecture(adapter.architecture)
    if "diffusers" not in arch.layouts:
        raise ConversionError(f"Diffusers has no names for {arch.title}.", command("loraforge", "layouts"))
    relaid = relayout.relayout(adapter.modules, arch, adapter.layout, "diffusers")
    mixed = any(len({w.scaling for w in delta}) > 1 for delta, _ in relaid.values())
    policy = Policy(1.0, "F32") if mixed else Policy(None)  # one place per module can have one scaling
    ranks = {path: max(w.rank for w in delta) for path, delta in adapter.modules.items()}
    return plan(relaid, Storage(), policy, arch.layouts["diffusers"].stacked, "diffusers", ranks)


def misfits(transformer: Any, plans: list[Plan]) -> Iterator[str]:
    """Every module that the transformer has not got, or has in another shape. Works on the `meta` device too."""
    modules = dict(transformer.named_modules())
    for one in plans:
        module = modules.get(one.path)
        module = getattr(module, "base_layer", module)  # of an adapter that is in it already
        want = one.delta[0].base_shape(rows(one.delta))
        if module is None or not hasattr(module, "weight"):
            yield f"there is no {one.path}"
        elif _shape(module) != want:
            yield f"{one.path} is {list(_shape(module))}, not {list(want)}"


def _shape(module: Any) -> tuple[int, ...]:
    """The shape of a weight; a quantised one is packed into another, and says what it stands for."""
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return module.out_features, module.in_features
    return tuple(module.weight.shape)


def _updates(plans: list[Plan], state: Mapping[str, Any]) -> dict[str, Update]:
    """What each layer is to add, from the very tensors that Diffusers is given."""
    found = {}
    for one in plans:
        start = f"{COMPONENT}.{one.path}"
        magnitude = state.get(f"{start}.lora_magnitude_vector")
        A, B = (state[f"{start}.lora_{factor}.weight"] for factor in "AB")
        found[one.path] = Update(A, B, one.delta[0].scaling, magnitude)
    return found


def other_base(adapter: Adapter, problems: list[str]) -> str:
    """Why an adapter does not fit, and which base it is for."""
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
    done = [carry_out(plan) for plan in plans]
    if lossy := too_lossy([step for _, step in done]):
        raise refusal(lossy, len(plans), "the types of their numbers")
    deltas = {step.module: delta for delta, step in done}
    state = {key: _tensor(array) for path, delta in deltas.items() for key, array in STYLE.encode(path, delta)}
    least = peft_config.config(
        {path: delta[0].rank for path, delta in deltas.items()},
        {path: delta[0].scaling for path, delta in deltas.items()},
        dora=any(w.magnitude is not None for delta in deltas.values() for w in delta),
    )
    return state, {f"{COMPONENT}.{key}": value for key, value in least.items()}


def _tensor(array: Array) -> Any:
    """A tensor with memory of its own: the file's is read-only."""
    import torch

    plain = np.ascontiguousarray(array)
    if plain.dtype.name == "bfloat16":  # which numpy does not have
        return torch.from_numpy(plain.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(plain.copy())


def _check(transformer: Any, name: str, wanted: set[str]) -> None:
    """Raise LoraforgeError unless exactly these modules have a layer of the adapter now."""
    held = {path for path, _ in layers(transformer, name)}
    if held != wanted:
        odd = listed(sorted(held ^ wanted), 3)
        raise LoraforgeError(
            f"Diffusers put the adapter into other modules than it has: {odd}. It was taken out again.",
            "pip install --upgrade diffusers peft",
        )
