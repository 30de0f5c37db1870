"""Pickles that run code when Python's own reader opens them: every way a pickle has of doing that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hostile.builders import checkpoint, sat, sat_lora
from hostile.pickles import Raw, call, named, push

MARKER = "executed"
"""The folder that every payload makes in the current one."""

SOURCE = f"__import__('os').mkdir({MARKER!r})"


def raw(*parts: bytes | Raw) -> Raw:
    return Raw(b"".join(part.code if isinstance(part, Raw) else part for part in parts))


def binary(data: bytes) -> Raw:
    return Raw(b"B" + len(data).to_bytes(4, "little") + data)


# what payloads are made of: an object whose attributes can be set, the function, and a call that waits to be iterated
OBJECT = call("types.SimpleNamespace")
MAKE = named("os.mkdir")
LAZY = raw(named("builtins.map"), push((MAKE, [MARKER])), b"\x81")

PAYLOADS = {
    "os.system": (call("os.system", f"mkdir {MARKER}"), "os.system"),
    "eval": (call("builtins.eval", SOURCE), "builtins.eval"),
    "exec": (call("builtins.exec", SOURCE), "builtins.exec"),
    "subprocess": (call("subprocess.call", [sys.executable, "-c", SOURCE]), "subprocess.call"),
    "pickle in pickle": (
        call("pickle.loads", binary(b"\x80\x04" + call("os.mkdir", MARKER).code + b".")),
        "pickle.loads",
    ),
    "GLOBAL, REDUCE": (call("os.mkdir", MARKER), "os.mkdir"),
    "STACK_GLOBAL": (raw(push("os"), push("mkdir"), b"\x93", push((MARKER,)), b"R"), "os.mkdir"),
    "STACK_GLOBAL of a module's import": (
        raw(push("glob"), push("os.mkdir"), b"\x93", push((MARKER,)), b"R"),
        "os.mkdir",
    ),
    "STACK_GLOBAL with memoized names": (
        raw(push("os"), b"q\x000", push("mkdir"), b"q\x010h\x00h\x01\x93", push((MARKER,)), b"R"),
        "os.mkdir",
    ),
    "INST": (raw(b"(", push(MARKER), b"ios\nmkdir\n"), "os.mkdir"),
    "OBJ": (raw(b"(", MAKE, push(MARKER), b"o"), "os.mkdir"),
    "NEWOBJ": (raw(named("builtins.tuple"), push((LAZY,)), b"\x81"), "os.mkdir"),
    "NEWOBJ_EX": (raw(named("builtins.tuple"), push((LAZY,)), push({}), b"\x92"), "os.mkdir"),
    "BUILD": (raw(OBJECT, push({"__setstate__": MAKE}), b"b", push(MARKER), b"b"), "os.mkdir"),
    "APPEND": (raw(OBJECT, push({"append": MAKE}), b"b", push(MARKER), b"a"), "os.mkdir"),
    "ADDITEMS": (raw(OBJECT, push({"add": MAKE}), b"b(", push(MARKER), b"\x90"), "os.mkdir"),
    "EXT1": (raw(b"\x82\x11", push((MARKER,)), b"R"), "EXT1"),
    "EXT2": (raw(b"\x83\x22\x11", push((MARKER,)), b"R"), "EXT2"),
    "EXT4": (raw(b"\x84\x44\x33\x22\x11", push((MARKER,)), b"R"), "EXT4"),
}
ELSEWHERE = {
    "torch.storage._load_from_bytes": (
        call("torch.storage._load_from_bytes", binary(b"\x80\x04.")),
        "_load_from_bytes",
    ),
    "torch.load": (call("torch.load", "other.pt"), "torch.load"),
    "Python 2's eval": (call("__builtin__.eval", SOURCE), "eval"),
    "posix.system": (call("posix.system", f"mkdir {MARKER}"), "posix.system"),
    "nt.system": (call("nt.system", f"mkdir {MARKER}"), "nt.system"),
}
"""Live with torch, in Python 2, or on one system only."""


def disguises(code: Raw) -> dict[str, bytes]:
    """The same payload as a whole pickle, and where a healthy SAT checkpoint would carry it unseen."""
    tensors = sat_lora()
    return {
        "alone": checkpoint(b"\x80\x04" + code.code + b"."),
        "beside the weights": sat(iteration=code),
        "among the weights": sat(tensors | {"model.diffusion_model.mixins.pos_embed.freqs": code}),
        "in a list of a list": sat(buffer_names=[[code], []]),
        "thrown away before the weights": sat(buffer_names=raw(code, b"0N")),
    }


@pytest.mark.parametrize(
    ("code", "fragment"), [pytest.param(*case, id=name) for name, case in (PAYLOADS | ELSEWHERE).items()]
)
def test_a_pickle_that_runs_code_is_refused_wherever_it_hides(tmp_path: Path, refused, code: Raw, fragment: str):
    for place, data in disguises(code).items():
        file = tmp_path / f"{place}.pt"
        file.write_bytes(data)
        refused(file, fragment)
    assert not any(path.name == MARKER for path in [*Path.cwd().iterdir(), *tmp_path.iterdir()])


@pytest.mark.parametrize(("code", "fragment"), [pytest.param(*case, id=name) for name, case in PAYLOADS.items()])
def test_nothing_is_executed_or_asked_of_the_system(tmp_path: Path, refused_alone, code: Raw, fragment: str):
    file = tmp_path / "mp_rank_00_model_states.pt"
    file.write_bytes(disguises(code)["beside the weights"])
    refused_alone(file, fragment)
    assert not Path(MARKER).exists()


def test_the_payloads_are_live(tmp_path: Path):
    """Each of them leaves its marker when Python's own unpickler reads it, so their silence above means something."""
    reader = Path(__file__).with_name("unpickle.py")
    for number, (code, _) in enumerate(PAYLOADS.values()):
        (tmp_path / f"{number}.pkl").write_bytes(b"\x80\x04" + code.code + b".")
    subprocess.run([sys.executable, str(reader), MARKER, str(tmp_path)], check=True, capture_output=True)
    harmless = [name for number, name in enumerate(PAYLOADS) if not (tmp_path / f"{number}.marker").exists()]
    assert harmless == []


