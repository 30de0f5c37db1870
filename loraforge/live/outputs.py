"""The results of a run: strengths compared from the same noise, by numbers and as pictures; and its files, in order."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraforge.errors import OutputError, adding
from loraforge.live.plan import Adapters, RunRequest
from loraforge.live.probe import Effect, judged, relative
from loraforge.live.runner import Clip
from loraforge.media.metrics import flicker, psnr, ssim
from loraforge.media.sheet import contact_sheet, side_by_side
from loraforge.media.video import write_video
from loraforge.text import command


@dataclass(frozen=True, slots=True)
class Compared:
    """One strength compared with strength 0, the base model. Its JSON is part of schemas/run.schema.json."""

    strength: float
    latents: float
    """|L - L0| / |L0|, Frobenius norms over the latents."""
    psnr: tuple[float | None, ...]
    """Per frame, in dB; None if the frames are the same."""
    ssim: tuple[float, ...]
    """Per frame; 1 if the frames are the same."""
    flicker: float
    """Mean change between neighbouring frames, in levels of 0 to 255."""

    def line(self) -> str:
        """The numbers as one line of text; PSNR and SSIM are those of the frame that differs most."""
        finite = [value for value in self.psnr if value is not None]
        worst = f"PSNR {min(finite):.1f} dB, SSIM {min(self.ssim):.3f} at worst" if finite else "the same frames"
        return f"latents {self.latents:.3g} off, {worst}; flicker {self.flicker:.2f}"


def compared(clips: Mapping[float, Clip]) -> tuple[Compared, ...]:
    """Every strength compared with strength 0. `clips` has the clip of each strength, 0 included."""
    base = clips[0.0]
    return tuple(
        Compared(
            strength,
            relative(clip.latents.double(), base.latents.double()),
            tuple(value if math.isfinite(value) else None for value in psnr(clip.frames, base.frames)),
            ssim(clip.frames, base.frames),
            flicker(clip.frames),
        )
        for strength, clip in clips.items()
    )


def effect(results: Sequence[Compared], weights: float, dtype: str, steps: int, *, linear: bool) -> Effect:
    """The verdict on the strongest run. Saturation is judged only if there is a run at half that strength."""
    changes = {abs(one.strength): one.latents for one in results}
    most = max(changes)
    half = changes.get(most / 2)
    return judged(half or 0.0, changes[most], weights * most, dtype, linear=linear and half is not None, calls=steps)


def pictures(clips: Mapping[float, Clip], results: Sequence[Compared], out: Path, fps: int) -> tuple[Path, ...]:
    """Write the clips side by side and a contact sheet, in the folder of `out`; returns both paths."""
    video, sheet = names(out)
    labels = [f"strength {strength:g}" if strength else "base model (strength 0)" for strength in clips]
    frames = [clip.frames for clip in clips.values()]
    write_video(video, side_by_side(frames, labels), fps, force=True)
    contact_sheet(frames, labels, [one.line() if one.strength else "" for one in results]).save(sheet)
    return video, sheet


def names(out: Path) -> tuple[Path, Path]:
    """The paths of the side-by-side video and of the contact sheet that belong to `out`."""
    return out.with_name(f"{out.stem}-side-by-side.mp4"), out.with_name(f"{out.stem}-contact-sheet.png")


def video_path(request: RunRequest, adapters: Adapters) -> Path:
    """The path of the video. Raises OutputError if a file exists (unless `force`), or if the path cannot be written."""
    source = adapters[0][0].source
    default = f"{source.run if source else 'run'}.mp4"
    video = Path(request.out or default)
    video = video / default if video.is_dir() else video
    if video.suffix.lower() != ".mp4":
        raise OutputError(f"{video}: the name of the video must end in .mp4.", adding("-o", video.with_suffix(".mp4")))
    folder = video.absolute().parent
    if not folder.is_dir():
        raise OutputError(f"there is no folder {video.parent}.", command("mkdir", "-p", video.parent))
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{video.parent} cannot be written.", adding("-o", Path.home() / video.name))
    other = adding("-o", video.with_stem(f"{video.stem}-2"), why="another name")
    for file in (video, manifest_path(video), *(names(video) if request.compare else ())):
        if any(file.resolve() == Path(given).resolve() for given in request.inputs):
            raise OutputError(f"{file} is read by this run, which would replace it.", other)
        if file.exists() and not request.force:
            raise OutputError(f"{file} exists.", adding("--force", why="replace it"), other)
    return video


def manifest_path(video: Path) -> Path:
    """The path of the manifest that belongs to a video."""
    return video.with_suffix(".json")


def write(
    video: Path,
    clip: Clip,
    manifest: Mapping[str, Any],
    clips: Mapping[float, Clip],
    results: Sequence[Compared],
    fps: int,
) -> tuple[Path, ...]:
    """Write video and pictures, whose paths are returned, and last the manifest: it shows that all are complete."""
    manifest_path(video).unlink(missing_ok=True)
    write_video(video, clip.frames, fps, force=True)
    others = pictures(clips, results, video, fps) if clips else ()
    temporary = video.with_name(f".{video.stem}.json.part")
    temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", "utf-8")
    temporary.replace(manifest_path(video))
    return others
