"""Results that replace others: the old one or the new one is there, never a mixture; what a kill leaves goes away."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hostile.builders import diffusers_lora, safetensors
from loraforge.errors import OutputError
from loraforge.files import destination, workplace
from loraforge.files.destination import Destination, replacing

NAMES = ("1/model.pt", "latest", "config.yaml")
linux = pytest.mark.skipif(sys.platform != "linux", reason="folders change places in one step on Linux alone")


def write(out: Path, text: str, names: tuple[str, ...] = NAMES) -> None:
    with replacing(Destination(out, names), 0) as new:
        for name in names:
            (new / name).parent.mkdir(exist_ok=True)
            (new / name).write_text(text)


def texts(out: Path) -> dict[str, str]:
    return {p.relative_to(out).as_posix(): p.read_text() for p in out.rglob("*") if p.is_file()}


def result(text: str, **more: str) -> dict[str, str]:
    return dict.fromkeys(NAMES, text) | more


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A result, and files of the user beside and among it."""
    out = tmp_path / "results" / "out"
    write(out, "old")
    (out / "1" / "mine").write_text("mine")
    (out / "link").symlink_to("nowhere")
    out.chmod(0o750)
    (out / "latest").chmod(0o600)
    return out


CHILD = """
import errno, itertools, os, signal, sys
from pathlib import Path
from loraforge.files import destination as d
out, point, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
real, calls = d.exchange, itertools.count(1)
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
def none(*_):
    raise OSError(errno.ENOSYS, "none")
def counted(folder):
    if next(calls) == count:
        die()
d.exchange = {"before": die, "after": lambda *two: (real(*two), die()), "steps": none}[point]
if point == "steps":
    d.sync_folder = counted
with d.replacing(d.Destination(out, ("1/model.pt", "latest", "config.yaml")), 0) as new:
    (new / "1").mkdir()
    for name in ("1/model.pt", "latest", "config.yaml"):
        (new / name).write_text("new")
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is of POSIX systems")
@pytest.mark.parametrize(
    ("point", "count", "seen"),
    [
        pytest.param("before", 0, ("old",), marks=linux),
        pytest.param("after", 0, ("new",), marks=linux),
        pytest.param("steps", 2, ("new", "old"), id="steps, without the tensor file"),
        pytest.param("steps", 4, ("new",), id="steps, done"),
    ],
)
def test_killed_at_the_worst_moments(out: Path, point: str, count: int, seen: tuple[str, ...]) -> None:
    child = subprocess.run([sys.executable, "-c", CHILD, str(out), point, str(count)], capture_output=True, text=True)
    assert child.returncode == -9, child.stderr
    got = texts(out)
    assert got.pop("1/mine") == "mine"
    if len(seen) == 1:
        assert got == result(*seen)
    else:  # no reader finds an adapter
        assert NAMES[0] not in got and set(got.values()) <= set(seen)
    assert len(list(out.parent.glob(".*.part"))) == 1
    write(out, "next")
    assert texts(out) == result("next", **{"1/mine": "mine"})
    assert [path.name for path in out.parent.iterdir()] == ["out"]


@pytest.mark.parametrize("lacking", [pytest.param("", marks=linux), "exchange", "link"])
def test_what_lies_beside_the_result_stays(out: Path, lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the system cannot exchange two folders, or the disk has no hard links."""

    def none(*_: object, **_more: object) -> None:
        raise OSError(errno.ENOSYS, "none")

    if lacking:
        monkeypatch.setattr(*{"exchange": (destination, "exchange"), "link": (destination.os, "link")}[lacking], none)
    before, folder = (out / "1" / "mine").stat().st_ino, out.stat().st_ino
    write(out, "new")
    assert texts(out) == result("new", **{"1/mine": "mine"})
    assert (out / "1" / "mine").stat().st_ino == before and (out / "1" / "mine").stat().st_nlink == 1
    assert (out / "link").readlink() == Path("nowhere")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (out, out / "latest")] == [0o750, 0o600]
    assert (out.stat().st_ino == folder) == bool(lacking)
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_a_folder_in_which_the_user_stands_is_not_moved_away(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(out)
    write(Path(), "new")
    assert texts(Path.cwd()) == result("new", **{"1/mine": "mine"}) and Path.cwd() == out.resolve()
    assert not list(out.glob(".*.part"))


@linux
def test_a_file_that_is_put_there_meanwhile_stays(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = destination.exchange

    def late(new: Path, old: Path) -> None:
        (old / "late").write_text("late")
        real(new, old)

    monkeypatch.setattr(destination, "exchange", late)
    write(out, "new")
    assert texts(out)["late"] == "late"


@pytest.mark.parametrize("names", [NAMES, ("a.safetensors",)], ids=["several", "one"])
def test_two_at_once(out: Path, names: tuple[str, ...]) -> None:
    with replacing(Destination(out, names), 0) as new:
        for name in names:
            (new / name).parent.mkdir(exist_ok=True)
            (new / name).write_text("first")
        with pytest.raises(OutputError, match="another loraforge is writing"):
            write(out, "second", names)
        write(out, "other", ("b.safetensors",))  # of one folder, but not the same
    got = texts(out)
    assert {got[name] for name in names} == {"first"} and got["b.safetensors"] == "other"
    assert not [*out.rglob(".*"), *out.parent.glob(".*")]


def left(place: Path, text: str | None = None) -> Path:
    """What a killed run left; signed with `text`, or by this machine."""
    lock = workplace.take(place)
    assert lock
    (place / "new").mkdir()
    (place / workplace._OWNER).write_text("\n".join(workplace._machine()) if text is None else text)
    lock.release()
    return place


def test_only_our_own_of_this_machine_are_swept(out: Path) -> None:
    name = ".{:016x}.part".format
    ours, theirs, held = left(out / name(1)), left(out / name(2), "farhost\nboot"), left(out / name(3))
    foreign, beside = out / name(4), left(out.parent / name(5))
    foreign.mkdir()
    (foreign / "notes").write_text("not ours")
    lock = workplace.take(held)
    write(out, "new", ("a.safetensors",))
    assert [path.exists() for path in (ours, theirs, held, foreign, beside)] == [False, True, True, True, False]
    lock.release()
    write(out, "new", ("a.safetensors",))
    assert not held.exists() and (foreign / "notes").exists()


def test_one_of_another_machine_is_named(out: Path) -> None:
    place = left(destination._place(out, NAMES), "farhost\nboot")
    with pytest.raises(OutputError, match="farhost") as refused:
        write(out, "new")
    assert f"rm -r {place}" in str(refused.value.remedies[0])
    shutil.rmtree(place)
    write(out, "new")


def test_a_disk_without_locks(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It works there; what a kill leaves is named, as nobody can tell whether it is still in use."""

    def none(self: workplace.Lock) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(workplace.Lock, "acquire", none)
    write(out, "new")
    assert texts(out) == result("new", **{"1/mine": "mine"})
    place = destination._place(out, NAMES)
    place.mkdir()
    with pytest.raises(OutputError, match=f"has no locks, and {place} exists"):
        write(out, "newer")


def test_temporary_folders_of_killed_runs_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with workplace.temporary("push") as first:
        left(tmp_path / "loraforge-push-1")
        left(tmp_path / "loraforge-hub-1")
        with workplace.temporary("push") as second:
            assert sorted(tmp_path.iterdir()) == sorted([first.parent, second.parent, tmp_path / "loraforge-hub-1"])
    assert [path.name for path in tmp_path.iterdir()] == ["loraforge-hub-1"]


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX systems")
def test_stamp_in_place_keeps_what_the_file_was(tmp_path: Path, cli) -> None:
    file, twin = tmp_path / "x.safetensors", tmp_path / "twin.safetensors"
    file.write_bytes(safetensors(diffusers_lora()))
    file.chmod(0o600)
    twin.hardlink_to(file)
    keeps_attributes = hasattr(os, "setxattr")
    try:
        os.setxattr(file, "user.note", b"mine")
    except (OSError, AttributeError):
        keeps_attributes = False
    before = twin.read_bytes()
    done = cli("stamp", file, "--alpha", "4", "--in-place")
    assert done.exit_code == 0, done.output
    assert "1 other name (a hard link) keeps the file as it was" in done.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert twin.read_bytes() == before != file.read_bytes()
    assert not keeps_attributes or os.getxattr(file, "user.note") == b"mine"
    assert "hard link" not in cli("stamp", file, "--alpha", "4", "--in-place").stderr


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_to_nothing_is_not_replaced(tmp_path: Path, cli, what: str) -> None:
    source = tmp_path / "x.safetensors"
    source.write_bytes(safetensors(diffusers_lora()))
    place = tmp_path / ("out.safetensors" if what == "file" else "out")
    try:
        place.symlink_to(tmp_path / "away")
    except OSError:
        pytest.skip("links need a privilege here")
    words = ["convert", source, "--as-loaded", "--to", "comfyui", "--architecture", "cogvideox", "-o", place]
    done = cli(*words)
    assert done.exit_code == 1 and f"{place} exists: a link to nothing" in done.stderr, done.output
    assert place.is_symlink() and not place.exists()
    assert cli(*words, "--force").exit_code == 0
    assert place.exists()
