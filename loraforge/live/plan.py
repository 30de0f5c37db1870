"""What is asked of a run of a pipeline, and what it will do: decided and checked before any weight is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loraforge.adapter.adapter import Adapter
from loraforge.adapter.fits import fits
from loraforge.base.config import PIXELS, own_config, variant_of
from loraforge.base.model import BaseModel
from loraforge.base.opening import open_base
from loraforge.base.updates import updates
from loraforge.conversion.read import read
from loraforge.errors import LoraforgeError, Try, absent, adding
from loraforge.facts.given_settings import Settings, checked
from loraforge.facts.setting_rules import compare
from loraforge.facts.variants import preset, settings
from loraforge.files.texts import read_json
from loraforge.hub.address import address
from loraforge.hub.folder import base_folder
from loraforge.media.video import read_video
from loraforge.names.catalog import architecture
from loraforge.names.layout import COMPONENT
from loraforge.text import command, listed, told

Adapters = Sequence[tuple[Adapter, float]]
"""Adapters, each with its strength."""
SHORT = {
    "num_inference_steps": "--steps", "guidance_scale": "--guidance", "num_frames": "--frames", "seed": "--seed",
}  # fmt: skip
"""Settings that have an option of their own, which overrides `--settings`."""
OFFLOADS = ("none", "model", "sequential", "group")
KEYS = (
    "scheduler", "timestep_spacing", "use_dynamic_cfg", "guidance_scale", "num_inference_steps", "num_frames", "fps",
    "height", "width", "torch_dtype", "max_sequence_length", "generator_device", "seed",
)  # fmt: skip
"""The settings of variants.toml that a pipeline is called with; the others are for fusing and for strengths."""
ALWAYS: Settings = {"generator_device": "cpu", "seed": 42}
"""Defaults that do not depend on the model: noise from the CPU is the same on every machine."""
FAMILY = "cogvideox"
"""The architecture whose pipelines are run."""
TO_VIDEO, FROM_IMAGE, FROM_VIDEO = (f"CogVideoX{kind}Pipeline" for kind in ("", "ImageToVideo", "VideoToVideo"))


@dataclass(frozen=True, slots=True)
class RunRequest:
    """The options of `run`. A manifest or the base model decides those that are None or empty."""

    adapters: tuple[str | Path, ...]
    strength: tuple[float, ...]
    stated: Mapping[str, Any]
    """The keywords of `Stated`: the scale at which the adapters were trained."""
    base: str | Path | None
    prompt: str
    negative_prompt: str
    image: str | Path | None
    video: str | Path | None
    given: Settings
    like: str | None
    anyway: bool
    device: str
    offload: str | None
    tiling: bool | None
    slicing: bool | None
    compare: tuple[float, ...]
    out: str | Path | None
    force: bool
    files: tuple[str | Path, ...]
    """The manifest, and files of settings (or KEY=VALUE)."""
    again: Mapping[str, Any] | None = None
    """The manifest of the run that is repeated."""

    def over(self, again: Mapping[str, Any]) -> RunRequest:
        """The same run, with its open options taken from a manifest. Raises LoraforgeError if it names adapters."""
        if self.adapters:
            raise LoraforgeError("the manifest names its adapters: give it alone.", "loraforge run --help")
        words = ("base", "prompt", "negative_prompt", "image", "video", "offload", "anyway")
        same = {name: again[name] for name in words if not getattr(self, name)}
        same |= {name: again[name] for name in ("tiling", "slicing") if getattr(self, name) is None}
        return replace(
            self,
            **same,
            adapters=tuple(part["path"] for part in again["adapters"]),
            strength=self.strength or tuple(part["strength"] for part in again["adapters"]),
            stated=self.stated if any(self.stated.values()) else again["stated"],
            given={**checked(again["settings"].items()), **self.given},
            device=again["device"] if self.device == "auto" else self.device,
            again=again,
        )

    @property
    def inputs(self) -> list[str | Path]:
        """The files it reads, beside the adapters and the base."""
        return [file for file in (self.image, self.video, *self.files) if file and "=" not in str(file)]

    @property
    def how(self) -> dict[str, Any]:
        """The options of how it is computed, with their defaults."""
        tiling, slicing = self.tiling is not False, self.slicing is not False
        return {"offload": self.offload or "none", "tiling": tiling, "slicing": slicing}


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run in which everything is decided. All of it is recorded in its manifest."""

    base: BaseModel
    adapters: Adapters
    variant: str
    settings: dict[str, Any]
    notes: tuple[str, ...]
    pipeline: str = ""
    """The class of Diffusers; empty if the transformer runs alone."""
    prompt: str = ""
    negative_prompt: str = ""
    inputs: Mapping[str, Path] = field(default_factory=dict)
    """`image` or `video` -> its path, if the run has one."""


