"""Run an adapter in a CogVideoX pipeline, and say by numbers what it does there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from loraforge.adapter.adapter import Adapter
from loraforge.document import Document
from loraforge.errors import LoraforgeError, adding
from loraforge.facts.given_settings import Settings, checked, parse
from loraforge.live.compare import Compared, compared, effect, strengths
from loraforge.live.effect import Effect
from loraforge.live.manifest import Manifest, manifest_of, read_manifest
from loraforge.live.outputs import _manifest_name, _place, _write
from loraforge.live.plan import base_of, checkable, opened, planned
from loraforge.live.probe import Probe, probe
from loraforge.live.runner import Clip, Running, check_memory, check_offload, device_of, transformer_of, versions
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
    alpha: float | None = None,
    trained_scale: float | None = None,
    trained_by: str | None = None,
    training_config: str | Path | None = None,
    as_in: str | None = None,
    as_loaded: bool = False,
    override_scale: bool = False,
    architecture: str | None = None,
    anyway: bool = False,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> RunReport:
    """Run `adapters` in the pipeline of `base`; the arguments are those of `loraforge run`.

    `progress` is told how many steps are done, and of how many. Raises a LoraforgeError, before weights are loaded
    where that can be told by then, and with no file written.
    """
    stated: dict[str, Any] = {
        "alpha": alpha, "trained_scale": trained_scale, "trained_by": trained_by,
        "training_config": training_config, "as_in": as_in, "as_loaded": as_loaded, "override_scale": override_scale,
        "architecture": architecture,
    }  # fmt: skip
    again = read_manifest(Path(manifest)) if manifest else None
    short = {"num_inference_steps": steps, "guidance_scale": guidance, "num_frames": frames, "seed": seed}
    given: Settings = {**parse(settings), **checked((key, value) for key, value in short.items() if value is not None)}
    if again and adapters:
        raise LoraforgeError("the manifest names its adapters: give it alone.", "loraforge run --help")
    if again:  # what is typed now counts
        adapters, strength = [part.path for part in again.adapters], list(strength) or _strengths(again)
        stated = stated if any(stated.values()) else again.stated
        base, prompt = base or again.base, prompt or again.prompt
        negative_prompt = negative_prompt or again.negative_prompt
        image, video = image or again.image, video or again.video
        given, anyway = again.given(given), again.anyway or anyway
        device = again.device if device == "auto" else device
        offload = offload or again.offload
        tiling = again.tiling if tiling is None else tiling
        slicing = again.slicing if slicing is None else slicing
    offload, tiling, slicing = offload or "none", tiling is not False, slicing is not False
    if not adapters:
        raise LoraforgeError("there is no adapter to run.", "loraforge run --help")
    read = opened(adapters, strength, stated)
    base, device = base_of(read, base), device_of(device)
    if check and compare:
        raise LoraforgeError("--check and --compare are two measurements: one at a time.", "loraforge run --help")
    if not any(number for _, number in read) and (check or compare):
        raise LoraforgeError("every strength is 0: there is nothing to measure.", adding("--strength", "1"))
    if check:
        return _checked(read, base, given, device, progress)
    if not prompt and again is None:
        raise LoraforgeError(
            "a run needs a prompt: what the video is to show.", adding("--prompt", "a panda plays the guitar")
        )
    check_offload(offload, device)
    plan = planned(
        read, base, prompt=prompt, negative_prompt=negative_prompt, image=image, video=video,
        given=given, like=like, anyway=anyway,
    )  # fmt: skip
    kept = [source for source in (image, video, manifest, *settings) if source and "=" not in str(source)]
    place = _place(out, read, compare, kept, force=force)
    if again:
        again.check(plan)
    check_memory(plan, device, offload)
    running = Running(plan, tiling=tiling, slicing=slicing)
    weights = running.adapted.weights() if compare else 0.0
    running.place(device, offload)
    at, clips = strengths(compare), dict[float, Clip]()
    for n, factor in enumerate(at):
        running.adapted.at(factor)
        clips[factor] = running.clip(partial(_overall, progress, n, len(at)))
    shown = 1.0 if 1.0 in clips else max(at, key=abs)
    main = clips[shown]
    how = {"device": device, "offload": offload, "tiling": tiling, "slicing": slicing}
    made = manifest_of(plan, main.digest, place.parent, factor=shown, stated=_plain(stated), anyway=anyway, **how)
    found = compared(clips) if compare else ()
    others = _write(place, main, made, clips if compare else {}, found, int(str(plan.settings["fps"])))
    verdict = None
    if compare:
        dtype, count = str(plan.settings["torch_dtype"]), int(str(plan.settings["num_inference_steps"]))
        verdict = effect(found, weights, dtype, count, linear=not _dora(read))
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
        effect=verdict,
        notes=(*plan.notes, *_repeated(again, main)),
    )


def _checked(
    read: Sequence[tuple[Adapter, float]], base: str | Path, given: Settings, device: str,
    progress: Callable[[int, int], None],
) -> RunReport:  # fmt: skip
    """The transformer alone, on and off."""
    plan = checkable(read, base, given)
    steps = iter(range(1, 4))
    transformer = transformer_of(plan, device)
    found = probe(
        transformer.module, transformer.at, transformer.weights(), linear=not _dora(read),
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


def _overall(progress: Callable[[int, int], None], before: int, runs: int, done: int, steps: int) -> None:
    """The steps of one of several runs, told as steps of all."""
    progress(before * steps + done, runs * steps)


def _strengths(again: Manifest) -> list[float]:
    return [part.strength for part in again.adapters]


def _plain(stated: Mapping[str, Any]) -> dict[str, Any]:
    return {key: str(value) if isinstance(value, Path) else value for key, value in stated.items()}


def _dora(read: Sequence[tuple[Adapter, float]]) -> bool:
    return any(w.magnitude is not None for adapter, _ in read for delta in adapter.modules.values() for w in delta)


def _described(read: Sequence[tuple[Adapter, float]]) -> tuple[dict[str, Any], ...]:
    found = []
    for adapter, strength in read:
        scalings = sorted({w.scaling for delta in adapter.modules.values() for w in delta})
        at = "at scale" if adapter.scale.program else "trained at"
        said = f"{at} {', '.join(map(fraction, scalings))}, {adapter.scale.provenance}: {adapter.scale.source}"
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
