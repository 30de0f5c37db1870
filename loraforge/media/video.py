"""Films and pictures as files: arrays of frames to MP4 and back, and a picture in RGB.

Films go through the ffmpeg that imageio-ffmpeg brings. It is maintained, it is in its wheel (nothing to install
beside it, and the same encoder for everyone), and Diffusers' own export asks for it. OpenCV's wheels leave out
x264, because of its licence, and write MPEG-4 part 2, which browsers do not play; PyAV is a second FFmpeg, with
an interface that changes with FFmpeg's. Of imageio-ffmpeg only the program is used, not its `write_frames`: that one
enlarges pictures to multiples of 16 unless told otherwise, and does not look at how ffmpeg ended.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from loraforge.errors import FileError, LoraforgeError, OutputError, Try, adding, of_pipeline
from loraforge.files.destination import destination, replacing
from loraforge.text import command, plain

if TYPE_CHECKING:
    from PIL.Image import Image

    from loraforge.media.clips import Frames

_EXACT = "flags=bicubic+accurate_rnd+full_chroma_int+bitexact"
"""How colours are converted. ffmpeg's default is faster, darkens by a level and differs between processors."""
_ENCODING = [
    # HD's colours, and saying so: players take what is untagged for one standard or another by its size
    "-vf", f"scale=out_color_matrix=bt709:out_range=tv:{_EXACT},"
           "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709",
    "-c:v", "libx264", "-preset", "medium", "-crf", "17", "-pix_fmt", "yuv420p",
    # one thread: x264 decides otherwise with another number of them, and machines have different numbers
    "-threads", "1", "-fflags", "+bitexact", "-flags:v", "+bitexact", "-map_metadata", "-1",
    "-movflags", "+faststart", "-f", "mp4",
]  # fmt: skip
_CONTAINERS = "mov,matroska,webm,avi,gif,mpegts,mpeg,ogg,flv"
"""What is taken for a film. Without a list ffmpeg draws a text file as a film of it, and follows playlists."""
_PICTURES = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""What is taken for a picture. Without a list Pillow hands EPS to Ghostscript, which runs it."""


def write_video(path: Path, frames: Iterable[Frames], fps: int, *, force: bool = False) -> None:
    """An H.264 film (yuv420p, MP4, its index in front) that browsers play, of frames [height, width, 3] of bytes.

    `frames` is an array of them or yields them one by one. Nothing is rescaled: H.264 halves the resolution of
    colour, so that an odd width or height repeats its last column or row. The file appears whole or not at all.
    The same frames make the same bytes with the same ffmpeg, on any number of cores and on x86 processors from
    SSE4 to AVX-512, which choose other code. Without SSE4 x264 decides otherwise; ARM was not tried.

    Raises OutputError where the file exists (unless `force`), is not named .mp4 or cannot be written, where
    there are no frames or unequal ones, and where ffmpeg fails; LoraforgeError where there is no ffmpeg.
    """
    if path.suffix.lower() != ".mp4":
        raise OutputError(f"{path}: what is written is an MP4 film.", adding("-o", path.with_suffix(".mp4")))
    if fps < 1:
        raise OutputError(f"{path}: a film of {fps} frames per second does not move.", adding("--fps", "8"))
    place = destination(path.parent, "", (path.name,), (), force=force)
    with replacing(place, 0, force=force) as folder:
        feed = _checked(frames, path)
        first = next(feed, None)
        if first is None:
            raise OutputError(f"{path}: there are no frames to write.")
        height, width = first.shape[:2]
        size = f"{width + width % 2}x{height + height % 2}"
        words = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-video_size", size, "-framerate", str(fps), "-i", "pipe:0"]
        told = _encode([*words, *_ENCODING, f"file:{folder / path.name}"], _padded(first, feed))
        if told is not None:
            raise OutputError(
                f"{path} cannot be written: ffmpeg {told}.", adding("-o", Path.home() / path.name, why="elsewhere")
            )


def read_video(path: Path, most: int | None = None) -> tuple[Frames, float]:
    """The frames [frames, height, width, 3] of a film, upright, and how many it shows per second.

    At most the `most` first ones. The frames are those stored, each once: where they are not evenly spaced, the
    rate is the nominal one. Raises FileError where there is no such file, it is no film, or it is damaged.
    """
    # a listing whose head states size and time base as `#dimensions 0: 720x480` and `#tb 0: 1/8`
    listing = _decode(path, ["-frames:v", "1", "-f", "framecrc"]).decode("ascii", "replace")
    head = dict(line[1:].split(" 0: ", 1) for line in listing.splitlines() if line.startswith("#") and " 0: " in line)
    try:
        width, height = map(int, head["dimensions"].split("x"))
        part, whole = map(int, head["tb"].split("/"))
    except (KeyError, ValueError) as error:
        raise _no_film(path, "it has no pictures") from error
    pixels = _decode(path, [*(["-frames:v", str(most)] if most is not None else []), "-f", "rawvideo"])
    # bytes are read-only, and who reads frames may want to change them
    return np.frombuffer(pixels, np.uint8).reshape(-1, height, width, 3).copy(), whole / part


def read_image(path: Path) -> Image:
    """The picture in RGB, upright as its EXIF orientation says; what is transparent is on white.

    Raises FileError where there is no such file, it is no picture, it is damaged, or has pixels enough to fill
    the memory.
    """
    with of_pipeline("a picture"):
        from PIL import Image, ImageOps
    _there(path)
    try:
        with Image.open(path, formats=_PICTURES) as stored:
            upright = ImageOps.exif_transpose(stored)
            if upright.mode.startswith("I"):
                return _of_sixteen_bits(upright)
            if upright.has_transparency_data:
                upright = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
            return upright.convert("RGB")
    except Exception as error:  # decoders raise what they like
        told = plain(str(error) or type(error).__name__, 200).removesuffix(".")
        raise FileError(f"{path} is no picture that can be read: {told}.", Try(command("file", path))) from error


def _of_sixteen_bits(picture: Image) -> Image:
    """The grey picture with its upper eight bits: Pillow's versions differ in what `convert` makes of it."""
    from PIL import Image

    grey = (np.clip(np.asarray(picture, np.int64), 0, 0xFFFF) >> 8).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _checked(frames: Iterable[Frames], path: Path) -> Iterator[Frames]:
    """The frames, each of which has the shape of the first."""
    shape = None
    for n, frame in enumerate(frames):
        shape = shape or frame.shape
        if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype.name != "uint8" or not frame.size:
            raise OutputError(
                f"{path}: frame {n} is an array of {frame.dtype.name} {list(frame.shape)}, "
                "where uint8 [height, width, 3] is meant."
            )
        if frame.shape != shape:
            raise OutputError(f"{path}: frame {n} has the shape {list(frame.shape)}, and frame 0 {list(shape)}.")
        yield frame