def opened(sources: Sequence[str | Path], strengths: Sequence[float], stated: Mapping[str, Any]) -> Adapters:
    """Read the adapters, each with its strength: 1 if no strengths are given."""
    adapters = [read(source, **stated) for source in sources]
    adapters = [adapter.as_of(FAMILY) for adapter in adapters]
    for source, other in zip(sources, (adapter.architecture for adapter in adapters), strict=True):
        if other != FAMILY:
            ours, its = (architecture(name).title for name in (FAMILY, other))
            text = f"an adapter is one of {its}, and what is run is {ours}. load_into takes it into its own pipeline."
            convert = command("loraforge", "convert", source, "--to", "diffusers")
            raise LoraforgeError(text, Try(convert, "for load_lora_weights of that pipeline"))
    numbers = list(strengths) or [1.0] * len(adapters)
    if len(numbers) != len(adapters):
        text = f"{len(numbers)} strengths for {len(adapters)} adapters: give --strength once per adapter, in their"
        raise LoraforgeError(f"{text} order.", adding(*["--strength", "1"] * len(adapters), why="as trained, each"))
    if odd := [number for number in numbers if not math.isfinite(number)]:
        raise LoraforgeError(f"the strength {odd[0]} is no number.", adding("--strength", "1"))
    return tuple(zip(adapters, numbers, strict=True))


def base_of(adapters: Adapters, stated: str | Path | None) -> str | Path:
    """The base model that is stated, or else the one that the adapters name. Raises LoraforgeError if it is unknown."""
    if stated is not None:
        return stated
    named = {adapter.base_model for adapter, _ in adapters if adapter.base_model}
    if len(named) == 1:
        return f"hf://{named.pop()}"
    why = f"the adapters name several base models: {', '.join(sorted(named))}" if named else "no base model is recorded"
    known = [variant.repo for adapter, _ in adapters[:1] for variant in fits(adapter)]
    every = known or [variant.repo for variant in architecture(FAMILY).variants]
    raise LoraforgeError(f"{why}: say which with --base.", *(adding("--base", repo) for repo in every))


def planned(adapters: Adapters, base: str | Path, request: RunRequest) -> RunPlan:
    """The plan of a run. Raises LoraforgeError for all that would fail, or be wrong, after minutes of loading."""
    given, anyway, video = request.given, request.anyway, request.video
    named = address(base)
    for early in architecture(FAMILY).variants:
        if named and early.repo == named.repo:  # before gigabytes are fetched
            _refuse_wrong(given, early.name, anyway=anyway)
    model = _pipeline_folder(base)
    variant = variant_of(model)
    updates(model, [(adapter, 1.0) for adapter, _ in adapters])
    pipeline = _pipeline(model, request.image, video)
    values, own = _settings(model, variant.name, given, request.like)
    _refuse_wrong(given, variant.name, anyway=anyway, own=own)
    _refuse_size(values, model)
    if pipeline == FROM_VIDEO and video is not None:
        _refuse_short(Path(video), variant.name, values["num_frames"])
    notes = [f"{told(a.source.path)}: {note}" for a, _ in adapters if a.source for note in a.notes]
    if len({str(a.source.path.resolve()) for a, _ in adapters if a.source}) < len(adapters):
        notes.append("the same adapter is given more than once: its updates add up")
    others = [a.base_model for a, _ in adapters if a.base_model and a.base_model != variant.repo]
    notes += [f"an adapter is for {other}, and the base is {variant.name} by its shapes" for other in others]
    return RunPlan(
        model, adapters, variant.name, values, tuple(dict.fromkeys((*model.notes, *notes))), pipeline,
        request.prompt, request.negative_prompt,
        {name: Path(path) for name, path in (("image", request.image), ("video", video)) if path},
    )  # fmt: skip


def checkable(adapters: Adapters, base: str | Path, given: Settings) -> RunPlan:
    """The plan of a run of the transformer alone; `base` may be a transformer without the rest of its pipeline."""
    model = open_base(base_folder(base, only=(COMPONENT,)))
    if model.kind not in ("pipeline", "transformer"):
        text = f"{told(model.path)} is no folder that Diffusers loads: convert it first."
        convert = command("loraforge", "convert-base", model.path, "--to", "diffusers", "-o", "transformer")
        raise LoraforgeError(text, convert)
    updates(model, [(adapter, 1.0) for adapter, _ in adapters])
    variant = variant_of(model).name
    _refuse_wrong(given, variant, anyway=False)
    return RunPlan(model, adapters, variant, {"torch_dtype": settings(variant).torch_dtype, **given}, model.notes)


def _pipeline_folder(base: str | Path) -> BaseModel:
    model = open_base(base_folder(base))
    name = told(model.path)
    if model.kind != "pipeline" or model.architecture.name != FAMILY:
        text = f"{name} is a {model.kind} of {model.architecture.title}; a run needs a whole CogVideoX pipeline, with"
        example = adding("--base", "zai-org/CogVideoX-5b", why="for example")
        raise LoraforgeError(f"{text} its text encoder and VAE.", example)
    parts = [part for part, kind in read_json(model.path / "model_index.json").items() if isinstance(kind, list)]
    if missing := sorted(part for part in parts if not (model.path / part).is_dir()):
        raise LoraforgeError(
            f"{name} has no {listed(missing)}: a run needs the whole pipeline.",
            adding("--check", why="needs the transformer alone"),
            *(adding("--base", variant.repo, why="the released one") for variant in model.variants[:1]),
        )
    return model


