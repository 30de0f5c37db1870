"""The files that a run writes: where they go, and in which order they are written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loraforge.errors import OutputError, adding
from loraforge.live.compare import Compared, names, pictures
from loraforge.live.plan import Adapters, RunRequest
from loraforge.live.runner import Clip
from loraforge.media.video import write_video
from loraforge.text import command


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
    """Write the video and the files beside it, the manifest last: if it exists, the others are complete.

    Returns the paths of the comparison pictures.
    """
    manifest_path(video).unlink(missing_ok=True)
    write_video(video, clip.frames, fps, force=True)
    others = pictures(clips, results, video, fps) if clips else ()
    temporary = video.with_name(f".{video.stem}.json.part")
    temporary.write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", "utf-8")
    temporary.replace(manifest_path(video))
    return others
