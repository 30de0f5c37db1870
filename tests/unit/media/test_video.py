"""Films that are written and read again, by ffmpeg's own word; what an interrupt and a dead ffmpeg leave behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from loraforge.errors import FileError, LoraforgeError, OutputError
from loraforge.media import video
from loraforge.media.video import read_image, read_video, write_video

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
POSIX = pytest.mark.skipif(os.name != "posix", reason="signals and scripts of POSIX")


def clip(frames: int = 9, height: int = 48, width: int = 64) -> np.ndarray:
    """A gradient that moves and changes its level; no two frames are alike."""
    t, y, x = np.mgrid[:frames, :height, :width]
    return np.stack([x * 255 / width, y * 255 / height, 10 + t * 200 / frames], -1).astype(np.uint8)


def ffmpeg(*words: object) -> str:
    """What ffmpeg tells of files, on both streams."""
    done = subprocess.run([FFMPEG, "-hide_banner", *map(str, words)], capture_output=True, text=True)
    return done.stdout + done.stderr


def stream(path: Path) -> str:
    """ffmpeg's line on the film in a file."""
    return next(line for line in ffmpeg("-i", path).splitlines() if "Video:" in line)


@pytest.mark.parametrize(
    ("height", "width", "fps"), [(48, 64, 8), (48, 64, 16), (30, 50, 1), (47, 63, 30), (1, 1, 8), (64, 33, 8)]
)
def test_a_film_comes_back(tmp_path: Path, height: int, width: int, fps: int) -> None:
    frames = clip(9, height, width)
    write_video(tmp_path / "a.mp4", frames, fps)
    padded = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), "edge")
    told = stream(tmp_path / "a.mp4")
    assert "h264" in told and "yuv420p(tv, bt709" in told and f"{padded.shape[2]}x{padded.shape[1]}" in told
    assert re.search(rf"[ ,]{fps} fps", told)
    back, rate = read_video(tmp_path / "a.mp4")
    assert back.shape == padded.shape and back.dtype == np.uint8 and rate == fps
    assert np.abs(back.astype(int) - padded).mean() < 3
    # every frame is its own, in order
    levels = back[..., 2].mean(axis=(1, 2))
    assert np.abs(levels - padded[..., 2].mean(axis=(1, 2))).max() < 3
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]


def test_an_odd_edge_is_repeated(tmp_path: Path) -> None:
    frames = np.zeros((2, 33, 65, 3), np.uint8)
    frames[:, -1:] = frames[:, :, -1:] = 255
    write_video(tmp_path / "a.mp4", frames, 8)
    back = read_video(tmp_path / "a.mp4")[0]
    assert back.shape == (2, 34, 66, 3)
    assert back[:, -2:].min() > 200 and back[:, :, -2:].min() > 200 and back[:, :-3, :-3].max() < 50


