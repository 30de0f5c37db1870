"""What a run of a pipeline will do, decided and checked before any weight is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraforge.adapter.adapter import Adapter
from loraforge.adapter.fits import fits
from loraforge.base.config import PIXELS, own_config, variant_of
from loraforge.base.model import BaseModel
from loraforge.base.opening import open_base
from loraforge.base.updates import updates
from loraforge.conversion.read import read
from loraforge.errors import ConversionError, LoraforgeError, adding
from loraforge.facts.given_settings import Settings, Value
from loraforge.facts.setting_rules import compare
from loraforge.facts.variants import preset, settings
from loraforge.files.texts import read_json
from loraforge.hub.address import address, is_repo
from loraforge.hub.fetch_base import base_folder
from loraforge.media.video import read_video
from loraforge.names.catalog import architecture
from loraforge.names.layout import COMPONENT
from loraforge.text import command, listed, told

SHORT = {
    "num_inference_steps": "--steps",
    "guidance_scale": "--guidance",
    "num_frames": "--frames",
    "seed": "--seed",
}
"""Settings that are options too, which count before `--settings`."""
OFFLOADS = ("none", "model", "sequential", "group")
KEYS = (
    "scheduler", "timestep_spacing", "use_dynamic_cfg", "guidance_scale", "num_inference_steps", "num_frames", "fps",
    "height", "width", "torch_dtype", "max_sequence_length", "generator_device", "seed",
)  # fmt: skip
"""The settings of variants.toml that a call of a pipeline has; the others are of fusing and of strengths."""
ALWAYS: Settings = {"generator_device": "cpu", "seed": 42}
"""What nothing about a model decides: noise from the CPU is the same on every machine."""
FAMILY = "cogvideox"
"""The architecture whose pipelines are run."""
TO_VIDEO, FROM_IMAGE, FROM_VIDEO = (
    "CogVideoXPipeline",
    "CogVideoXImageToVideoPipeline",
    "CogVideoXVideoToVideoPipeline",
)


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run, settled. Everything here stands in its manifest."""

    base: BaseModel
    adapters: tuple[tuple[Adapter, float], ...]
    variant: str
    pipeline: str
    """Diffusers' class."""
    prompt: str
    negative_prompt: str
    image: Path | None
    video: Path | None
    settings: dict[str, Value]
    notes: tuple[str, ...]


def opened(
    sources: Sequence[str | Path], strengths: Sequence[float], stated: Mapping[str, Any]
) -> list[tuple[Adapter, float]]:
    """The adapters at their strengths; 1 each where none is given."""
    adapters = [read(source, **stated) for source in sources]
    if other := next((adapter.architecture for adapter in adapters if adapter.architecture != FAMILY), None):
        ours, its = (architecture(name).title for name in (FAMILY, other))
        raise LoraforgeError(f"an adapter is one of {its}, and what is run is {ours}.", "loraforge run --help")
    numbers = list(strengths) or [1.0] * len(adapters)
    if len(numbers) != len(adapters):
        text = (
            f"{len(numbers)} strengths for {len(adapters)} adapters: give --strength once per adapter, in their order."
        )
        raise LoraforgeError(text, adding(*["--strength", "1"] * len(adapters), why="as trained, each"))
    if odd := [number for number in numbers if not math.isfinite(number)]:
        raise LoraforgeError(f"the strength {odd[0]} is no number.", adding("--strength", "1"))
    return list(zip(adapters, numbers, strict=True))


def base_of(adapters: Sequence[tuple[Adapter, float]], stated: str | Path | None) -> str | Path:
    """The base model: stated, or the one the adapters name. Raises LoraforgeError with the lines that name one."""
    if stated is not None:
        return stated
    named = {adapter.base_model for adapter, _ in adapters if adapter.base_model}
    if len(named) == 1:
        return f"hf://{named.pop()}"
    why = f"the adapters name several base models: {', '.join(sorted(named))}" if named else "no base model is recorded"
    known = [variant.repo for adapter, _ in adapters[:1] for variant in fits(adapter)]
    every = known or [variant.repo for variant in architecture(FAMILY).variants]
    raise LoraforgeError(f"{why}: say which with --base.", *(adding("--base", repo) for repo in every))


