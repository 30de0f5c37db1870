"""Runs adapters in a CogVideoX pipeline, and measures their effect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from loraforge.document import Document
from loraforge.errors import LoraforgeError, adding
from loraforge.facts.given_settings import Settings, checked, parse
from loraforge.live import runner
from loraforge.live.manifest import check_inputs, manifest_of, read_manifest
from loraforge.live.outputs import Compared, compared, effect, manifest_path, video_path, write
from loraforge.live.plan import Adapters, RunPlan, RunRequest, base_of, checkable, opened, planned
from loraforge.live.probe import Effect, Probe, probe
from loraforge.live.runner import Clip, Progress, Running
from loraforge.scale.stated import Stated, takes_stated
from loraforge.text import fraction, told


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport(Document):
    """What a run did. Its JSON follows schemas/run.schema.json."""

    schema = "run"

    base: str
    variant: str
    pipeline: str
    adapters: tuple[dict[str, Any], ...]
    settings: dict[str, Any]
    output: str | None = None
    manifest: str | None = None
    others: tuple[str, ...] = ()
    """The other files of a comparison: the videos side by side, and the contact sheet."""
    shown: float = 1.0
    """The factor on the strengths in the video: 1, unless a comparison left out 1."""
    latents: str | None = None
    """Digest of the latents of the video."""
    probe: Probe | None = None
    compared: tuple[Compared, ...] = ()
    effect: Effect | None
    notes: tuple[str, ...]

    def lines(self) -> list[str]:
        """The report for a terminal: what was run, the effect of the adapters, and the files."""
        out = [f"{self.base} ({self.variant}, {self.pipeline})"]
        out += [f"  adapter   {a['path']} at strength {a['strength']:g} ({a['scale']})" for a in self.adapters]
        values = ", ".join(f"{key} {value}" for key, value in self.settings.items())
        out += [f"  settings  {values}"] if values else []
        if self.probe:
            pairs = zip(self.probe.strengths, self.probe.changes, strict=True)
            at = ", ".join(f"{change:.3g} at {strength:g}" for strength, change in pairs)
            out.append(f"  change    of the transformer's output, as a share of its norm: {at} ({self.probe.dtype})")
        out += [f"  at {one.strength:<6g} {one.line()}" for one in self.compared]
        if self.effect:
            out.append(f"  effect    {self.effect.verdict}: {self.effect.why}")
        at = "" if self.shown == 1.0 else f" (at {self.shown:g} times these strengths)"
        out += [f"  video     {self.output}{at}"] if self.output else []
        out += [f"  manifest  {self.manifest}"] if self.manifest else []
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
    progress: Progress = lambda _done, _all: None,
    **stated: Unpack[Stated],
) -> RunReport:
    """Run `adapters` in the pipeline of `base`; the arguments are those of `loraforge run`.

    `progress` is called with the number of steps that are done, and of all. Raises a LoraforgeError, before weights
    are loaded if that can be known by then, and with no file written.
    """
    again = read_manifest(Path(manifest)) if manifest else None
    short = {"num_inference_steps": steps, "guidance_scale": guidance, "num_frames": frames, "seed": seed}
    given: Settings = {**parse(settings), **checked((key, value) for key, value in short.items() if value is not None)}
    request = RunRequest(
        adapters=tuple(adapters), strength=tuple(strength), stated=stated, base=base, prompt=prompt,
        negative_prompt=negative_prompt, image=image, video=video, given=given, like=like, anyway=anyway,
        device=device, offload=offload, tiling=tiling, slicing=slicing, compare=tuple(compare), out=out,
        force=force, files=(*([manifest] if manifest else []), *settings),
    )  # fmt: skip
    request = request.over(again) if again else request
    if not request.adapters:
        raise LoraforgeError("there is no adapter to run.", "loraforge run --help")
    read = opened(request.adapters, request.strength, request.stated)
    model, request = base_of(read, request.base), replace(request, device=runner.device_of(request.device))
    if check and compare:
        raise LoraforgeError("--check and --compare are two measurements: one at a time.", "loraforge run --help")
    if not any(number for _, number in read) and (check or compare):
        raise LoraforgeError("every strength is 0: there is nothing to measure.", adding("--strength", "1"))
    return (_check if check else _make_video)(read, model, request, progress)


def _make_video(read: Adapters, base: str | Path, request: RunRequest, progress: Progress) -> RunReport:
    """Write the video and its manifest, and the results of a comparison."""
    if not request.prompt and request.again is None:
        text = "a run needs a prompt: what the video is to show."
        raise LoraforgeError(text, adding("--prompt", "a panda plays the guitar"))
    runner.check_offload(request.how["offload"], request.device)
    plan = planned(read, base, request)
    video = video_path(request, read)
    if request.again:
        check_inputs(request.again, plan)
    clips, weights = _clips(plan, request, progress)
    shown = 1.0 if 1.0 in clips else max(clips, key=abs)
    main, compare = clips[shown], bool(request.compare)
    stated = {key: str(value) if isinstance(value, Path) else value for key, value in request.stated.items()}
    how = {"anyway": request.anyway, "device": request.device, **request.how}
    manifest = manifest_of(plan, main.digest, video.parent, factor=shown, stated=stated, **how)
    results = compared(clips) if compare else ()
    others = write(video, main, manifest, clips if compare else {}, results, plan.settings["fps"])
    linear = not any(adapter.dora for adapter, _ in read)
    dtype, count = plan.settings["torch_dtype"], plan.settings["num_inference_steps"]
    return RunReport(
        base=told(plan.base.path), variant=plan.variant, pipeline=plan.pipeline, adapters=_described(read),
        settings=plan.settings, output=str(video), manifest=str(manifest_path(video)), others=tuple(map(str, others)),
        shown=shown, latents=main.digest, compared=results,
        effect=effect(results, weights, dtype, count, linear=linear) if compare else None,
        notes=(*plan.notes, *_repeated(request.again, main)),
    )  # fmt: skip


def _clips(plan: RunPlan, request: RunRequest, progress: Progress) -> tuple[dict[float, Clip], float]:
    """Factor on the strengths -> clip; and for a comparison the size of the updates relative to their weights."""
    runner.check_memory(plan, request.device, request.how["offload"])
    running = Running(plan, tiling=request.how["tiling"], slicing=request.how["slicing"])
    weights = running.adapted.weights() if request.compare else 0.0
    running.place(request.device, request.how["offload"])
    factors = [0.0, *sorted({*request.compare} - {0.0})] if request.compare else [1.0]  # 0 is the base model
    clips = dict[float, Clip]()
    for factor in factors:
        running.adapted.at(factor)
        clips[factor] = running.clip(lambda done, steps: progress(len(clips) * steps + done, len(factors) * steps))
    return clips, weights


def _check(read: Adapters, base: str | Path, request: RunRequest, progress: Progress) -> RunReport:
    """Run the transformer alone, with the adapters on and off."""
    plan = checkable(read, base, request.given)
    steps = iter(range(1, 4))
    transformer = runner.transformer_of(plan, request.device)
    result = probe(
        transformer.module, transformer.at, transformer.weights(), linear=not any(adapter.dora for adapter, _ in read),
        progress=lambda: progress(next(steps), 3),
    )  # fmt: skip
    return RunReport(
        base=told(plan.base.path), variant=plan.variant, pipeline=type(transformer.module).__name__,
        adapters=_described(read), settings={"torch_dtype": plan.settings["torch_dtype"]}, probe=result,
        effect=result.effect, notes=plan.notes,
    )  # fmt: skip


def _described(read: Adapters) -> tuple[dict[str, Any], ...]:
    described = []
    for adapter, strength in read:
        at = "at scale" if adapter.scale.program else "trained at"
        scale = f"{at} {', '.join(map(fraction, adapter.scalings))}, {adapter.scale.provenance}: {adapter.scale.source}"
        path = told(adapter.source.path) if adapter.source else "made in Python"
        described.append({"path": path, "strength": strength, "scale": scale})
    return tuple(described)


def _repeated(again: Mapping[str, Any] | None, clip: Clip) -> tuple[str, ...]:
    """A note on whether a repeated run gave the latents of the earlier one, and if not, why; () if none is repeated."""
    if again is None:
        return ()
    if again["latents"] == clip.digest:
        return ("the latents are those of the manifest, bit for bit",)
    now = runner.versions()
    other = [f"{name} {was}, now {now.get(name)}" for name, was in again["versions"].items() if now.get(name) != was]
    why = ", ".join(other) or "a setting, the base or the machine is another"
    return (f"the latents are not those of the manifest: {why}",)
