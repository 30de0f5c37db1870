"""Video and image files: writes frames as MP4, reads videos as frames, and reads images in RGB.

Of imageio-ffmpeg only the program is used, not its `write_frames`, which enlarges pictures to multiples of 16 by
default and ignores the exit status of ffmpeg.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loraforge.errors import FileError, LoraforgeError, OutputError, Try, absent, adding, of_pipeline
from loraforge.files.destination import destination, replacing
from loraforge.foreign import reading
from loraforge.media.metrics import Frames
from loraforge.text import plain

if TYPE_CHECKING:
    from PIL.Image import Image

_EXACT = "flags=bicubic+accurate_rnd+full_chroma_int+bitexact"
"""How colours are converted. ffmpeg's default is faster, but darkens by one level and differs between processors."""
_ENCODING = [
    # the colour standard of HD, stated in the file: players guess an unstated one from the size
    "-vf", f"scale=out_color_matrix=bt709:out_range=tv:{_EXACT},"
           "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709",
    "-c:v", "libx264", "-preset", "medium", "-crf", "17", "-pix_fmt", "yuv420p",
    # one thread: the output of x264 depends on the number of threads, and machines differ in that
    "-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1",
    "-movflags", "+faststart", "-f", "mp4",
]  # fmt: skip
_CONTAINERS = "mov,matroska,webm,avi,gif,mpegts,mpeg,ogg,flv"
"""The video formats that are read. Without a list ffmpeg renders text files as videos, and follows playlists."""
_PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""The image formats that are read. Without a list Pillow passes EPS to Ghostscript, which executes it."""


def write_video(path: Path, frames: Iterable[Frames], fps: int, *, force: bool = False) -> None:
    """Write frames [height, width, 3] of bytes as an H.264 video that browsers play (yuv420p, MP4, its index first).

    Nothing is rescaled; the last column or row of an odd size is repeated, as H.264 needs even sizes. The file appears
    whole or not at all. The same frames give the same bytes with the same ffmpeg, on any number of cores and on x86
    processors from SSE4 to AVX-512; ARM was not tried. Raises OutputError if the file exists (unless `force`), is not
    named .mp4 or cannot be written, or if the frames differ in shape; LoraforgeError if there is no ffmpeg.
    """
    if path.suffix.lower() != ".mp4":
        raise OutputError(f"{path}: the name of the video must end in .mp4.", adding("-o", path.with_suffix(".mp4")))
    if fps < 1:
        raise OutputError(f"{path}: a film of {fps} frames per second does not move.", adding("--fps", "8"))
    target = destination(path.parent, "", (path.name,), (), force=force)
    with replacing(target, 0, force=force) as folder:
        feed = _checked(frames, path)
        first = next(feed, None)
        if first is None:
            raise OutputError(f"{path}: there are no frames to write.")
        height, width = first.shape[:2]
        size = f"{width + width % 2}x{height + height % 2}"
        words = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", size, "-framerate", str(fps), "-i", "pipe:0"]
        odd = ((0, height % 2), (0, width % 2), (0, 0))
        padded = (np.pad(frame, odd, "edge").tobytes() for frame in chain([first], feed))
        failure = _encode([*words, *_ENCODING, f"file:{folder / path.name}"], padded)
        if failure is not None:
            elsewhere = adding("-o", Path.home() / path.name, why="elsewhere")
            raise OutputError(f"{path} cannot be written: ffmpeg {failure}.", elsewhere)


def read_video(path: Path, most: int | None = None) -> tuple[Frames, float]:
    """The first `most` frames [frames, height, width, 3] of a video (None: all), upright, and its frames per second.

    Every stored frame is returned once. If they are not evenly spaced in time, the rate is the nominal one.
    Raises FileError if the file does not exist, is not a video, or is damaged.
    """
    # a listing whose first lines state size and time base, as `#dimensions 0: 720x480` and `#tb 0: 1/8`
    listing = _decode(path, ["-frames:v", "1", "-f", "framecrc"]).decode("ascii", "replace")
    head = dict(line[1:].split(" 0: ", 1) for line in listing.splitlines() if line.startswith("#") and " 0: " in line)
    try:
        width, height = map(int, head["dimensions"].split("x"))
        part, whole = map(int, head["tb"].split("/"))
    except (KeyError, ValueError) as error:
        raise _no_film(path, "it has no pictures") from error
    pixels = _decode(path, [*(["-frames:v", str(most)] if most is not None else []), "-f", "rawvideo"])
    # an array over bytes is read-only; callers may want to change the frames
    return np.frombuffer(pixels, np.uint8).reshape(-1, height, width, 3).copy(), whole / part


def read_image(path: Path) -> Image:
    """The image in RGB, turned upright by its EXIF orientation, on a white background if it is transparent.

    Raises FileError if the file does not exist, is not an image, is damaged, or has too many pixels.
    """
    with of_pipeline("a picture"):
        from PIL import Image, ImageOps
    _must_exist(path)
    with reading(path, "a picture"), Image.open(path, formats=_PICTURES) as stored:
        upright = ImageOps.exif_transpose(stored)
        if upright.mode.startswith("I"):
            # 16-bit grey: keep the upper eight bits, as the versions of Pillow differ in how `convert` does it
            grey = np.clip(np.asarray(upright, np.int64), 0, 0xFFFF) >> 8
            return Image.fromarray(grey.astype(np.uint8)).convert("RGB")
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
        return upright.convert("RGB")


def _checked(frames: Iterable[Frames], path: Path) -> Iterator[Frames]:
    """The frames, one by one. Raises OutputError at one that is not uint8 [height, width, 3], or not like the first."""
    shape = None
    for n, frame in enumerate(frames):
        shape = shape or frame.shape
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype.name != "uint8" or not frame.size:
            kind = f"an array of {frame.dtype.name} {list(frame.shape)}"
            raise OutputError(f"{path}: frame {n} is {kind}, instead of uint8 [height, width, 3].")
        if frame.shape != shape:
            raise OutputError(f"{path}: frame {n} has the shape {list(frame.shape)}, and frame 0 {list(shape)}.")
        yield frame


def _encode(words: Sequence[str], frames: Iterator[bytes]) -> str | None:
    """Run ffmpeg over the frames. Returns how it failed, or None; the process never outlives this call."""
    with tempfile.TemporaryFile() as messages:  # not a pipe, which could fill up and block ffmpeg
        process = _started(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=messages)
        complete = True
        try:
            for frame in frames:
                try:
                    process.stdin.write(frame)
                except OSError:  # ffmpeg has ended; its status says why
                    complete = False
                    break
            process.communicate()  # closes its input and waits
        finally:
            with suppress(OSError):
                process.kill()  # does nothing if it has ended
            process.communicate()
        if process.returncode == 0 and complete:
            return None
        messages.seek(0)
        return _ending(process.returncode, messages.read())


def _decode(path: Path, words: Sequence[str]) -> bytes:
    """The output of ffmpeg for the first video stream of the file: raw RGB in the container that `words` name."""
    _must_exist(path)
    reading = ["-protocol_whitelist", "file", "-format_whitelist", _CONTAINERS, "-xerror", "-i", f"file:{path}"]
    form = ["-map", "0:V:0", "-fps_mode", "passthrough", "-vf", f"scale={_EXACT}", "-c:v", "rawvideo"]
    words = [*reading, *form, "-pix_fmt", "rgb24", *words, "pipe:1"]
    done = _started(words, subprocess.run, stdin=subprocess.DEVNULL, capture_output=True)
    if done.returncode:
        raise _no_film(path, f"ffmpeg {_ending(done.returncode, done.stderr)}")
    return bytes(done.stdout)


def _started(words: Sequence[str], start: Callable[..., Any] = subprocess.Popen, **streams: Any) -> Any:
    """An ffmpeg in its own process group, so that Ctrl-C reaches only Python, which then ends ffmpeg."""
    with of_pipeline("a film"):
        import imageio_ffmpeg
    own = Try("export IMAGEIO_FFMPEG_EXE=$(command -v ffmpeg)", "with an ffmpeg of your own installed")
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
        return start(  # no shell; the user's file is one word with the protocol `file:`
            [program, "-hide_banner", "-nostdin", "-v", "error", *words], process_group=0, **streams
        )
    except RuntimeError as error:
        raise LoraforgeError("imageio-ffmpeg has no ffmpeg for this machine.", own) from error
    except OSError as error:
        raise LoraforgeError(f"ffmpeg cannot be started: {plain(str(error), 300)}.", own) from error


def _ending(status: int, messages: bytes) -> str:
    """How ffmpeg failed: the signal that killed it, its first message, or its exit status."""
    lines = [line for line in messages.decode("utf-8", "replace").splitlines() if line.strip()]
    if status < 0:
        return f"was ended by signal {-status}"
    return f"says: {plain(lines[0], 300).removesuffix('.')}" if lines else f"ended with status {status}"


def _must_exist(path: Path) -> None:
    if not path.is_file():
        raise FileError(f"{path} is a folder, not a file.") if path.is_dir() else absent(path)


def _no_film(path: Path, why: str) -> FileError:
    return FileError(f"{path} is no film that can be read: {why}.")
