"""A fuse that is killed: nothing half is ever taken for whole, and the next run gives the same bytes."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from helpers.sharded import BLOCKS, sharded_model
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.errors import OutputError
from loraforge.files.resume import PROGRESS

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kill -9 is of POSIX systems")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return sharded_model(tmp_path_factory.mktemp("model"))


def command(model: tuple[Path, Path], out: Path) -> list[str]:
    return [
        sys.executable,
        "-c",
        "from loraforge.cli import main; main()",
        "fuse",
        *map(str, model),
        "--as-loaded",
        "-o",
        str(out),
    ]


def content(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("times", [6, pytest.param(30, marks=pytest.mark.long)])
def test_killed_many_times_at_any_moment(model: tuple[Path, Path], tmp_path: Path, times: int) -> None:
    start = time.monotonic()
    subprocess.run(command(model, tmp_path / "whole"), check=True, capture_output=True)
    took, want = time.monotonic() - start, content(tmp_path / "whole")
    rng, unfinished, resumed = random.Random(0), 0, 0
    out = tmp_path / "out"
    assert len(want) == BLOCKS + 2
    for _ in range(times):
        process = subprocess.Popen(command(model, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.1, 1.1) * took)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if out.exists():  # it was quicker than the kill: what has the name is whole
            assert content(out) == want
            shutil.rmtree(out)
            continue
        unfinished += 1
        progress = tmp_path / "out.partial" / PROGRESS
        resumed += progress.is_file() and bool(json.loads(progress.read_text())["done"])
    subprocess.run(command(model, out), check=True, capture_output=True)
    assert content(out) == want
    assert not (tmp_path / "out.partial").exists()
    assert unfinished >= times / 6
    assert resumed >= 1 or times < 30


class Stop(BaseException):
    """As a kill: nobody catches it."""


def test_it_goes_on_at_the_first_unfinished_shard(
    model: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished shards are not written again; another plan, or another base, begins anew."""
    import loraforge.base.job as basejob

    loraforge.fuse(*model_and(model), tmp_path / "whole", as_loaded=True)
    real, begun = basejob._write, []

    def stopping(after: int):
        def write(file, *rest):
            begun.append(file.name)
            if len(begun) > after:
                raise Stop
            return real(file, *rest)

        return write

    out = tmp_path / "out"

    def stopped(after: int, **options) -> list[str]:
        begun.clear()
        monkeypatch.setattr(basejob, "_write", stopping(after))
        with suppress(Stop):
            loraforge.fuse(*model_and(model), out, as_loaded=True, **options)
        return [name[24:29] for name in begun]

    assert stopped(2) == ["00001", "00002", "00003"]
    assert not out.exists()
    assert stopped(1) == ["00003", "00004"]
    assert stopped(2, strength=[0.5]) == ["00001", "00002", "00003"]  # another plan
    assert stopped(9) == [f"{n:05}" for n in range(1, 7)]  # and back: begins again
    assert content(out) == content(tmp_path / "whole")
    shutil.rmtree(out)
    assert stopped(4)[-1] == "00005"
    base = model[0] / "diffusion_pytorch_model-00001-of-00006.safetensors"
    os.utime(base, (1, 1))
    assert stopped(4)[0] == "00001"  # the base was touched meanwhile
    save_file({k: 2 * t for k, t in load_file(model[1]).items()}, tmp_path / "adapter.safetensors", {"format": "pt"})
    other = model[0], tmp_path / "adapter.safetensors"  # the same name, shapes and scale: other numbers
    begun.clear()
    with suppress(Stop):
        loraforge.fuse(*model_and(other), out, as_loaded=True)
    assert begun[0][24:29] == "00001"


def model_and(model: tuple[Path, Path]) -> tuple[Path, list[Path]]:
    return model[0], [model[1]]


def damaged(shard: Path, base: Path) -> None:
    with shard.open("r+b") as stream:
        stream.seek(-5000, os.SEEK_END)
        stream.write(bytes(4000))


def cut(shard: Path, base: Path) -> None:
    os.truncate(shard, 1000)


def another_header(shard: Path, base: Path) -> None:
    shard.write_bytes(shard.read_bytes().replace(b'"pt"', b'"tf"', 1))


