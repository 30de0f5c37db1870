"""Diffusers: `pytorch_lora_weights.safetensors`, names prefixed by the component, its scale in the header or nowhere.

Sources: diffusers loaders/lora_base.py (file name, `lora_adapter_metadata`), loaders/peft.py (prefix),
finetrainers trainer/sft_trainer (`lora_config`), CogVideo tools/load_cogvideox_lora.py.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraforge import peftrules
from loraforge.adapter import Adapter, Storage
from loraforge.errors import FormatError, ScaleError, command
from loraforge.formats import Choice, Found, Target, Writer
from loraforge.keys import KeyStyle
from loraforge.kinds import not_an_adapter
from loraforge.layout import architecture
from loraforge.provenance import origin
from loraforge.scale import Rule, resolve
from loraforge.trainingconfig import TrainingScale, beside, read_training_config

if TYPE_CHECKING:
    from loraforge.lora import Array, Delta
    from loraforge.tensorfile import TensorFile

COMPONENT = "transformer"
STYLE = KeyStyle(A=".lora_A.weight", B=".lora_B.weight", prefix=f"{COMPONENT}.")
FILE = "pytorch_lora_weights.safetensors"
RECORDS = {"lora_adapter_metadata": f"{COMPONENT}.", "lora_config": ""}
"""Header key that records the scale -> prefix of its entries. The second is finetrainers'; diffusers ignores it."""


class DiffusersWriter:
    """Writes one file with the canonical name."""

    storage = Storage(scale="header")
    file_name = FILE

    def header(self, target: Target) -> dict[str, str]:
        least = peftrules.config(target.ranks, target.scalings)
        # component-prefixed, and nothing but what is needed: unprefixed or unknown keys make diffusers raise
        metadata = {f"{COMPONENT}.{key}": value for key, value in least.items()}
        return {"format": "pt", "lora_adapter_metadata": json.dumps(metadata, indent=2, sort_keys=True)}

    def encode(self, path: str, delta: Delta) -> Iterator[tuple[str, Array]]:
        return STYLE.encode(path, delta)

    def how_to_load(self, path: Path) -> tuple[str, str]:
        name = "" if path.name == FILE else f", weight_name={path.name!r}"
        return (
            f"pipe.load_lora_weights({str(path.parent)!r}{name})   # strength 1.0, no other number",
            "CogVideo's load_cogvideox_lora.py, which scales again, unless its --lora_alpha equals its --lora_r",
        )


class DiffusersFormat:
    """Reads and writes what `load_lora_weights` loads."""

    name = "diffusers"
    summary = f"Diffusers' load_lora_weights: {FILE}"
    layouts: Mapping[str, str] = {"cogvideox": "diffusers"}
    writer: Writer | None = DiffusersWriter()

    def find(self, source: Path, _: Choice) -> Found | None:
        if source.is_file():
            return Found(source, source.stem if source.name != FILE else source.resolve().parent.name)
        file = source / FILE
        return Found(file, source.resolve().name) if file.is_file() else None

    def claims(self, file: TensorFile) -> bool:
        return any(STYLE.parse(key) for key in file.tensors)

    def read(self, file: TensorFile, choice: Choice) -> Adapter:
        if not self.claims(file):
            raise not_an_adapter(file, "Diffusers adapter")
        try:
            pairs = STYLE.pairs(file.tensors, architecture("cogvideox"), "diffusers")
        except FormatError as error:
            raise FormatError(f"{file.path}: {error.message}", command("loraforge", "inspect", file.path)) from error
        ranks = {path: file.tensors[keys[0][1]].shape[1] for path, keys in pairs.items()}
        recorded, notes = ([], ()) if choice.stated.override else _recorded(file, choice, ranks)
        rule, scale = resolve(recorded, choice.stated, ranks, default=None, writes=self.name)
        known = origin(file.metadata)
        if scale.provenance == "recorded" and known.scale is not None:
            # a scale we recorded ourselves is no better known than it was in the source
            scale = known.scale
        return Adapter(
            architecture="cogvideox",
            layout="diffusers",
            modules=STYLE.decode(file, pairs, rule.of),
            scale=scale,
            keys=tuple(sorted(file.tensors)),
            metadata=file.metadata,
            base_model=known.base_model,
            notes=notes,
        )


def _json(file: TensorFile, key: str) -> dict[str, Any] | None:
    if key not in file.metadata:
        return None
    try:
        value = json.loads(file.metadata[key])
    except (ValueError, RecursionError) as error:
        raise ScaleError(
            f"{file.path}: its header entry {key} is not JSON.", command("loraforge", "inspect", file.path)
        ) from error
    return value if isinstance(value, dict) else None


def _recorded(file: TensorFile, choice: Choice, ranks: Mapping[str, int]) -> tuple[list[Rule], tuple[str, ...]]:
    """What the header says of the scale, and the training configuration named by the user.

    Where neither says anything, a configuration that lies beside the file does, if its rank is the tensors'.
    """
    rules = [rule for key, prefix in RECORDS.items() if (rule := _record(file, key, prefix, ranks))]
    if choice.training_config:
        said = read_training_config(choice.training_config)
        if said.rank is not None and set(ranks.values()) != {said.rank}:
            raise ScaleError(
                f"{choice.training_config} says rank {said.rank:g}, but the tensors of {file.path} have rank "
                f"{', '.join(map(str, sorted(set(ranks.values()))))}: it belongs to another run.",
                command("loraforge", "inspect", file.path),
            )
        return [*rules, _rule(said, ranks)], ()
    near = None if rules else beside(file.path)
    if near is None:
        return rules, ()
    said = read_training_config(near)
    if set(ranks.values()) == {said.rank}:
        return [_rule(said, ranks)], ()
    return [], (f"{near.name}, beside it, states a scale, but not for an adapter of this rank: not used",)


def _rule(said: TrainingScale, ranks: Mapping[str, int]) -> Rule:
    scalings = {path: said.alpha / math.sqrt(rank) for path, rank in ranks.items()} if said.rslora else {}
    return Rule(said.said, alpha=said.alpha, exceptions=scalings)


def _record(file: TensorFile, key: str, prefix: str, ranks: Mapping[str, int]) -> Rule | None:
    """What one header entry says of the scale; None where it is absent or about other components."""
    config = _json(file, key)
    if config is None:
        return None
    mine = {name.removeprefix(prefix): value for name, value in config.items() if name.startswith(prefix)}
    if "r" not in mine and "lora_alpha" not in mine:
        return None
    if key == "lora_config":  # finetrainers writes neither patterns nor rslora: one r and one alpha for all
        mine["r"] = mine.get("r", Counter(ranks.values()).most_common(1)[0][0])
    try:
        return peftrules.rule(mine, ranks, key)
    except ScaleError as error:
        raise ScaleError(f"{file.path}: {error.message}", *error.remedies) from error
