"""What written base weights say of themselves: which adapters they hold, at which strength and scale."""

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
from loraforge.text import command, recorded


@dataclass(frozen=True, slots=True)
class Fused:
    """One adapter in the weights."""

    path: str
    """The name of what was given, without folders."""
    format: str
    digests: tuple[str, ...]
    """Of its tensors, and of the files it was converted from where it says so."""
    strength: float
    scalings: tuple[float, ...]
    """The distinct scalings it was trained at, sorted."""
    provenance: str
    """How well the scale is known: recorded, given, assumed."""
    said: str
    """Who said it."""


def fused(adapter: Adapter, strength: float) -> Fused:
    """The entry of an adapter. Raises FormatError when it contains NaN or infinity."""
    source = adapter.source
    digest = scan(source.file, adapter.keys) if source else scan_modules(adapter.modules)
    return Fused(
        recorded(source.path) if source else "made-in-python",
        source.format if source else "python",
        (digest, *(step["source"]["digest"] for step in history(adapter.metadata))),
        strength,
        adapter.scalings,
        adapter.scale.provenance,
        adapter.scale.portable,
    )


def entry(typed: str, base: BaseModel, adapters: Sequence[Fused], to: str = "") -> str:
    """The entry of the written weights (schemas/fused.schema.json). No folders and no dates.

    `to`: their layout. SAT's checkpoints have no config.json, so the sample of the base stands in it.
    """
    sample = sample_of(base) if to == "sat" else {}
    said = {
        "tool": f"loraforge {__version__}",
        "command": typed,
        "base": {
            "path": recorded(base.path),
            "variants": [variant.name for variant in base.variants],
            **({"sample": sample} if sample else {}),
        },
        "fused": [*held(base), *map(asdict, adapters)],
    }
    return json.dumps(said, sort_keys=True)


def refuse_twice(base: BaseModel, adapters: Sequence[Fused]) -> None:
    """Raise ConversionError where the base says that it holds one of the adapters already."""
    for known in held(base):
        for new in adapters:
            if set(known.get("digests", ())) & set(new.digests):
                raise ConversionError(
                    f"{base.path} holds {new.path} already, fused at strength {known.get('strength', 1.0):g}. What was "
                    "rounded away cannot be taken back: fuse it into the original base, at the strength you want.",
                    command("ls", "-l", base.path.absolute().parent),
                )


def held(base: BaseModel) -> list[dict[str, Any]]:
    """What the base says of adapters in it. Anybody can write a header, so what is not as we write it is left out."""
    said = next((entry for file in base.files if (entry := own_entry(file.metadata))), None)
    found = said.get("fused") if isinstance(said, dict) else None
    return [known for known in found if _is_entry(known)] if isinstance(found, list) else []


def _is_entry(known: Any) -> bool:
    match known:
        case {
            "path": str(),
            "format": str(),
            "digests": [*digests],
            "strength": strength,
            "scalings": [*scalings],
            "provenance": str(),
            "said": str(),
        } if scalings and all(isinstance(digest, str) for digest in digests):
            return known.keys() == set(Fused.__slots__) and all(map(_is_factor, (strength, *scalings)))
    return False


def _is_factor(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) <= LARGEST
