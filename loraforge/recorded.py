"""What records the scale of an adapter file: its header, and the training configurations named or lying beside it."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from loraforge import peftrules
from loraforge.errors import FormatError, ScaleError, Try, VariantError, command, listed
from loraforge.scale import Rule
from loraforge.trainingconfig import TrainingScale, beside, read_training_config

if TYPE_CHECKING:
    from loraforge.formats import Choice
    from loraforge.tensorfile import TensorFile

COMPONENT = "transformer"
"""What Diffusers calls the part of a pipeline that CogVideoX LoRAs adapt; it stands before names and entries."""

HEADER = ("lora_adapter_metadata", "lora_config")
"""Header entries that record the scale. The second is finetrainers'; diffusers ignores it."""


def header_configs(file: TensorFile) -> dict[str, dict[str, Any]]:
    """Entry -> the LoraConfig in it, without the component's prefix; none where it speaks of other components.

    Raises ScaleError when an entry is not JSON.
    """
    found = {}
    for key in HEADER:
        if key not in file.metadata:
            continue
        try:
            value = json.loads(file.metadata[key])
        except (ValueError, RecursionError) as error:
            look = command("loraforge", "inspect", file.path)
            raise ScaleError(f"{file.path}: its header entry {key} is not JSON.", look) from error
        if not isinstance(value, dict):
            continue
        prefix = f"{COMPONENT}." if any(name.startswith(f"{COMPONENT}.") for name in value) else ""
        mine = {name.removeprefix(prefix): entry for name, entry in value.items() if name.startswith(prefix)}
        if "r" in mine or "lora_alpha" in mine:
            found[key] = mine
    return found


def from_configs(
    file: TensorFile,
    configs: Mapping[str, Mapping[str, Any]],
    ranks: Mapping[str, int],
    *,
    dora: bool,
    believed: bool = True,
) -> list[Rule]:
    """One rule per LoraConfig of a file, by the place it stands in; none where it is not to be `believed`.

    Raises FormatError when one describes more than A and B or leaves out a module of the file, and
    ScaleError when it contradicts the tensors.
    """
    rules = []
    look = command("loraforge", "inspect", file.path)
    for where, config in configs.items():
        if odd := peftrules.unsupported(config):
            raise VariantError(f"{file.path}: its {where} has {odd}.", look)
        if where == "lora_config":  # finetrainers writes neither patterns nor rslora: one r and one alpha for all
            config = {"r": Counter(ranks.values()).most_common(1)[0][0], **config}
        if bool(config.get("use_dora", dora)) != dora:
            have = "and the file has" if dora else "but the file has no"
            raise FormatError(f"{file.path}: its {where} says use_dora {config['use_dora']}, {have} magnitudes.", look)
        if not believed:
            continue
        try:
            rules.append(peftrules.rule(config, ranks, where))
            left = peftrules.untargeted(config, ranks, where)
        except ScaleError as error:
            raise ScaleError(f"{file.path}: {error.message}", *error.remedies) from error
        narrowed = ", ".join(
            key for key in ("target_modules", "exclude_modules", "layers_to_transform") if config.get(key)
        )
        if left:
            raise FormatError(
                f"{file.path}: its {where} leaves out (by {narrowed}) {listed(left, 3)}, whose tensors are in "
                "the file: PEFT would not load them, so the two do not belong together.",
                look,
            )
    return rules


def from_alphas(file: TensorFile, said: Mapping[str, float], ranks: Mapping[str, int]) -> Rule:
    """The rule of a file that has an alpha tensor per module. Raises ScaleError when some modules have none."""
    bare = [path for path in ranks if path not in said]
    if bare:
        raise ScaleError(
            f"{file.path}: {len(said)} modules have an alpha tensor, and {len(bare)} have none ({listed(bare, 3)}): "
            "loaders apply 1.0 to those, and what training used is not known.",
            Try("--trained-scale 1 --override-scale", "if 1.0 is right for all"),
        )
    every = sorted(set(said.values()))
    text = f"alpha {every[0]:g}" if len(every) == 1 else f"alphas from {every[0]:g} to {every[-1]:g}"
    return Rule(f"{text} in its alpha tensors", exceptions={path: said[path] / ranks[path] for path in ranks})


def from_training(
    file: TensorFile, choice: Choice, ranks: Mapping[str, int], *, search: bool
) -> tuple[list[Rule], tuple[str, ...]]:
    """What the training configuration says that the user named; with `search`, else one beside the file.

    Raises ScaleError when the named one states none, or another rank than the tensors'.
    """
    if choice.training_config:
        said = read_training_config(choice.training_config)
        if said.rank is not None and set(ranks.values()) != {said.rank}:
            raise ScaleError(
                f"{choice.training_config} says rank {said.rank:g}, but the tensors of {file.path} have rank "
                f"{', '.join(map(str, sorted(set(ranks.values()))))}: it belongs to another run.",
                command("loraforge", "inspect", file.path),
            )
        return [_rule(said, ranks)], ()
    near = beside(file.path) if search else None
    if near is None:
        return [], ()
    said = read_training_config(near)
    if set(ranks.values()) == {said.rank}:
        return [_rule(said, ranks)], ()
    return [], (f"{near.name}, beside it, states a scale, but not for an adapter of this rank: not used",)


def _rule(said: TrainingScale, ranks: Mapping[str, int]) -> Rule:
    scalings = {path: said.alpha / math.sqrt(rank) for path, rank in ranks.items()} if said.rslora else {}
    return Rule(said.said, alpha=said.alpha, exceptions=scalings)
