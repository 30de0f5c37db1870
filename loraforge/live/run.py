"""Run an adapter in a CogVideoX pipeline, and say by numbers what it does there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

from loraforge.adapter.adapter import Adapter
from loraforge.document import Document
from loraforge.errors import LoraforgeError, adding
from loraforge.facts.given_settings import Settings, checked, parse
from loraforge.live.compare import Compared, compared, effect, strengths
from loraforge.live.effect import Effect
from loraforge.live.manifest import Manifest, manifest_of, read_manifest
from loraforge.live.outputs import _manifest_name, _place, _write
from loraforge.live.plan import RunPlan, base_of, checkable, opened, planned
from loraforge.live.probe import Probe, probe
from loraforge.live.request import RunRequest
from loraforge.live.runner import Clip, Running, check_memory, check_offload, device_of, transformer_of, versions
from loraforge.scale.stated import Stated, takes_stated
from loraforge.text import fraction, told


@dataclass(frozen=True, slots=True)
class RunReport(Document):
    """What a run did. Its JSON follows schemas/run.schema.json."""

    schema = "run"

    base: str
    variant: str
    pipeline: str
    adapters: tuple[dict[str, Any], ...]
    settings: dict[str, Any]
    output: str | None
    manifest: str | None
    others: tuple[str, ...]
    """The other files of a comparison: side by side, and the contact sheet."""
    shown: float
    """What the strengths were multiplied with in the video: 1, unless a comparison went without 1."""
    latents: str | None
    """Digest of the latents of the video."""
    probe: Probe | None
    compared: tuple[Compared, ...]
    effect: Effect | None
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for a terminal: what was run with, what came out, and what the adapters did."""
        out = [f"{self.base} ({self.variant}, {self.pipeline})"]
        out += [f"  adapter   {a['path']} at strength {a['strength']:g} ({a['scale']})" for a in self.adapters]
        values = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        out += [f"  settings  {values}"] if values else []
        if self.probe:
            at = ", ".join(
                f"{change:.3g} at {strength:g}"
                for strength, change in zip(self.probe.strengths, self.probe.changes, strict=True)
            )
            out.append(f"  change    of the transformer's output, as a share of its norm: {at} ({self.probe.dtype})")
        out += [f"  at {one.strength:<6g} {one.line()}" for one in self.compared]
        if self.effect:
            out.append(f"  effect    {self.effect.verdict}: {self.effect.why}")
        at = "" if self.shown == 1.0 else f" (at {self.shown:g} times these strengths)"
        named = {"video": f"{self.output}{at}" if self.output else None, "manifest": self.manifest}
        out += [f"  {label:<9} {path}" for label, path in named.items() if path]
        return [*out, *(f"  {'' if n else 'beside it':<9} {path}" for n, path in enumerate(self.others))]


@takes_stated
def run(
    adapters: Sequence[str | Path],
    *,
    prompt: str = "",
    negative_prompt: str = "",
    base: str | Path | None = None,
    image: str | Path | None = None,
    video: str | Path | None = None,
    out: str | Path | None = None,
    strength: Sequence[float] = (),
    steps: int | None = None,
    guidance: float | None = None,
    frames: int | None = None,
    seed: int | None = None,
    settings: Sequence[str] = (),
    like: str | None = None,
    device: str = "auto",
    offload: str | None = None,
    tiling: bool | None = None,
    slicing: bool | None = None,
    check: bool = False,
    compare: Sequence[float] = (),
    manifest: str | Path | None = None,
    anyway: bool = False,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
    **stated: Unpack[Stated],
) -> RunReport:
    """Run `adapters` in the pipeline of `base`; the arguments are those of `loraforge run`.

    `progress` is told how many steps are done, and of how many. Raises a LoraforgeError, before weights are loaded
    where that can be told by then, and with no file written.
    """
    again = read_manifest(Path(manifest)) if manifest else None
    short = {"num_inference_steps": steps, "guidance_scale": guidance, "num_frames": frames, "seed": seed}
    given: Settings = {**parse(settings), **checked((key, value) for key, value in short.items() if value is not None)}
    request = RunRequest(
        adapters=tuple(adapters), strength=tuple(strength), stated=stated, base=base, prompt=prompt,
        negative_prompt=negative_prompt, image=image, video=video, given=given, like=like, anyway=anyway,
        device=device, offload=offload, tiling=tiling, slicing=slicing, check=check, compare=tuple(compare), out=out,
        force=force, files=(*([manifest] if manifest else []), *settings),
    )  # fmt: skip
    request = request.over(again) if again else request
    if not request.adapters:
        raise LoraforgeError("there is no adapter to run.", "loraforge run --help")
    read = opened(request.adapters, request.strength, request.stated)
    settled, request = base_of(read, request.base), replace(request, device=device_of(request.device))
    if check and compare:
        raise LoraforgeError("--check and --compare are two measurements: one at a time.", "loraforge run --help")
    if not any(number for _, number in read) and (check or compare):
        raise LoraforgeError("every strength is 0: there is nothing to measure.", adding("--strength", "1"))
    return (_checked if check else _filmed)(read, settled, request, progress)


