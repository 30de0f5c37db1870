"""TODO."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from loraforge.adapter.adapter import Adapter
from loraforge.errors import OutputError, adding
from loraforge.live.compare import Compared, names, pictures
from loraforge.live.manifest import Manifest
from loraforge.live.runner import Clip
from loraforge.media.video import write_video
from loraforge.text import command


def _place(
    out: str | Path | None, read: Sequence[tuple[Adapter, float]], compare: Sequence[float],
    inputs: Sequence[str | Path], *, force: bool,
) -> Path:  # fmt: skip
    """Where the video goes. Raises OutputError where something is there already, or the name is of another kind."""
    source = read[0][0].source
    default = f"{source.run if source else 'run'}.mp4"
    place = Path(out) if out else Path(default)
    place = place / default if place.is_dir() else place
    if place.suffix.lower() != ".mp4":
        raise OutputError(f"{place}: what is written is an .mp4.", adding("-o", place.with_suffix(".mp4")))
    folder = place.absolute().parent
    if not folder.is_dir():
        raise OutputError(f"there is no folder {place.parent}.", command("mkdir", "-p", place.parent))
    if not os.access(folder, os.W_OK):
        raise OutputError(f"{place.parent} cannot be written.", adding("-o", Path.home() / place.name))
    other = adding("-o", place.with_stem(f"{place.stem}-2"), why="another name")
    for file in (place, _manifest_name(place), *(names(place) if compare else ())):
        if any(file.resolve() == Path(given).resolve() for given in inputs):
            raise OutputError(f"{file} is read by this run, and would be replaced by what it writes.", other)
        if file.exists() and not force:
            raise OutputError(f"{file} exists.", adding("--force", why="replace it"), other)
    return place


def _manifest_name(place: Path) -> Path:
    return place.with_suffix(".json")


def _write(
    place: Path, clip: Clip, made: Manifest, clips: Mapping[float, Clip], found: Sequence[Compared], fps: int
) -> tuple[Path, ...]:
    """The video and what lies beside it, the manifest last: where there is one, all of it is there."""
    _manifest_name(place).unlink(missing_ok=True)
    write_video(place, clip.frames, fps, force=True)
    others = pictures(clips, found, place, fps) if clips else ()
    temporary = place.with_name(f".{place.stem}.json.part")
    temporary.write_text(made.text(), "utf-8")
    temporary.replace(_manifest_name(place))
    return others
