"""What a file says of its origin: our own header entry, and which entries of others stay true after a conversion."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from loraforge import __version__
from loraforge.adapter import Scale
from loraforge.report import Report

KEY = "loraforge"
"""The header entry; its JSON follows schemas/provenance.schema.json."""

_NO_LONGER_TRUE = re.compile(r"ss_network_(dim|alpha)|sshs_.*|lora_adapter_metadata|lora_config|modelspec\.hash_sha256")
"""Entries that state a scale, a rank or a hash of the old tensors."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a file converted by loraforge says of its source; empty where it says nothing we wrote."""

    scale: Scale | None = None
    base_model: str | None = None


def record(report: Report, typed: str) -> str:
    """The entry for a converted file. No paths and no dates: the same input gives the same bytes."""
    entry = {
        "tool": f"loraforge {__version__}",
        "command": typed,
        "source": report.source | {"path": Path(report.source["path"]).name},
        "scale": {"provenance": report.scale.provenance, "source": report.scale.source, "scalings": report.scalings},
        "stored": report.stored,
        "base_model": report.base_model,
        "fits": report.fits,
    }
    return json.dumps(entry, sort_keys=True)


def origin(metadata: Mapping[str, str]) -> Origin:
    """What our entry in a header says. Anybody can write a header, so anything else than expected counts as nothing."""
    try:
        entry = json.loads(metadata.get(KEY, "null"))
    except (ValueError, RecursionError):
        return Origin()
    match entry:
        case {"scale": {"provenance": "recorded" | "given" | "assumed" as provenance, "source": str(said)}}:
            base = entry.get("base_model")
            where = "folded in" if entry.get("stored") == "tensors" else "recorded"
            said = said.removesuffix("; folded in by loraforge").removesuffix("; recorded by loraforge")
            return Origin(Scale(provenance, f"{said}; {where} by loraforge"), base if isinstance(base, str) else None)
    return Origin()


def carried_over(metadata: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The entries of others that stay true of the same adapter in another file, and the keys of those that do not."""
    kept = {key: text for key, text in metadata.items() if key != KEY and not _NO_LONGER_TRUE.fullmatch(key)}
    return kept, tuple(sorted(metadata.keys() - kept.keys() - {KEY}))