def _padded(first: Frames, others: Iterator[Frames]) -> Iterator[bytes]:
    """The bytes of the frames, a last column or row repeated where their number is odd."""
    height, width = first.shape[:2]
    more = ((0, height % 2), (0, width % 2), (0, 0))
    yield np.pad(first, more, "edge").tobytes()
    for frame in others:
        yield np.pad(frame, more, "edge").tobytes()


def _encode(words: Sequence[str], frames: Iterator[bytes]) -> str | None:
    """Run ffmpeg over the frames. Returns how it failed, None where it did not; it never outlives this call."""
    with tempfile.TemporaryFile() as messages:  # not a pipe, which could fill up and stop it
        process = _started(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=messages)
        taken = True
        try:
            for frame in frames:
                try:
                    process.stdin.write(frame)
                except OSError:  # ffmpeg has ended; its status says why
                    taken = False
                    break
            process.communicate()  # closes its input and waits
        finally:
            with suppress(OSError):
                process.kill()  # nothing, where it has ended
            process.communicate()
        if process.returncode == 0 and taken:
            return None
        messages.seek(0)
        return _ending(process.returncode, messages.read())


def _decode(path: Path, words: Sequence[str]) -> bytes:
    """What ffmpeg makes of the first film in the file, as raw RGB in the form that `words` say."""
    _there(path)
    reading = ["-protocol_whitelist", "file", "-format_whitelist", _CONTAINERS, "-xerror", "-i", f"file:{path}"]
    form = ["-map", "0:V:0", "-fps_mode", "passthrough", "-vf", f"scale={_EXACT}", "-c:v", "rawvideo"]
    process = _started(
        [*reading, *form, "-pix_fmt", "rgb24", *words, "pipe:1"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        found, messages = process.communicate()
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise _no_film(path, f"ffmpeg {_ending(process.returncode, messages)}")
    return bytes(found)


def _started(words: Sequence[str], **streams: Any) -> Any:
    """An ffmpeg at work, in a process group of its own: Ctrl-C reaches Python alone, which then ends it."""
    with of_pipeline("a film"):
        import imageio_ffmpeg
    own = Try("export IMAGEIO_FFMPEG_EXE=$(command -v ffmpeg)", "with an ffmpeg of your own installed")
    try:
        program = imageio_ffmpeg.get_ffmpeg_exe()
        return subprocess.Popen(  # noqa: S603, no shell; the file of the user is one word, and names no protocol
            [program, "-hide_banner", "-nostdin", "-v", "error", *words], process_group=0, **streams
        )
    except RuntimeError as error:
        raise LoraforgeError("imageio-ffmpeg brings no ffmpeg for this machine.", own) from error
    except OSError as error:
        raise LoraforgeError(f"ffmpeg cannot be started: {plain(str(error), 300)}.", own) from error


def _ending(status: int, messages: bytes) -> str:
    """How ffmpeg ended: the signal that killed it, or the first it complained of."""
    lines = [line for line in messages.decode("utf-8", "replace").splitlines() if line.strip()]
    if status < 0 or not lines:
        return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
    return f"says: {plain(lines[0], 300).removesuffix('.')}"


def _there(path: Path) -> None:
    if not path.is_file():
        kind = "a folder, not a file" if path.is_dir() else "not there"
        raise FileError(f"{path} is {kind}.", Try(command("ls", "-l", path if path.is_dir() else path.parent)))


def _no_film(path: Path, why: str) -> FileError:
    return FileError(f"{path} is no film that can be read: {why}.", Try(command("file", path), "what it is"))
