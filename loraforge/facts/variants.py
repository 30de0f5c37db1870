"""The inference settings of each CogVideoX variant, and those that known programs use (variants.toml)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loraforge.errors import LoraforgeError, Try, adding, no_such
from loraforge.facts.given_settings import KEYS, Settings, Value
from loraforge.tables import package_table, with_tuples

USUAL_RANK = 128
"""The default rank of CogVideo's trainers."""


@dataclass(frozen=True, slots=True)
class Sides:
    """A rule for the sides of a frame, in pixels."""

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
    """The settings that one variant needs."""

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
        """The valid counts below and above this one, in order; the count alone if it is valid."""
        below = [count for count in self.counts if count <= num_frames][-1:]
        above = [count for count in self.counts if count >= num_frames][:1]
        return sorted({*below, *above})

    def allows(self, height: int, width: int) -> bool:
        usual = (height, width) == (self.height, self.width)
        return usual or (self.sides is not None and self.sides.allow(height, width))


def table() -> dict[str, Any]:
    """variants.toml."""
    return package_table("facts/variants")


def settings(variant: str) -> VariantSettings:
    """The settings that a variant needs. Raises LoraforgeError if the variant is unknown."""
    _known(variant, table()["variants"], "variant of CogVideoX")
    facts = dict(table()["variants"][variant])
    sides = facts.pop("sides", None)
    return VariantSettings(variant=variant, sides=Sides(**sides) if sides else None, **facts)


def preset(name: str, variant: str, *, rank: int | None = None) -> Settings:
    """The settings that a known program uses for a variant; `rank` is the adapter's, if the program divides by it.

    Raises LoraforgeError if the program or the variant is unknown, or if the program does not run the variant.
    """
    entry, wants = preset_entry(name), settings(variant)
    runs = entry.get("variants", [variant])
    if variant not in runs:
        text = f"{entry['title']} does not run {variant}, only {', '.join(runs)}."
        raise LoraforgeError(text, adding("--like", "cli_demo", why="CogVideo's script that runs every variant"))
    values: dict[str, Value] = {key: getattr(wants, key) for key in entry.get("as_variant", ())}
    values |= with_tuples(entry["values"])
    if values.get("adapter_strength") == "1/rank":
        values["adapter_strength"] = 1 / (rank or USUAL_RANK)
    return {key: values[key] for key in KEYS if key in values}


def preset_entry(name: str) -> Mapping[str, Any]:
    """The entry of a preset in the table. Raises LoraforgeError if it is unknown."""
    _known(name, table()["presets"], "preset", adding("--like", "cli_demo"))
    entry: Mapping[str, Any] = table()["presets"][name]
    return entry


def _known(name: str, names: Mapping[str, Any], what: str, *remedies: Try) -> None:
    if name not in names:
        raise no_such(what, name, names, *remedies)
