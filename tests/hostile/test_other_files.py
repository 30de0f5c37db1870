"""Files that are something else altogether, and files whose name says something else than their content."""

from __future__ import annotations

import gzip
import os
import pickle
import random
from pathlib import Path

import pytest

from hostile.builders import diffusers_lora, safetensors, sat
from hostile.pickles import call

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 3571234567\n"
NOISE = random.Random(7).randbytes(5_000)

FILES = {
    "Git LFS pointer": (POINTER, "Git LFS"),
    "HTML page": (b"<!DOCTYPE html>\n<html><body>404</body></html>", "web page"),
    "HTML page without doctype": (b"\n  <HTML><body>Sign in</body></HTML>", "web page"),
    "empty": (b"", "empty"),
    "one byte": (b"\x80", ""),
    "blanks": (b" " * 100, ""),
    "zeros": (bytes(10_000), ""),
    "JSON": (b'{"r": 4, "lora_alpha": 1}', "JSON"),
    "JSON over several lines": (b'{\n  "model": {}\n}', "JSON"),
    "YAML": (b"model:\n  r: 4\n", ""),
    "gzip": (gzip.compress(sat()), "gzip"),
    "GGUF": (b"GGUF\x03\0\0\0" + bytes(64), "GGUF"),
    "bare pickle": (pickle.dumps({"module": {}}, 2), "pickle"),
    "bare pickle of the newest protocol": (pickle.dumps({"module": {}}, 5), "pickle"),
    "bare pickle that runs code": (b"\x80\x04" + call("os.mkdir", "executed").code + b".", "pickle"),
    "bare pickle of protocol 0": (b"cos\nmkdir\n(S'executed'\ntR.", ""),
    "random bytes": (NOISE, ""),
    "random bytes after a zip's first four": (b"PK\x03\x04" + NOISE, "damaged"),
    "random bytes after a safetensors' first nine": (b"\x40\0\0\0\0\0\0\0{" + NOISE, ""),
    "an empty zip": (b"PK\x05\x06" + bytes(18), ""),
    "a picture": (b"\x89PNG\r\n\x1a\n" + NOISE, ""),
    "a video": (b"\0\0\0\x20ftypisom" + NOISE, ""),
}


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "pytorch_lora_weights.safetensors"])
@pytest.mark.parametrize(("data", "kind"), FILES.values(), ids=FILES)
def test_a_file_of_another_kind_is_called_by_its_name(tmp_path: Path, refused, data: bytes, kind: str, name: str):
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name, kind, name)
    assert not Path("executed").exists()


def test_a_path_that_does_not_exist(tmp_path: Path, refused):
    refused(tmp_path / "run", "does not exist")
    refused(tmp_path / "no" / "such" / "folder" / "x.pt", "does not exist")


@pytest.mark.parametrize("path", ["x" * 300, "x/" * 2_500], ids=["a long name", "a long path"])
def test_a_path_that_cannot_exist(tmp_path: Path, refused, path: str):
    refused(["--", f"{tmp_path}/{path}"])


@pytest.mark.parametrize("inside", [(), ("notes.txt",), ("1000/notes.txt",)], ids=["empty", "a text", "a text below"])
def test_a_folder_with_nothing_in_it(tmp_path: Path, refused, inside: tuple[str, ...]):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in inside:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("none")
    refused(folder, "run")
    refused([folder, "--from", "sat"], "sat")
    refused([folder, "--from", "diffusers"], "diffusers")


def test_a_folder_named_like_a_file(tmp_path: Path, refused):
    for name in ("x.safetensors", "x.pt", "mp_rank_00_model_states.pt"):
        (tmp_path / name).mkdir()
        refused(tmp_path / name, name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has none")
def test_a_pipe_is_not_waited_for(tmp_path: Path, refused_alone):
    os.mkfifo(tmp_path / "x.pt")
    refused_alone(tmp_path / "x.pt")


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="Windows has none")
@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero"])
def test_a_device(refused_alone, device: str):
    refused_alone(Path(device))


def test_a_link_to_itself(tmp_path: Path, refused):
    link = tmp_path / "x.pt"
    try:
        link.symlink_to(link)
    except OSError:
        pytest.skip("links need a privilege here")
    refused(link)


HEALTHY = {
    "a torch archive called .safetensors": ("x.safetensors", sat(), ()),
    "a torch archive without suffix": ("x", sat(), ()),
    "a safetensors file called .pt": ("x.pt", safetensors(diffusers_lora()), ("--as-loaded",)),
    "a safetensors file called .zip": ("x.zip", safetensors(diffusers_lora()), ("--as-loaded",)),
}


@pytest.mark.parametrize(("name", "data", "more"), HEALTHY.values(), ids=HEALTHY)
def test_a_wrong_suffix_is_one_note(tmp_path: Path, cli, out: Path, name: str, data: bytes, more: tuple[str, ...]):
    (tmp_path / name).write_bytes(data)
    result = cli("convert", tmp_path / name, "--to", "diffusers", "-o", out, *more)
    assert result.exit_code == 0, result.output
    notes = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert name in notes[0]
    assert "suffix" in notes[0]


@pytest.mark.parametrize(("name", "data", "more"), HEALTHY.values(), ids=HEALTHY)
def test_a_right_suffix_is_none(tmp_path: Path, cli, out: Path, name: str, data: bytes, more: tuple[str, ...]):
    file = tmp_path / ("y.pt" if data.startswith(b"PK") else "y.safetensors")
    file.write_bytes(data)
    result = cli("convert", file, "--to", "diffusers", "-o", out, *more)
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.parametrize("name", ["x.safetensors", "pytorch_lora_weights.safetensors", "x.ckpt", "x"])
def test_a_hostile_pickle_is_one_under_any_name(tmp_path: Path, refused_alone, name: str):
    (tmp_path / name).write_bytes(sat(iteration=call("os.mkdir", "executed")))
    refused_alone(tmp_path / name, "os.mkdir")
    assert not Path("executed").exists()