def test_ffmpeg_counts_the_same_frames(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", clip(13), 8)
    assert imageio_ffmpeg.count_frames_and_secs(tmp_path / "a.mp4") == (13, pytest.approx(13 / 8, abs=0.02))


def test_colours_are_neither_darker_nor_of_another_hue(tmp_path: Path) -> None:
    frames = np.zeros((3, 64, 64, 3), np.uint8)
    frames[:, :32, :32], frames[:, :32, 32:] = (200, 30, 40), (20, 180, 60)
    frames[:, 32:, :32], frames[:, 32:, 32:] = (30, 50, 220), (128, 128, 128)
    write_video(tmp_path / "a.mp4", frames, 8)
    back = read_video(tmp_path / "a.mp4")[0].astype(int)
    for y in (4, 36):
        for x in (4, 36):
            assert np.abs((back - frames)[:, y : y + 24, x : x + 24].mean(axis=(0, 1, 2))).max() < 2


def test_the_index_stands_in_front(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", clip(), 8)
    whole = (tmp_path / "a.mp4").read_bytes()
    assert 0 < whole.index(b"moov") < whole.index(b"mdat")


def test_the_same_frames_make_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = clip(9, 50, 70)
    write_video(tmp_path / "a.mp4", frames, 8)
    (tmp_path / "deeper").mkdir()
    write_video(tmp_path / "deeper" / "another name.mp4", iter(frames), 8)
    monkeypatch.setattr(video, "_ENCODING", ["-cpuflags", "0", *video._ENCODING])  # no SIMD in the colours
    write_video(tmp_path / "c.mp4", frames, 8)
    first = (tmp_path / "a.mp4").read_bytes()
    assert first == (tmp_path / "deeper" / "another name.mp4").read_bytes() == (tmp_path / "c.mp4").read_bytes()
    assert re.search(rb"Lav[cf][0-9]", first) is None  # versions that would change them for nothing
    assert b"another name" not in first and str(tmp_path).encode() not in first


def test_one_frame_is_a_film(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", clip(1), 8)
    assert read_video(tmp_path / "a.mp4")[0].shape == (1, 48, 64, 3)


def test_a_film_is_replaced_only_by_force(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists") as caught:
        write_video(path, clip(), 8)
    assert path.read_bytes() == b"mine"
    assert caught.value.remedies[0].command == "--force" and "a-2.mp4" in caught.value.remedies[1].command
    write_video(path, clip(), 8, force=True)
    assert len(read_video(path)[0]) == 9


def test_names_that_mean_something_to_ffmpeg_or_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-y.mp4", "a b'\"$(x)é提.mp4", "%03d.mp4", "new/folder/a.MP4"):
        write_video(Path(name), clip(), 8)
        assert len(read_video(Path(name))[0]) == 9
    if os.name == "posix":
        write_video(Path("pipe:1.mp4"), clip(), 8)
        assert len(read_video(Path("pipe:1.mp4"))[0]) == 9


@pytest.mark.parametrize(
    ("name", "frames", "fps", "told"),
    [
        ("a.gif", clip(), 8, "must end in .mp4"),
        ("a.mp4", clip(), 0, "0 frames per second"),
        ("a.mp4", clip()[:0], 8, "no frames"),
        ("a.mp4", clip().astype(float), 8, r"frame 0 is an array of float64 \[48, 64, 3\]"),
        ("a.mp4", clip()[..., 0], 8, "frame 0 is an array"),
        ("a.mp4", [*clip(), clip(1, 20, 20)[0]], 8, "frame 9 has the shape"),
    ],
)
def test_what_cannot_be_a_film_is_refused(tmp_path: Path, name: str, frames, fps: int, told: str) -> None:
    with pytest.raises(OutputError, match=told):
        write_video(tmp_path / "new" / name, frames, fps)
    assert list(tmp_path.iterdir()) == []


class Started:
    """The ffmpegs that were started, to look at and to kill."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.all: list[subprocess.Popen[bytes]] = []
        start = video._started

        def started(*words, **streams):
            self.all.append(start(*words, **streams))
            return self.all[-1]

        monkeypatch.setattr(video, "_started", started)

    def over(self) -> bool:
        return bool(self.all) and all(process.returncode is not None for process in self.all)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, MemoryError, BrokenPipeError, SystemExit])
def test_an_interrupt_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: type[BaseException]
) -> None:
    started = Started(monkeypatch)

    def frames() -> Iterator[np.ndarray]:
        yield from clip(20, 200, 300)
        if os.name == "posix":
            assert os.getpgid(started.all[0].pid) != os.getpgrp()  # where a terminal's Ctrl-C does not reach it
        raise stop("in the middle")

    with pytest.raises((stop, OutputError)):
        write_video(tmp_path / "new" / "a.mp4", frames(), 8)
    assert started.over() and list(tmp_path.iterdir()) == []
    assert started.all[0].returncode != 0  # ended at once, and not left to finish what it had


@pytest.mark.parametrize("after", [1, 10, 20])
def test_a_killed_ffmpeg_leaves_nothing_and_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    started = Started(monkeypatch)
    (tmp_path / "a.mp4").write_bytes(b"the film of yesterday")

    def frames() -> Iterator[np.ndarray]:
        for n, frame in enumerate(clip(20, 200, 300), 1):
            yield frame
            if n == after:
                started.all[0].kill()

    with pytest.raises(OutputError, match=r"a\.mp4 cannot be written: ffmpeg was ended by signal 9"):
        write_video(tmp_path / "a.mp4", frames(), 8, force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"the film of yesterday"


@POSIX
def test_ctrl_c_of_a_terminal_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C goes to every process of the group: the whole program is one here."""
    program = (
        "import sys, time, numpy as np; from pathlib import Path; from loraforge.media.video import write_video\n"
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's & may have it ignored
        "def frames():\n"
        "    for n in range(1000):\n"
        "        yield np.full((200, 300, 3), n % 256, np.uint8)\n"
        "        if n == 20: print('under way', flush=True)\n"
        "        if n >= 20: time.sleep(0.05)\n"
        "write_video(Path(sys.argv[1]), frames(), 8)\n"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "new" / "a.mp4")],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert run.stdout.readline() == b"under way\n"
    assert list(tmp_path.iterdir()) != []  # it has begun
    os.killpg(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=30)
    assert b"KeyboardInterrupt" in errors and list(tmp_path.iterdir()) == []


@POSIX
@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("head -c 1000 >/dev/null; echo 'Unknown encoder libx264' >&2; exit 8", "Unknown encoder libx264"),
        ("head -c 1000 >/dev/null; exit 0", "cannot be written"),
        ("cat >/dev/null; exit 0", "No such file"),
        ("cat >/dev/null; exit 3", "ended with status 3"),
    ],
)
def test_a_failing_ffmpeg_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, told: str) -> None:
    fake = tmp_path / "ffmpeg"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(fake))
    with pytest.raises(OutputError, match=told):
        write_video(tmp_path / "a.mp4", clip(20, 200, 300), 8)
    assert [p.name for p in tmp_path.iterdir()] == ["ffmpeg"]


