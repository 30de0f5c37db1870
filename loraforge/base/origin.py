"""The origin that written base weights state: the adapters in them, each with its strength and scale."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from loraforge._version import __version__
from loraforge.adapter.adapter import Adapter
from loraforge.algebra.dtypes import LARGEST
from loraforge.base.config import sample_of
from loraforge.base.model import BaseModel
from loraforge.errors import ConversionError
from loraforge.files.digest import scan, scan_modules
from loraforge.scale.origin import history, own_entry
from loraforge.text import recorded


@dataclass(frozen=True, slots=True)
class Fused:
    """One adapter in the weights."""

    path: str
    """Name of the adapter's file or folder, without its parents."""
    format: str
    digests: tuple[str, ...]
    """Of its tensors, and of the files that its header says it was converted from."""
    strength: float
    scalings: tuple[float, ...]
    """The distinct scalings it was trained at, sorted."""
    provenance: str
    """How well the scale is known: recorded, given, assumed."""
    said: str
    """Where the scale is stated."""


def fused(adapter: Adapter, strength: float) -> Fused:
    """The entry of an adapter. Raises FormatError if it contains NaN or infinity."""
    source = adapter.source
    digest = scan(source.file, adapter.keys) if source else scan_modules(adapter.updates)
    names = (recorded(source.path), source.format) if source else ("made-in-python", "python")
    digests = (digest, *(step["source"]["digest"] for step in history(adapter.metadata)))
    return Fused(*names, digests, strength, adapter.scalings, adapter.scale.provenance, adapter.scale.portable)


def entry(typed: str, base: BaseModel, adapters: Sequence[Fused], to: str = "") -> str:
    """The entry of the written weights (schemas/fused.schema.json), without folders and dates.

    `to`: their layout. SAT's checkpoints have no config.json, so their entry holds the sample of the base.
    """
    sample = sample_of(base) if to == "sat" else {}
    known: dict[str, Any] = {"path": recorded(base.path), "variants": [variant.name for variant in base.variants]}
    known |= {"sample": sample} if sample else {}
    entries = [*held(base), *map(asdict, adapters)]
    document = {"tool": f"loraforge {__version__}", "command": typed, "base": known, "fused": entries}
    return json.dumps(document, sort_keys=True)


def refuse_twice(base: BaseModel, adapters: Sequence[Fused]) -> None:
    """Raise ConversionError if the base states that it holds one of the adapters already."""
    for known in held(base):
        for new in adapters:
            if set(known["digests"]) & set(new.digests):
                text = (
                    f"{base.path} holds {new.path} already, fused at strength {known['strength']:g}. What was "
                    "rounded away cannot be taken back: fuse it into the original base, at the strength you want."
                )
                raise ConversionError(text)


def _own(base: BaseModel) -> dict[str, Any]:
    return next((entry for file in base.files if (entry := own_entry(file.metadata))), {})


def maker(base: BaseModel) -> dict[str, str]:
    """What the base's own entry says of how it was made, as texts: `tool`, `command`, `of` (the base before)."""
    own = _own(base)
    before = own["base"] if isinstance(own.get("base"), dict) else {}
    said = {"tool": own.get("tool"), "command": own.get("command"), "of": before.get("path")}
    return {name: value for name, value in said.items() if isinstance(value, str)}


def held(base: BaseModel) -> list[dict[str, Any]]:
    """The base's entries of adapters in it. Anybody can write a header, so entries unlike ours are left out."""
    listed = _own(base).get("fused")
    return [known for known in listed if _is_entry(known)] if isinstance(listed, list) else []


def _is_entry(known: Any) -> bool:
    match known:
        case {"digests": [*digests], "strength": strength, "scalings": [first, *more]}:
            if known.keys() != set(Fused.__slots__):
                return False
            texts = (known["path"], known["format"], known["provenance"], known["said"], *digests)
            numbers = (strength, first, *more)
            finite = all(isinstance(number, int | float) and abs(number) <= LARGEST for number in numbers)
            return finite and all(isinstance(text, str) for text in texts)
    return False