FOLDER = call("pathlib.Path", MARKER)
UNLISTED = {
    "a method": call("pathlib.Path.mkdir", FOLDER),
    "an attribute": raw(OBJECT, push({"append": named("pathlib.Path.mkdir")}), b"b", FOLDER, b"a"),
    "inside a known call": call("torch._utils._rebuild_parameter", call("pathlib.Path.mkdir", FOLDER)),
}


@pytest.mark.parametrize("code", UNLISTED.values(), ids=UNLISTED)
def test_safety_does_not_rest_on_a_list_of_names(tmp_path: Path, cli, out: Path, code: Raw):
    """A call that nobody thought of listing is not made either: the weights convert, and that is all that happens."""
    file = tmp_path / "checkpoint.pt"
    file.write_bytes(sat(iteration=code))
    result = cli("convert", file, "--to", "diffusers", "-o", out)
    assert result.exit_code == 0, result.output
    assert not Path(MARKER).exists()


def test_a_pickle_under_a_healthy_name_in_a_run_folder(tmp_path: Path, refused):
    folder = tmp_path / "run" / "1000"
    folder.mkdir(parents=True)
    (tmp_path / "run" / "latest").write_text("1000")
    (folder / "mp_rank_00_model_states.pt").write_bytes(sat(iteration=call("os.mkdir", MARKER)))
    refused(tmp_path / "run", "os.mkdir")


def test_records_that_hold_a_second_pickle_are_never_read(tmp_path: Path, cli, out: Path):
    """constants.pkl is where TorchScript keeps its own; we do not look at it."""
    file = tmp_path / "checkpoint.pt"
    evil = b"\x80\x04" + call("os.mkdir", MARKER).code + b"."
    file.write_bytes(checkpoint({"module": sat_lora()}, records={"constants.pkl": evil, "data.pkl.bak": evil}))
    assert cli("convert", file, "--to", "diffusers", "-o", out).exit_code == 0
    assert not Path(MARKER).exists()