def _pipeline(base: BaseModel, image: str | Path | None, video: str | Path | None) -> str:
    """The class that takes these inputs. Raises LoraforgeError if the base cannot take them."""
    own = str(read_json(base.path / "model_index.json").get("_class_name"))
    name = told(base.path)
    if own not in (TO_VIDEO, FROM_IMAGE, FROM_VIDEO):
        raise LoraforgeError(f"{name} is a {own}, which is none of CogVideoX's pipelines.", "loraforge run --help")
    for path, flag in ((image, "--image"), (video, "--video")):
        if path is not None and not Path(path).is_file():
            raise absent(path, what=flag)
    if image is not None and video is not None:
        text = "--image and --video exclude each other: a run begins with one of them."
        raise LoraforgeError(text, "loraforge run --help")
    if own == FROM_IMAGE and image is None:
        raise LoraforgeError(f"{name} makes a video of a first frame: give it with --image FILE.")
    if own != FROM_IMAGE and image is not None:
        why = "the model for a first frame; it needs an adapter of its own"
        text = f"{name} makes videos of text alone, and has no place for --image."
        raise LoraforgeError(text, adding("--base", "zai-org/CogVideoX-5b-I2V", why=why))
    if own == FROM_IMAGE:
        return FROM_IMAGE
    return FROM_VIDEO if video is not None else TO_VIDEO


def _settings(
    base: BaseModel, variant: str, given: Settings, like: str | None
) -> tuple[dict[str, Any], frozenset[str]]:
    """Every setting of the call, and the keys of those in which this base differs from the released model."""
    usual, config, arch = settings(variant), own_config(base), base.architecture
    released = {**arch.config, **next(v.config for v in arch.variants if v.name == variant)}
    own = {
        key: int(config[name]) * unit for key, name, unit in _OWN if config.get(name, released[name]) != released[name]
    }
    defaults = {key: getattr(usual, key) for key in KEYS if hasattr(usual, key)}
    values = {**defaults, **own, **ALWAYS, **(preset(like, variant) if like else {}), **given}
    return {key: value for key, value in values.items() if key in KEYS}, frozenset(own)


_OWN = (
    ("height", "sample_height", PIXELS),
    ("width", "sample_width", PIXELS),
    ("max_sequence_length", "max_text_seq_length", 1),
)
"""Setting, the entry of the transformer's config.json that decides it, and the size of its unit."""


def _refuse_wrong(given: Settings, variant: str, *, anyway: bool, own: frozenset[str] = frozenset()) -> None:
    """Raise LoraforgeError for every given setting that is wrong for the variant, with what is right."""
    if odd := [key for key in given if key not in KEYS]:
        raise LoraforgeError(f"{odd[0]} is no setting of a run; there are {', '.join(KEYS)}.", "loraforge run --help")
    wrong = [f for f in compare(given, variant) if f.severity == "wrong" and f.key not in own]
    if not wrong or anyway:
        return
    text = "; ".join(f"{f.key} {f.given} is wrong for {variant}: {f.consequence}" for f in wrong)
    words = list[str]()
    for key, right in ((f.key, f.wanted) for f in wrong if f.wanted is not None):
        if key == "num_frames":  # if two are right, as 9 or 17, the first
            right = settings(variant).nearest(int(str(given[key])))[0]
        words += (SHORT[key], str(right)) if key in SHORT else ("--settings", f"{key}={right}")
    ways = [adding(*words)] if words else []
    raise LoraforgeError(f"{text}.", *ways, adding("--anyway", why="run it all the same"))


def _refuse_size(values: Mapping[str, Any], base: BaseModel) -> None:
    """Raise LoraforgeError if the base cannot make frames of this size, or would cut them."""
    config, sides = own_config(base), ("height", "width")
    step = PIXELS * int(config.get("patch_size", 2))
    for key in sides:
        if values[key] % step:
            near = max(step, round(values[key] / step) * step)
            text = f"{key} {values[key]} is no multiple of {step}, the pixels of a patch."
            raise LoraforgeError(text, adding("--settings", f"{key}={near}"))
    if not config.get("use_learned_positional_embeddings"):
        return
    learned = {key: int(config[f"sample_{key}"]) * PIXELS for key in sides if f"sample_{key}" in config}
    if any(values[key] != size for key, size in learned.items()):
        raise LoraforgeError(
            f"height {values['height']} and width {values['width']} are no size of {told(base.path)}: its positions "
            f"are learned for {learned['height']} x {learned['width']}, and Diffusers runs it at no other.",
            adding(*(word for key, size in learned.items() for word in ("--settings", f"{key}={size}"))),
        )


def _refuse_short(video: Path, variant: str, num_frames: int) -> None:
    """Raise LoraforgeError if the video has fewer frames than the run is to have."""
    count = len(read_video(video, num_frames)[0])
    if count < num_frames:
        shorter = [valid for valid in settings(variant).counts if valid <= count][-1:]
        text = f"{video} has {count} frames, and the run is to have {num_frames}."
        raise LoraforgeError(text, *(adding("--frames", str(valid)) for valid in shorter))
