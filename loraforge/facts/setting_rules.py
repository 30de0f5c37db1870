"""Compares a user's settings with those a variant needs, and says how bad each difference is: one rule per setting."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from loraforge.facts.given_settings import KEYS, Settings, Value, checked, words
from loraforge.facts.variants import USUAL_RANK, VariantSettings, preset, preset_entry, settings, table
from loraforge.text import listed

Severity: TypeAlias = Literal["wrong", "differs", "fine"]
Judgement: TypeAlias = tuple[Value | None, Severity, str]
"""The right value, how bad the difference is, and its consequence."""
STRENGTHS = ("adapter_strength", "lora_scale")
"""The strengths of set_adapters and of fuse_lora; their product is applied."""
TEMPORAL, SPATIAL = 4, 16
"""Frames per latent frame; pixels along a side of a patch (8 of the VAE times 2 of the transformer)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One setting and the value it is compared with."""

    key: str
    given: Value | None
    wanted: Value | None
    severity: Severity
    consequence: str
    source: str


def compare(given: Settings, variant: str, *, like: str | None = None, rank: int | None = None) -> list[Finding]:
    """Compare every given setting with the value that the variant needs, or that the preset `like` uses.

    A setting that is wrong for the variant is reported as wrong with a preset too. With a preset, settings that are
    not given are compared too, by Diffusers' default. `rank` is that of the adapter, to recognise a strength of 1/rank.
    Raises LoraforgeError if a setting, the variant or the preset is unknown, or if the preset does not run the variant.
    """
    given, wants = checked(given.items()), settings(variant)
    wanted = _strength_where_given(preset(like, variant, rank=rank), given) if like else {}
    entry = preset_entry(like) if like else {}
    findings: list[Finding] = []
    for key in KEYS:
        source = table()["sources"][key]
        finding = Finding(key, given[key], *_judged(key, given, wants, rank), source) if key in given else None
        final = finding is not None and (finding.severity == "wrong" or key in entry.get("as_variant", ()))
        if key in wanted and not final:
            compared = _with_preset(key, given, wanted[key], entry)
            finding = None if finding is None and compared.severity == "fine" else compared
        if finding is not None:
            findings.append(finding)
    return findings


def _strength_where_given(values: Settings, given: Settings) -> Settings:
    """The values of a preset, with its strength under the key that the user gave: only the product counts."""
    stated, in_preset = ([key for key in STRENGTHS if key in each] for each in (given, values))
    if not stated or not in_preset:
        return values
    compared = next((key for key in stated if given[key] != 1), stated[0])
    return {**values, **dict.fromkeys(STRENGTHS, 1.0), compared: values[in_preset[0]]}


def _with_preset(key: str, given: Settings, wanted: Value, entry: Mapping[str, Any]) -> Finding:
    """The given value, or else Diffusers' default, compared with that of a preset."""
    default = {"adapter_strength": 1.0, **table()["defaults"]}.get(key)
    value: Value | None = given.get(key, tuple(default) if isinstance(default, list) else default)
    if value is None:
        consequence = f"not given; {entry['title']}: {words(wanted)}"
    elif not _same(key, value, wanted):
        why = table()["unlike"]["preset"].get(key, "not the same video")
        consequence = f"{'' if key in given else 'by default; '}{entry['title']}: {words(wanted)}; {why}"
    else:
        consequence = entry.get("still_differs", {}).get(key, "")
    return Finding(key, value, wanted, "differs" if consequence else "fine", consequence, entry["source"])


def _same(key: str, one: Value, other: Value) -> bool:
    if key == "generator_device":
        return str(one).partition(":")[0] == str(other).partition(":")[0]
    if isinstance(one, float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6)
    return one == other


def _judged(key: str, given: Mapping[str, Any], wants: VariantSettings, rank: int | None) -> Judgement:
    match key:
        case "adapter_strength" | "lora_scale":
            return _strength(key, given, rank)
        case "use_dynamic_cfg":
            return _dynamic(given, wants)
        case "num_frames":
            return _frames(given["num_frames"], wants)
        case "height" | "width":
            return _size(key, given, wants)
        case "fuse_components":
            return _fused(given["fuse_components"])
    wanted = getattr(wants, key, None)
    if wanted is None or _same(key, given[key], wanted):
        return wanted, "fine", ""
    return wanted, *_unlike(key, given[key], wants)