def planned(
    adapters: Sequence[tuple[Adapter, float]],
    base: str | Path,
    *,
    prompt: str,
    negative_prompt: str = "",
    image: str | Path | None = None,
    video: str | Path | None = None,
    given: Settings,
    like: str | None = None,
    anyway: bool = False,
) -> RunPlan:
    """Settle a run. Raises a LoraforgeError for what would fail, or be wrong, after minutes of loading."""
    early = _variant_by_name(base)
    if early:  # before gigabytes are fetched
        _refuse_wrong(given, early, anyway=anyway)
    found = _pipeline_folder(base)
    variant = variant_of(found)
    _fitting(found, adapters)
    pipeline = _pipeline(found, image, video)
    values, own = _settings(found, variant.name, given, like)
    _refuse_wrong(given, variant.name, anyway=anyway, own=own)
    _refuse_size(values, found)
    if pipeline == FROM_VIDEO and video is not None:
        _refuse_short(Path(video), variant.name, int(str(values["num_frames"])))
    notes = [f"{told(a.source.path)}: {note}" for a, _ in adapters if a.source for note in a.notes]
    if len({str(a.source.path.resolve()) for a, _ in adapters if a.source}) < len(adapters):
        notes.append("the same adapter is given more than once: its updates add up")
    repo = variant.repo
    for adapter, _ in adapters:
        if adapter.base_model and adapter.base_model != repo:
            notes.append(f"an adapter is for {adapter.base_model}, and the base is {variant.name} by its shapes")
    return RunPlan(
        found,
        tuple(adapters),
        variant.name,
        pipeline,
        prompt,
        negative_prompt,
        Path(image) if image else None,
        Path(video) if video else None,
        values,
        tuple(dict.fromkeys((*found.notes, *notes))),
    )


def checkable(adapters: Sequence[tuple[Adapter, float]], base: str | Path, given: Settings) -> RunPlan:
    """What a run of the transformer alone needs: also of a base that is no whole pipeline."""
    found = open_base(base_folder(base, only=COMPONENT))
    if found.kind not in ("pipeline", "transformer"):
        text = f"{told(found.path)} is no folder that Diffusers loads: convert it first."
        raise LoraforgeError(
            text, command("loraforge", "convert-base", found.path, "--to", "diffusers", "-o", "transformer")
        )
    _fitting(found, adapters)
    variant = variant_of(found).name
    _refuse_wrong(given, variant, anyway=False)
    values: dict[str, Value] = {"torch_dtype": settings(variant).torch_dtype, **given}
    return RunPlan(found, tuple(adapters), variant, "", "", "", None, None, values, found.notes)


def _variant_by_name(base: str | Path) -> str | None:
    """The variant of a base on the Hub, where its name is that of a released one."""
    where = address(base)
    if where is None or not is_repo(where.repo):
        return None
    return next((v.name for v in architecture(FAMILY).variants if v.repo == where.repo), None)


def _pipeline_folder(base: str | Path) -> BaseModel:
    found = open_base(base_folder(base))
    if found.kind != "pipeline" or found.architecture.name != FAMILY:
        what = f"is a {found.kind} of {found.architecture.title}"
        raise LoraforgeError(
            f"{told(found.path)} {what}; a run needs a whole CogVideoX pipeline, with its text encoder and VAE.",
            adding("--base", "zai-org/CogVideoX-5b", why="for example"),
        )
    parts = [name for name, kind in read_json(found.path / "model_index.json").items() if isinstance(kind, list)]
    lacking = sorted(part for part in parts if not (found.path / part).is_dir())
    if lacking:
        raise LoraforgeError(
            f"{told(found.path)} has no {listed(lacking)}: a run needs the whole pipeline.",
            adding("--check", why="needs the transformer alone"),
            *(adding("--base", variant.repo, why="the released one") for variant in found.variants[:1]),
        )
    return found


def _fitting(base: BaseModel, adapters: Sequence[tuple[Adapter, float]]) -> None:
    for adapter, _ in adapters:
        try:
            updates(base, [(adapter, 1.0)])
        except ConversionError as error:
            raise ConversionError(told(error.message), *error.remedies) from error


def _pipeline(base: BaseModel, image: str | Path | None, video: str | Path | None) -> str:
    """The class that takes these inputs. Raises LoraforgeError where the base cannot."""
    own = str(read_json(base.path / "model_index.json").get("_class_name"))
    name = told(base.path)
    if own not in (TO_VIDEO, FROM_IMAGE, FROM_VIDEO):
        raise LoraforgeError(f"{name} is a {own}, which is none of CogVideoX's pipelines.", "loraforge run --help")
    for path, flag in ((image, "--image"), (video, "--video")):
        if path is not None and not Path(path).is_file():
            raise LoraforgeError(f"{flag} {path} does not exist.", command("ls", "-l", Path(path).parent))
    if image is not None and video is not None:
        raise LoraforgeError(
            "--image and --video exclude each other: a run begins with one of them.", "loraforge run --help"
        )
    if own == FROM_IMAGE:
        if image is None:
            raise LoraforgeError(
                f"{name} makes a video of a first frame: give it.", adding("--image", "first_frame.png")
            )
        return FROM_IMAGE
    if image is not None:
        raise LoraforgeError(
            f"{name} makes videos of text alone, and has no place for --image.",
            adding(
                "--base", "zai-org/CogVideoX-5b-I2V", why="the model for a first frame; it needs an adapter of its own"
            ),
        )
    return FROM_VIDEO if video is not None else TO_VIDEO