Read = Sequence[tuple[Adapter, float]]
"""The adapters, and their strengths."""
Progress = Callable[[int, int], None]


def _filmed(read: Read, base: str | Path, request: RunRequest, progress: Progress) -> RunReport:
    """The video, its manifest, and what a comparison shows."""
    if not request.prompt and request.again is None:
        raise LoraforgeError(
            "a run needs a prompt: what the video is to show.", adding("--prompt", "a panda plays the guitar")
        )
    check_offload(request.how["offload"], request.device)
    plan = planned(
        read, base, prompt=request.prompt, negative_prompt=request.negative_prompt,
        image=request.image, video=request.video, given=request.given, like=request.like, anyway=request.anyway,
    )  # fmt: skip
    place = _place(request.out, read, request.compare, request.inputs, force=request.force)
    if request.again:
        request.again.check(plan)
    clips, weights = _clips(plan, request, progress)
    shown = 1.0 if 1.0 in clips else max(clips, key=abs)
    main, compare = clips[shown], bool(request.compare)
    how = {"stated": _plain(request.stated), "anyway": request.anyway, "device": request.device, **request.how}
    made = manifest_of(plan, main.digest, place.parent, factor=shown, **how)
    found = compared(clips) if compare else ()
    others = _write(place, main, made, clips if compare else {}, found, int(str(plan.settings["fps"])))
    linear = not any(adapter.dora for adapter, _ in read)
    dtype, count = str(plan.settings["torch_dtype"]), int(str(plan.settings["num_inference_steps"]))
    return RunReport(
        base=told(plan.base.path),
        variant=plan.variant,
        pipeline=plan.pipeline,
        adapters=_described(read),
        settings=dict(plan.settings),
        output=str(place),
        manifest=str(_manifest_name(place)),
        others=tuple(map(str, others)),
        shown=shown,
        latents=main.digest,
        probe=None,
        compared=found,
        effect=effect(found, weights, dtype, count, linear=linear) if compare else None,
        notes=(*plan.notes, *_repeated(request.again, main)),
    )


def _clips(plan: RunPlan, request: RunRequest, progress: Progress) -> tuple[dict[float, Clip], float]:
    """Factor of the strengths -> clip, and of a comparison the size of the updates as a share of their weights."""
    check_memory(plan, request.device, request.how["offload"])
    running = Running(plan, tiling=request.how["tiling"], slicing=request.how["slicing"])
    weights = running.adapted.weights() if request.compare else 0.0
    running.place(request.device, request.how["offload"])
    at, clips = strengths(request.compare), dict[float, Clip]()
    for n, factor in enumerate(at):
        running.adapted.at(factor)
        clips[factor] = running.clip(partial(_overall, progress, n, len(at)))
    return clips, weights


def _checked(read: Read, base: str | Path, request: RunRequest, progress: Progress) -> RunReport:
    """The transformer alone, on and off."""
    plan = checkable(read, base, request.given)
    steps = iter(range(1, 4))
    transformer = transformer_of(plan, request.device)
    found = probe(
        transformer.module, transformer.at, transformer.weights(), linear=not any(adapter.dora for adapter, _ in read),
        progress=lambda: progress(next(steps), 3),
    )  # fmt: skip
    return RunReport(
        base=told(plan.base.path),
        variant=plan.variant,
        pipeline=type(transformer.module).__name__,
        adapters=_described(read),
        settings={"torch_dtype": plan.settings["torch_dtype"]},
        output=None,
        manifest=None,
        others=(),
        shown=1.0,
        latents=None,
        probe=found,
        compared=(),
        effect=found.effect,
        notes=plan.notes,
    )


def _overall(progress: Progress, before: int, runs: int, done: int, steps: int) -> None:
    """The steps of one of several runs, told as steps of all."""
    progress(before * steps + done, runs * steps)


def _plain(stated: Mapping[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in stated.items()}


def _described(read: Read) -> tuple[dict[str, Any], ...]:
    found = []
    for adapter, strength in read:
        at = "at scale" if adapter.scale.program else "trained at"
        said = f"{at} {', '.join(map(fraction, adapter.scalings))}, {adapter.scale.provenance}: {adapter.scale.source}"
        path = told(adapter.source.path) if adapter.source else "made in Python"
        found.append({"path": path, "strength": strength, "scale": said})
    return tuple(found)


def _repeated(again: Manifest | None, clip: Clip) -> tuple[str, ...]:
    """What is to be said of a run that was to be as an earlier one."""
    if again is None:
        return ()
    if again.latents == clip.digest:
        return ("the latents are those of the manifest, bit for bit",)
    now = versions()
    other = [f"{name} {was}, now {now.get(name)}" for name, was in again.versions.items() if now.get(name) != was]
    why = ", ".join(other) or "a setting, the base or the machine is another"
    return (f"the latents are not those of the manifest: {why}",)