def _unlike(key: str, value: Any, wants: VariantSettings) -> tuple[Severity, str]:
    """What another value than the variant's own means, where that is the one right value."""
    tokens = wants.max_sequence_length
    match key:
        case "scheduler" if value not in table()["schedulers"]:
            why = "not one of the two schedulers that the pipeline is written for"
            if (shift := wants.snr_shift_scale) != 1:
                why += f", and it has no snr_shift_scale ({shift:g} here), so its noise schedule is another one"
            return "wrong", why
        case "timestep_spacing" if value == "leading":
            return "wrong", "it skips the last timestep: the model gets pure noise and is told that there is less"
        case "guidance_scale" if value <= 1:
            return "differs", "no guidance: the prompt and the adapter's effect on it are weak"
        case "torch_dtype" if value in wants.dtypes_wrong:
            return "wrong", wants.dtypes_wrong[value]
        case "torch_dtype" if value == "float32":
            return "differs", "twice the memory and slower; no less exact"
        case "max_sequence_length" if wants.positions != "rotary":
            return "wrong", f"Diffusers fails: the positions are laid out for {tokens} text tokens"
        case "max_sequence_length" if value > tokens:
            return "differs", f"the model was trained with {tokens} text tokens"
    return "differs", table()["unlike"]["variant"][key]


def _dynamic(given: Mapping[str, Any], wants: VariantSettings) -> Judgement:
    scheduler = given.get("scheduler", wants.scheduler)
    varying = [name for name, entry in table()["schedulers"].items() if entry["use_dynamic_cfg"]]
    wanted = scheduler in varying
    if given["use_dynamic_cfg"] == wanted:
        return wanted, "fine", ""
    if not wanted:
        return wanted, "wrong", f"it works only with {listed(varying)}, not with {scheduler}"
    return wanted, "differs", "the guidance is the same in every step; with the DPM scheduler it should vary"


def _frames(count: int, wants: VariantSettings) -> Judgement:
    valid = wants.nearest(count)
    near = valid[0] if len(valid) == 1 else " or ".join(map(str, valid))
    if count not in wants.counts:
        made = (count - 1) // TEMPORAL * TEMPORAL + 1
        if (count - 1) % wants.frames_step == 0:
            return near, "differs", f"longer than the model was made for ({wants.frames_rule}): it repeats or dissolves"
        result = f", so {made} frames are made" if made != count else ""
        return near, "wrong", f"not {wants.frames_rule}{result}"
    if wants.positions == "learned" and count != wants.num_frames:
        return wants.num_frames, "differs", "Diffusers then computes positions instead of using the learned ones"
    return count, "fine", ""


def _size(key: str, given: Mapping[str, Any], wants: VariantSettings) -> Judgement:
    height, width = given.get("height", wants.height), given.get("width", wants.width)
    wanted: int = getattr(wants, key)
    if wants.allows(height, width) or given[key] == wanted:
        return given[key] if wants.allows(height, width) else wanted, "fine", ""
    usual = f"{wants.height}x{wants.width}"  # in the order of Diffusers' parameters
    swapped = "; are height and width swapped?" if (width, height) == (wants.height, wants.width) else ""
    if given[key] % SPATIAL:
        return wanted, "wrong", f"not a multiple of {SPATIAL}: it cannot be cut into patches{swapped}"
    if wants.positions == "learned":
        return wanted, "wrong", f"Diffusers refuses: the learned positions are for {usual}{swapped}"
    rule = f"{usual} ({wants.sides})" if wants.sides else usual
    return wanted, "differs", f"not a size this model was made for: {rule}{swapped}"


def _fused(components: tuple[str, ...]) -> Judgement:
    wanted = ("transformer",)
    if others := [name for name in components if name not in wanted]:
        return wanted, "wrong", f"fuse_lora raises ValueError: CogVideoX has no {listed(others)} to fuse"
    return wanted, "fine", ""


def _strength(key: str, given: Mapping[str, Any], rank: int | None) -> Judgement:
    value = float(given[key])
    product = math.prod(given[name] for name in STRENGTHS if name in given)
    if value == 1:
        return 1.0, "fine", ""
    if value == 0:
        return 1.0, "wrong", "the adapter has no effect"
    if product != value:
        why = f"adapter_strength and lora_scale are multiplied, so {product:g} is applied; give only one of them"
        return 1.0, "wrong", why
    if math.isclose(value, 1 / (rank or USUAL_RANK), rel_tol=0.01):
        why = f"1/{rank or USUAL_RANK}, as with SAT's lora_alpha 1 and in cli_demo before 2025-02-24: right only for a "
        return 1.0, "differs", f"{why}file that SAT trained and that holds no scale; others have almost no effect"
    return 1.0, "differs", "1 acts as trained where the file holds or records its scale"