def test_no_ffmpeg_no_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(tmp_path / "nothing"))
    with pytest.raises(LoraforgeError, match="ffmpeg cannot be started") as caught:
        write_video(tmp_path / "a.mp4", clip(), 8)
    assert "IMAGEIO_FFMPEG_EXE" in caught.value.remedies[0].command
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(LoraforgeError, match="imageio_ffmpeg, which is not installed") as caught:
        write_video(tmp_path / "a.mp4", clip(), 8)
    assert caught.value.remedies[0].command.startswith("pip install 'torch>=2.6' ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "codec"), [("a.webm", "libvpx-vp9"), ("a.gif", "gif"), ("a.mkv", "ffv1"), ("a.avi", "mpeg4")]
)
def test_films_of_other_programs(tmp_path: Path, name: str, codec: str) -> None:
    ffmpeg("-f", "lavfi", "-i", "testsrc=rate=10:size=62x34:duration=1", "-c:v", codec, tmp_path / name)
    frames, fps = read_video(tmp_path / name)
    assert frames.shape == (10, 34, 62, 3) and fps == 10.0
    frames[:] = 0  # may be written to


def test_a_rate_that_is_no_integer_and_the_first_frames(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "testsrc=rate=30000/1001:size=64x32:duration=1", tmp_path / "a.mp4")
    whole, fps = read_video(tmp_path / "a.mp4")
    few, _ = read_video(tmp_path / "a.mp4", most=4)
    assert fps == pytest.approx(30000 / 1001, rel=1e-9) and len(whole) == 30
    assert np.array_equal(few, whole[:4])


