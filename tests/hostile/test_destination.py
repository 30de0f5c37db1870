"""Where the result would go: never into or onto the source, and never half a file."""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hostile.builders import CHECKPOINT, diffusers_lora, factors, run_folder, safetensors, sat
from hostile.refusal import listing

FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return run_folder(tmp_path / "run", "1000", latest="1000")


INSIDE = {
    "a new folder": "converted",
    "a new file": "converted.safetensors",
    "an iteration": "1000",
    "a folder below": "1000/a/b/c.safetensors",
    "itself": "",
    "itself by a detour": "../run/1000/../converted",
    "latest": "latest.safetensors",
}


@pytest.mark.parametrize("place", INSIDE.values(), ids=INSIDE)
@pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "--force"])
def test_inside_the_source(run: Path, refused, place: str, force: tuple[str, ...]):
    refused([run, "-o", run / place, *force], "source")


def test_inside_the_source_by_a_link(run: Path, tmp_path: Path, refused):
    try:
        (tmp_path / "link").symlink_to(run, target_is_directory=True)
    except OSError:
        pytest.skip("links need a privilege here")
    refused([run, "-o", tmp_path / "link" / "converted"], "source")
    refused([tmp_path / "link", "-o", run / "converted"], "source")


def test_inside_the_source_by_the_current_folder(run: Path, refused, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(run / "1000")
    refused(["..", "-o", "converted"], "source")
    refused([".", "-o", "x.safetensors"], "source")


def test_onto_the_source(tmp_path: Path, refused):
    file = tmp_path / "x.safetensors"
    file.write_bytes(safetensors(diffusers_lora()))
    for force in ([], ["--force"]):
        refused([file, "-o", file, "--as-loaded", *force], "source")
        refused([file, "-o", tmp_path / "." / "y" / ".." / "x.safetensors", "--as-loaded", *force], "source")


def test_onto_the_source_by_its_folder(tmp_path: Path, refused):
    (tmp_path / FILE).write_bytes(safetensors(diffusers_lora()))
    refused([tmp_path / FILE, "-o", tmp_path, "--as-loaded", "--force"], "source")
    refused([tmp_path, "-o", tmp_path, "--as-loaded", "--force"], "source")


@pytest.mark.parametrize("name", [FILE, "other.safetensors"])
def test_onto_a_file_that_exists(run: Path, tmp_path: Path, refused, name: str):
    """Whatever it is; the remedies, which are run after the check, are another name and --force."""
    (tmp_path / name).write_bytes(b"precious")
    refused([run, "-o", tmp_path if name == FILE else tmp_path / name], "exists")


def test_force_replaces_a_file_and_nothing_else(run: Path, tmp_path: Path, cli):
    folder = tmp_path / "results"
    folder.mkdir()
    for name in (FILE, "other.safetensors"):
        (folder / name).write_bytes(b"old")
    before = listing(run)
    assert cli("convert", run, "--to", "diffusers", "-o", folder, "--force").exit_code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["other.safetensors", FILE]
    assert (folder / FILE).stat().st_size > 100
    assert (folder / "other.safetensors").read_bytes() == b"old"
    assert listing(run) == before


def test_a_refused_conversion_leaves_what_it_would_have_replaced(tmp_path: Path, refused):
    broken = sat({f"layers.{n}.matrix_A.0": np.zeros((1, 1), "float32") for n in range(2)})
    (tmp_path / CHECKPOINT).write_bytes(broken)
    (tmp_path / "old.safetensors").write_bytes(b"old")
    refused([tmp_path / CHECKPOINT, "-o", tmp_path / "old.safetensors", "--force"])
    assert (tmp_path / "old.safetensors").read_bytes() == b"old"


PLACES: dict[str, Callable[[Path], Path]] = {
    "below a file": lambda folder: folder / "file" / "x.safetensors",
    "far below a file": lambda folder: folder / "file" / "a" / "b" / "x.safetensors",
    "a folder below a file": lambda folder: folder / "file" / "out",
    "a file without the suffix": lambda folder: folder / "file",
    "a folder with the suffix": lambda folder: folder / "folder.safetensors",
    "a name of 300 letters": lambda folder: folder / ("x" * 300 + ".safetensors"),
    "a folder of 300 letters": lambda folder: folder / ("x" * 300),
    "a path of 5,000 letters": lambda folder: folder / ("x/" * 2_500),
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "--force"])
def test_a_place_that_cannot_be(run: Path, tmp_path: Path, refused, place: Any, force: tuple[str, ...]):
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder.safetensors").mkdir()
    refused([run, "-o", place(tmp_path), *force])
    assert (tmp_path / "file").read_text() == "a file"


@pytest.mark.skipif(os.name == "nt" or getattr(os, "geteuid", int)() == 0, reason="root writes everywhere")
def test_a_folder_that_is_read_only(run: Path, tmp_path: Path, refused):
    folder = tmp_path / "results"
    folder.mkdir()
    folder.chmod(0o500)
    try:
        refused([run, "-o", folder], "cannot be written")
        refused([run, "-o", folder / "a" / "b"], "cannot be written")
    finally:
        folder.chmod(0o700)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="a folder nobody can write to, not even root")
def test_a_file_system_that_is_read_only(run: Path, refused):
    refused([run, "-o", "/proc/out"])
    refused([run, "-o", "/proc/x.safetensors"])


def test_a_disk_that_is_almost_full(run: Path, tmp_path: Path, refused, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")(1 << 40, (1 << 40) - 100, 100)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    refused(run, "100", "free")
    refused([run, "-o", tmp_path / "a" / "b" / "x.safetensors"], "free")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on the size of files")
@pytest.mark.parametrize("file_size", [0, 1, 1_000, 20_000, 200_000], ids="{} bytes".format)
def test_a_disk_that_fills_up_meanwhile(tmp_path: Path, refused_alone, file_size: int):
    """The write itself fails, in the header, in the first tensor or in a later one; the file has 256 kB."""
    A, B = factors(rank=16, width=1_000, rows=3_000)
    stem = "transformer.transformer_blocks.0.attn1.to_q"
    (tmp_path / "x.safetensors").write_bytes(safetensors({f"{stem}.lora_A.weight": A, f"{stem}.lora_B.weight": B}))
    old = tmp_path / "old.safetensors"
    old.write_bytes(b"old")
    for place in (tmp_path / "out", old):
        refused_alone([tmp_path / "x.safetensors", "--as-loaded", "-o", place, "--force"], file_size=file_size)
    assert old.read_bytes() == b"old"


def test_a_temporary_file_of_another_is_left_alone(run: Path, tmp_path: Path, cli):
    """A file that has the temporary name already is somebody else's: it is neither written nor removed."""
    taken = tmp_path / f".{FILE}.{os.getpid()}.part"
    taken.write_bytes(b"taken")
    assert cli("convert", run, "--to", "diffusers", "-o", tmp_path).exit_code in (0, 1)
    assert taken.read_bytes() == b"taken"


def test_a_name_as_long_as_names_may_be(run: Path, tmp_path: Path, cli):
    """255 bytes; a temporary name beside it must not be longer."""
    result = cli("convert", run, "--to", "diffusers", "-o", tmp_path / ("x" * 243 + ".safetensors"))
    assert result.exit_code == 0, result.output or result.exception


def test_an_interrupted_conversion_leaves_nothing(run: Path, out: Path, cli, monkeypatch: pytest.MonkeyPatch):
    from loraforge.adapter import fit

    def interrupted(plan: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fit, "carry_out", interrupted)
    assert cli("convert", run, "--to", "diffusers", "-o", out).exit_code != 0
    assert not out.exists()
