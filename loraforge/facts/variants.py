"""What each CogVideoX variant calls for at inference, and in what a user's settings differ from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import tomli

from loraforge.errors import LoraforgeError, Try
from loraforge.facts.given_settings import KEYS, Settings, Value
from loraforge.facts.given_settings import parse as parse
from loraforge.text import shown

USUAL_RANK = 128
"""The rank of CogVideo's trainers where the user says none."""


@dataclass(frozen=True, slots=True)
class Sides:
    """A rule for the two sides of a frame."""

    shorter: int
    longer_most: int
    multiple: int

    def __str__(self) -> str:
        return f"shorter side {self.shorter}, longer up to {self.longer_most} and a multiple of {self.multiple}"

    def allow(self, height: int, width: int) -> bool:
        shorter, longer = sorted((height, width))
        return shorter == self.shorter and longer <= self.longer_most and longer % self.multiple == 0


@dataclass(frozen=True, slots=True)
class VariantSettings:
    """What one variant calls for."""

    variant: str
    scheduler: str
    timestep_spacing: str
    use_dynamic_cfg: bool
    guidance_scale: float
    num_inference_steps: int
    num_frames: int
    frames_step: int
    frames_most: int
    fps: int
    height: int
    width: int
    torch_dtype: str
    max_sequence_length: int
    positions: str
    snr_shift_scale: float
    sides: Sides | None = None
    dtypes_wrong: Mapping[str, str] = field(default_factory=dict)

    @property
    def counts(self) -> range:
        """The valid numbers of frames."""
        return range(1, self.frames_most + 1, self.frames_step)

    @property
    def frames_rule(self) -> str:
        return f"{self.frames_step}N+1, N at most {(self.frames_most - 1) // self.frames_step}"

    def nearest(self, num_frames: int) -> list[int]:
        """The valid counts next to this one, smaller first: itself where it is valid."""
        below = [count for count in self.counts if count <= num_frames][-1:]
        above = [count for count in self.counts if count >= num_frames][:1]
        return sorted({*below, *above})

    def allows(self, height: int, width: int) -> bool:
        return (height, width) == (self.height, self.width) or (
            self.sides is not None and self.sides.allow(height, width)
        )


@cache
def table() -> dict[str, Any]:
    """variants.toml."""
    return tomli.loads((Path(__file__).parent / "variants.toml").read_text("utf-8"))


def settings(variant: str) -> VariantSettings:
    """What this variant calls for."""
    _known(variant, table()["variants"], "variant of CogVideoX")
    facts = dict(table()["variants"][variant])
    sides = facts.pop("sides", None)
    return VariantSettings(variant=variant, sides=Sides(**sides) if sides else None, **facts)


def known_settings(variant: str) -> VariantSettings | None:
    """The same; None if the table has no such variant."""
    return settings(variant) if variant in table()["variants"] else None


def preset(name: str, variant: str, *, rank: int | None = None) -> Settings:
    """What a known program uses for this variant; `rank` is the adapter's, for the one that divides by it."""
    entry, wants = _preset(name), settings(variant)
    runs = entry.get("variants", [variant])
    if variant not in runs:
        raise LoraforgeError(
            f"{entry['title']} does not run {variant}, only {', '.join(runs)}.",
            Try("--like cli_demo", "CogVideo's script that runs every variant"),
        )
    values: dict[str, Value] = {key: getattr(wants, key) for key in entry.get("as_variant", ())}
    for key, value in entry["values"].items():
        values[key] = tuple(value) if isinstance(value, list) else value
    if values.get("adapter_strength") == "1/rank":
        values["adapter_strength"] = 1 / (rank or USUAL_RANK)
    return {key: values[key] for key in KEYS if key in values}


def _preset(name: str) -> dict[str, Any]:
    _known(name, table()["presets"], "preset", Try("--like cli_demo"))
    return dict(table()["presets"][name])


def _known(name: str, names: Mapping[str, Any], what: str, *remedies: Try) -> None:
    if name not in names:
        raise LoraforgeError(f"there is no {what} {shown(name)}; there are {', '.join(names)}.", *remedies)