def _settings(
    base: BaseModel, variant: str, given: Settings, like: str | None
) -> tuple[dict[str, Value], frozenset[str]]:
    """Every setting of the call, and those that the base's own configuration decides, as no released one does."""
    wants, config, arch = settings(variant), own_config(base), base.architecture
    values: dict[str, Value] = {key: getattr(wants, key) for key in KEYS if hasattr(wants, key)}
    released = {**arch.config, **next(v.config for v in arch.variants if v.name == variant)}
    own = {
        key: int(config[name]) * times
        for key, name, times in _OWN
        if config.get(name, released[name]) != released[name]
    }
    known = preset(like, variant) if like else {}
    values |= {**own, **ALWAYS, **{key: value for key, value in known.items() if key in KEYS}}
    return values | {key: value for key, value in given.items() if key in KEYS}, frozenset(own)


_OWN = (
    ("height", "sample_height", PIXELS),
    ("width", "sample_width", PIXELS),
    ("max_sequence_length", "max_text_seq_length", 1),
)
"""Setting, the entry of the transformer's config.json that decides it, and what one of it is there."""


def _refuse_wrong(given: Settings, variant: str, *, anyway: bool, own: frozenset[str] = frozenset()) -> None:
    """Raise LoraforgeError for every given setting that is wrong for the variant, with what is right."""
    odd = [key for key in given if key not in KEYS]
    if odd:
        raise LoraforgeError(f"{odd[0]} is no setting of a run; there are {', '.join(KEYS)}.", "loraforge run --help")
    wrong = [f for f in compare(given, variant) if f.severity == "wrong" and f.key not in own]
    if not wrong or anyway:
        return
    text = "; ".join(f"{f.key} {f.given} is wrong for {variant}: {f.consequence}" for f in wrong)
    right = {f.key: f.wanted for f in wrong if f.wanted is not None}
    if "num_frames" in right:  # of two that are right, as 9 or 17, the first
        right["num_frames"] = settings(variant).nearest(int(str(given["num_frames"])))[0]
    words = [w for k, v in right.items() for w in ((SHORT[k], str(v)) if k in SHORT else ("--settings", f"{k}={v}"))]
    ways = [adding(*words)] if words else []
    raise LoraforgeError(f"{text}.", *ways, adding("--anyway", why="run it all the same"))


def _refuse_size(values: Mapping[str, Value], base: BaseModel) -> None:
    """Raise LoraforgeError where height or width is no multiple of a patch: the pipeline would fail, or cut."""
    step = PIXELS * int(own_config(base).get("patch_size", 2))
    for key in ("height", "width"):
        size = int(str(values[key]))
        if size % step:
            near = max(step, round(size / step) * step)
            text = f"{key} {size} is no multiple of {step}, the pixels of a patch."
            raise LoraforgeError(text, adding("--settings", f"{key}={near}"))
    config = own_config(base)
    learned = {key: int(config[f"sample_{key}"]) * PIXELS for key in ("height", "width") if _is_learned(config, key)}
    if any(int(str(values[key])) != size for key, size in learned.items()):
        raise LoraforgeError(
            f"height {values['height']} and width {values['width']} are no size of {told(base.path)}: its positions "
            f"are learned for {learned['height']} x {learned['width']}, and Diffusers runs it at no other.",
            adding(*(word for key, size in learned.items() for word in ("--settings", f"{key}={size}"))),
        )


def _is_learned(config: Mapping[str, Any], key: str) -> bool:
    return bool(config.get("use_learned_positional_embeddings")) and f"sample_{key}" in config


def _refuse_short(video: Path, variant: str, num_frames: int) -> None:
    """Raise LoraforgeError where the video has fewer frames than the run is to have."""
    there = len(read_video(video, num_frames)[0])
    if there < num_frames:
        fits = [count for count in settings(variant).counts if count <= there][-1:]
        text = f"{video} has {there} frames, and the run is to have {num_frames}."
        raise LoraforgeError(text, *(f"--frames {count}" for count in fits))


def component_sizes(base: BaseModel) -> dict[str, int]:
    """Component of the pipeline -> bytes of its weights as stored."""
    return {
        folder.name: sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        for folder in sorted(base.path.iterdir())
        if folder.is_dir() and any(folder.glob("*.safetensors"))
    } or {COMPONENT: 0}