def another_base(shard: Path, base: Path) -> None:
    """Of the same size and date, as `cp -p` and `rsync -t` leave it."""
    file = base / shard.name
    state = file.stat()
    tensors = load_file(file)
    save_file({key: -tensor for key, tensor in tensors.items()}, file, {"format": "pt"})
    assert file.stat().st_size == state.st_size
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("change", [damaged, cut, another_header, another_base, None])
def test_a_finished_shard_that_is_not_as_it_was_is_written_again(
    model: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Path, Path], None] | None,
) -> None:
    import loraforge.base.job as basejob

    base = shutil.copytree(model[0], tmp_path / "base")
    real, written = basejob._write, []

    def write(file, *rest):
        written.append(file)
        if len(written) == 3:
            raise Stop
        return real(file, *rest)

    monkeypatch.setattr(basejob, "_write", write)
    with pytest.raises(Stop):
        loraforge.fuse(base, [model[1]], tmp_path / "out", as_loaded=True)
    if change:
        change(written[0], base)
    loraforge.fuse(base, [model[1]], tmp_path / "out", as_loaded=True)
    again = [file.name[24:29] for file in written[3:]]
    assert again == [*(["00001"] if change else []), *(f"{n:05}" for n in range(3, BLOCKS + 1))]
    loraforge.fuse(base, [model[1]], tmp_path / "whole", as_loaded=True)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_kill_after_the_swap_leaves_nothing_to_the_next_run(
    model: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from loraforge.files import resume

    out = tmp_path / "out"
    loraforge.fuse(*model_and(model), out, as_loaded=True, strength=[0.5])
    old = content(out)

    def killed(*_):
        raise Stop

    monkeypatch.setattr(resume, "remove", killed)
    with pytest.raises(Stop):
        loraforge.fuse(*model_and(model), out, as_loaded=True, force=True)
    new = content(out)
    assert new.keys() == old.keys() and new != old
    assert content(tmp_path / "out.partial" / "made") == old or sys.platform != "linux"
    monkeypatch.undo()
    with pytest.raises(OutputError, match="exists"):
        loraforge.fuse(*model_and(model), out, as_loaded=True)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_two_at_once_do_not_mix(model: tuple[Path, Path], tmp_path: Path) -> None:
    """One writes, the other is told; what appears is whole."""
    processes = [
        subprocess.Popen(command(model, tmp_path / "out"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[1] for process in processes]
    codes = sorted(process.returncode for process in processes)
    assert codes == [0, 1], said
    assert any("another loraforge is writing" in text or "exists" in text for text in said)
    subprocess.run(command(model, tmp_path / "alone"), check=True, capture_output=True)
    assert content(tmp_path / "out") == content(tmp_path / "alone")


def test_what_is_written_past_the_cache_is_all_there(tmp_path: Path) -> None:
    """Of every size around the pieces it is written in."""
    from loraforge.files.direct_write import PIECE, write_direct

    rng = np.random.default_rng(0)
    for size in (0, 1, 4095, 4096, 4097, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 5):
        want = rng.bytes(size)
        edges = [0, *itertools.accumulate(int(rng.integers(1, PIECE // 2)) for _ in range(40))]
        write_direct(tmp_path / "x", (want[start:stop] for start, stop in itertools.pairwise(edges)))
        assert (tmp_path / "x").read_bytes() == want


def test_a_name_that_was_given_meanwhile_is_kept(tmp_path: Path) -> None:
    """Both saw that nothing had the name; the other one was faster."""
    from loraforge.files.resume import resumable

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "theirs").write_text("whole")
    with (
        pytest.raises(OutputError, match="has just written it"),
        resumable(tmp_path / "out", "plan", {"x": 1}, new=True),
    ):
        raise AssertionError("nothing is written")
    assert (tmp_path / "out" / "theirs").read_text() == "whole"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_last_moment_is_guarded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the last byte and the name, another process finds the lock held."""
    from loraforge.files import resume

    real = resume._appear

    def with_another(*given):
        with (
            pytest.raises(OutputError, match="another loraforge is writing"),
            resume.resumable(tmp_path / "out", "plan", {"a": 1}, new=True),
        ):
            pass
        real(*given)

    monkeypatch.setattr(resume, "_appear", with_another)
    with resume.resumable(tmp_path / "out", "plan", {"a": 1}, new=True) as work:
        (work.folder / "a").write_bytes(b"1")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]
