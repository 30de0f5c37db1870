"""A run at several strengths from the same noise: the numbers, and the pictures beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from loraforge.live.effect import Effect, judged
from loraforge.live.probe import relative
from loraforge.media.metrics import flicker, psnr, ssim
from loraforge.media.sheet import contact_sheet, side_by_side
from loraforge.media.video import write_video

if TYPE_CHECKING:
    from loraforge.live.runner import Clip


@dataclass(frozen=True, slots=True)
class Compared:
    """One strength beside strength 0, the base model. Its JSON is part of schemas/run.schema.json."""

    strength: float
    latents: float
    """|L - L0| / |L0|, Frobenius norms over the latents."""
    psnr: tuple[float | None, ...]
    """Per frame, in dB; None where the frames are the same."""
    ssim: tuple[float, ...]
    """Per frame, 1 where they are the same."""
    flicker: float
    """Mean change between neighbouring frames, in levels of 0 to 255."""

    def line(self) -> str:
        """The same in a few words: the worst frame counts."""
        finite = [value for value in self.psnr if value is not None]
        worst = f"PSNR {min(finite):.1f} dB, SSIM {min(self.ssim):.3f} at worst" if finite else "the same frames"
        return f"latents {self.latents:.3g} off, {worst}; flicker {self.flicker:.2f}"


def strengths(wanted: Sequence[float]) -> list[float]:
    """The strengths to run at, the base model first; 1 alone where nothing is to be compared."""
    return [0.0, *sorted({value for value in wanted if value})] if wanted else [1.0]


def compared(clips: Mapping[float, Clip]) -> tuple[Compared, ...]:
    """Every strength beside strength 0."""
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


def effect(found: Sequence[Compared], weights: float, dtype: str, steps: int, *, linear: bool) -> Effect:
    """The verdict on the strongest run. How it grows is asked where a run at half that strength is there."""
    changes = {abs(one.strength): one.latents for one in found}
    most = max(changes)
    half = changes.get(most / 2)
    return judged(half or 0.0, changes[most], weights * most, dtype, linear=linear and half is not None, calls=steps)


def pictures(clips: Mapping[float, Clip], found: Sequence[Compared], out: Path, fps: int) -> tuple[Path, ...]:
    """Write the clips side by side and a contact sheet, beside `out`; returns both paths."""
    video, sheet = names(out)
    labels = [f"strength {strength:g}" if strength else "base model (strength 0)" for strength in clips]
    frames = [clip.frames for clip in clips.values()]
    write_video(video, side_by_side(frames, labels), fps, force=True)
    contact_sheet(frames, labels, [one.line() if one.strength else "" for one in found]).save(sheet)
    return video, sheet


def names(out: Path) -> tuple[Path, Path]:
    """What the two are called."""
    return out.with_name(f"{out.stem}-side-by-side.mp4"), out.with_name(f"{out.stem}-contact-sheet.png")