def test_frames_are_neither_doubled_nor_left_out_where_they_are_unevenly_spaced(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", clip(6), 8)
    ffmpeg("-i", tmp_path / "a.mp4", "-vf", "setpts=(N*N+2*N)/8/TB", "-fps_mode", "passthrough", tmp_path / "b.mkv")
    assert len(read_video(tmp_path / "b.mkv")[0]) == 6


def test_a_film_that_lies_on_its_side_is_upright(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", clip(3, 48, 64), 8)
    ffmpeg("-display_rotation", "90", "-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "b.mp4")
    assert read_video(tmp_path / "b.mp4")[0].shape == (3, 64, 48, 3)


@pytest.mark.parametrize(
    "content", [b"", b"hello, this is a text\n" * 50, b"\0" * 4000, b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"], ids=len
)
def test_what_is_no_film_is_refused(tmp_path: Path, content: bytes) -> None:
    for name in ("a.mp4", "a.txt", "a.m3u8"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileError, match=rf"{name} is no film"):
            read_video(tmp_path / name)


def test_a_film_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 48, 64, 3), np.uint8)
    write_video(tmp_path / "a.mp4", noise, 8)
    whole = (tmp_path / "a.mp4").read_bytes()
    for share in (0.1, 0.5, 0.95):
        (tmp_path / "b.mp4").write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(FileError, match="no film that can be read"):
            read_video(tmp_path / "b.mp4")


def test_sound_alone_is_no_film(tmp_path: Path) -> None:
    ffmpeg("-f", "lavfi", "-i", "sine=duration=1", tmp_path / "a.mp4")
    with pytest.raises(FileError, match="no film"):
        read_video(tmp_path / "a.mp4")


@pytest.mark.parametrize("read", [read_video, read_image])
def test_what_is_not_there_is_told(tmp_path: Path, read) -> None:
    with pytest.raises(FileError, match=r"x\.mp4 does not exist"):
        read(tmp_path / "x.mp4")
    with pytest.raises(FileError, match="is a folder"):
        read(tmp_path)


def test_a_picture_is_upright(tmp_path: Path) -> None:
    picture = Image.fromarray(clip(1, 20, 30)[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to show
    picture.save(tmp_path / "a.png", exif=exif)
    found = read_image(tmp_path / "a.png")
    assert found.mode == "RGB" and np.array_equal(np.asarray(found), np.rot90(np.asarray(picture), -1))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_on_white(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (100, 100, 100, 255))
    picture.putpixel((2, 0), (100, 100, 100, 0 if mode == "P" else 51))
    picture.convert(mode).save(tmp_path / "a.png")
    levels = np.asarray(read_image(tmp_path / "a.png"))[0, :, 0].tolist()
    assert levels == [255, 100, 255 if mode == "P" else 224]


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "I;16"])
def test_pictures_of_other_modes(tmp_path: Path, mode: str) -> None:
    if mode == "I;16":
        picture = Image.fromarray(np.full((4, 5), 128 * 257, np.uint16))
    else:
        picture = Image.new("L", (5, 4), 128).convert(mode)
    picture.save(tmp_path / "a.tiff")
    found = read_image(tmp_path / "a.tiff")
    assert found.mode == "RGB" and found.size == (5, 4)
    assert abs(np.asarray(found).mean() - 128) < (3 if mode != "1" else 60)


@pytest.mark.parametrize("content", [b"", b"text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"])
def test_what_is_no_picture_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(FileError, match=r"a\.png cannot be read as a picture"):
        read_image(tmp_path / "a.png")


def test_a_picture_that_is_a_program_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *words, **options: pytest.fail("it was run"))
    Image.fromarray(clip(1)[0]).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "a.png")
    with pytest.raises(FileError, match="as a picture"):
        read_image(tmp_path / "a.png")


def test_a_picture_that_was_cut_off_is_refused(tmp_path: Path) -> None:
    Image.fromarray(clip(1, 200, 300)[0]).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    for end in (20, len(whole) // 2, len(whole) - 30):
        (tmp_path / "a.png").write_bytes(whole[:end])
        with pytest.raises(FileError, match="as a picture"):
            read_image(tmp_path / "a.png")
