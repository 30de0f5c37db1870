"""Says what a tensor file is if it is no adapter, from its names alone, and what to give instead."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from loraforge.errors import NoAdapterError, names_in
from loraforge.files.tensorfile import TensorFile
from loraforge.format.grammar import odd_words
from loraforge.format.keys import kinds
from loraforge.format.sat_names import SAT_PREFIX
from loraforge.names.catalog import architectures
from loraforge.names.layout import pattern
from loraforge.names.lookalike import lora_paths, other_model
from loraforge.text import listed

_DIFFUSERS_FILE = "Give the pytorch_lora_weights.safetensors that trainer saved."
_LORA_RUN = "Give what the LoRA run wrote."


def not_an_adapter(file: TensorFile, wanted: str = "adapter of a format this version reads") -> NoAdapterError:
    """The refusal of a file that holds no `wanted`."""
    paths = lora_paths(kinds(file))
    if not of_training(file) and not _diffsynth(file) and (error := _others(file, paths)):
        return error
    for kind in _KINDS:
        if kind.matches(file):
            what = kind.what.replace("{base}", _base(file) or "")
            return NoAdapterError(f"{file.path} is {what}, and holds no {wanted}. {kind.instead}")
    if not of_training(file) and (error := _misspelt(file, paths)):
        return error
    names = f", with names like {listed(list(file.tensors), 3)}" if file.tensors else ""
    text = f"{file.path} holds no {wanted}. It has {len(file.tensors)} tensors{names}."
    return NoAdapterError(text, names_in(file.path))


def foreign(file: TensorFile) -> NoAdapterError | None:
    """The refusal of another model's adapter; None if the names are of no model that is known."""
    return _others(file, lora_paths(kinds(file)))


def _others(file: TensorFile, paths: Mapping[str, str]) -> NoAdapterError | None:
    other = other_model(paths.values())
    return _of_names(file, paths, f"{_not_named()}: it looks like one of {other}") if other else None


def _misspelt(file: TensorFile, paths: Mapping[str, str]) -> NoAdapterError | None:
    """The refusal of an adapter with known modules in a spelling that no format has; None if there are no LoRA keys."""
    if not paths:
        return None
    if (odd := odd_words(kinds(file))) is None:
        return _of_names(file, paths, _not_named())
    title, words = odd
    others = f" (which {other} has too)" if (other := other_model(paths.values(), tied=True)) else ""
    return _of_names(file, paths, f"an adapter of {title}'s modules{others}, in a spelling that is not read: {words}")


def _of_names(file: TensorFile, paths: Mapping[str, str], what: str) -> NoAdapterError:
    """The refusal of an adapter for its names, with three of them, from different modules if possible."""
    meant = {key for each in file.kinds.values() if not paths.keys().isdisjoint(each.values()) for key in each.values()}
    keys = [key for key in file.tensors if key in meant]
    names = listed(keys[:: max(1, len(keys) // 3)][:3])
    return NoAdapterError(f"{file.path} is {what}. Its names are like {names}.", names_in(file.path))


def _not_named() -> str:
    return "an adapter whose modules are not named as those of any model that is known (loraforge layouts)"


def _base(file: TensorFile) -> str | None:
    """The title of the architecture with a layout of the most module kinds (at least three), or None."""
    weights = [key.removeprefix(SAT_PREFIX) for key in kinds(file) if key.endswith(".weight")]
    paths = [re.sub(r"(\.original)?(\.base_layer)?\.weight$", "", key) for key in weights]
    index = architectures().index
    most = index.homes({pattern(path) for path in paths}).most_common(1)
    return index.titles[most[0][0][0]] if most and most[0][1] >= 3 else None


def _any(*starts: str) -> Callable[[TensorFile], bool]:
    return lambda file: any(key.startswith(starts) for key in kinds(file))


def _optimizer(file: TensorFile) -> bool:
    return "optimizer_state_dict" in file.tops or {"state", "param_groups"} <= set(file.tops)


def _trainers(file: TensorFile) -> bool:
    return of_training(file) and any(".lora_A." in key or ".base_layer." in key for key in kinds(file))


def taken_out(file: TensorFile) -> tuple[TensorFile, tuple[str, ...]]:
    """Only the adapter, and a note, if the file is a model with LoRA layers in it; otherwise the file as it is."""
    if "ds_version" in file.tops or not of_training(file):
        return file, ()
    mine = {key: info for key, info in file.tensors.items() if ".lora_" in key or "modules_to_save" in key}
    if not mine:
        return file, ()
    note = f"took the adapter out of a model that was saved with its LoRA layers in it: {len(mine)} tensors of"
    return replace(file, tensors=mine, within=len(file.tensors)), (f"{note} {len(file.tensors)}",)


def _diffsynth(file: TensorFile) -> bool:
    """Whether the names are DiffSynth's. Wan's in Diffusers begin the same way, but have an attn2."""
    return bool(file.tensors) and all(key.startswith("blocks.") and ".attn1.to_" in key for key in kinds(file))


def of_training(file: TensorFile) -> bool:
    """Whether it is a trainer's own state: DeepSpeed's, or a whole model that still has PEFT's layers."""
    return "ds_version" in file.tops or any(".base_layer." in key for key in kinds(file))


@dataclass(frozen=True, slots=True)
class _Kind:
    """A kind of file that no format reads."""

    what: str
    instead: str
    """A sentence: what to give instead, or what reads it."""
    matches: Callable[[TensorFile], bool]


_KINDS = (
    _Kind("an optimizer state", "Give the weights that were saved beside it.", _optimizer),
    _Kind("a checkpoint of a Diffusers or PEFT trainer", _DIFFUSERS_FILE, _trainers),
    _Kind("a full {base} transformer", _LORA_RUN, lambda file: _base(file) is not None),
    _Kind("a T5 text encoder", _LORA_RUN, _any("shared.", "encoder.block.", "conditioner.")),
    _Kind("a VAE", _LORA_RUN, _any("encoder.", "decoder.", "first_stage_model.", "loss.")),
)
