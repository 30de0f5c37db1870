"""Pickles built to exhaust the reader: each is refused in seconds, and in little memory."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from hostile.builders import archive, checkpoint, inflate, run_folder, sat, sat_lora, tensor
from hostile.pickles import Raw, call, persistent, push
from hostile.refusal import MOST_MEMORY

N = 200_000
DEEP_TUPLE = Raw(b")" + b"\x85" * N)
TWINS = Raw(b"N" + b"2\x86" * 60)
"""A pair of twice the same pair, 60 times over: 61 objects, and 2**60 entries for whoever walks them."""

BLOCKS = [range(start, start + 20_000) for start in range(0, 120_000, 20_000)]


def same_hash(n: int) -> bytes:
    """LONG1: a number that Python hashes to 0, whatever n is."""
    return b"\x8a\x0a" + (n * ((1 << 61) - 1)).to_bytes(10, "little")


DEPTHS = {
    "lists, top down": b"]" * N + b"a" * (N - 1),
    "lists, bottom up": b"N" + b"q\x00]h\x00a" * N,
    "lists between marks": b"(" * N + b"l" * N,
    "tuples of one, bottom up": b")" + b"\x85" * N,
    "tuples between marks": b"(" * N + b"t" * N,
    "dicts, top down": b"}" + b"N}" * N + b"s" * N,
    "dicts, bottom up": b"N" + b"q\x00}Nh\x00s" * N,
    "dicts between marks": b"(" * N + b"d" * N,
    "a tuple as key": b"}" + DEEP_TUPLE.code + b"Ns",
    "a tuple as one of many keys": b"}(" + DEEP_TUPLE.code + b"NNNu",
    "a tuple as a set's item": b"\x8f(" + DEEP_TUPLE.code + b"\x90",
    "a tuple as key of an OrderedDict": call("collections.OrderedDict", [(DEEP_TUPLE, None)]).code,
    "a list in itself": b"]q\x00h\x00a",
    "a dict in itself, as the state dict": b"}q\x00" + push("module") + b"h\x00s",
}
LIES = {
    "LONG_BINPUT far away": b"}r\xff\xff\xff\x7f",
    "LONG_BINPUT negative": b"}r\xff\xff\xff\xff",
    "PUT far away": b"}p99999999999999999999\n",
    "BINGET of nothing": b"h\x07",
    "BINBYTES8 of 2**40 bytes": b"\x8e" + struct.pack("<Q", 1 << 40) + b"abc",
    "BINBYTES8 of 2**64 bytes": b"\x8e" + b"\xff" * 8 + b"abc",
    "BINUNICODE8 of 2**62 bytes": b"\x8d" + struct.pack("<Q", 1 << 62) + b"abc",
    "BYTEARRAY8 of 2**40 bytes": b"\x96" + struct.pack("<Q", 1 << 40) + b"abc",
    "BINUNICODE of 4 GB": b"X\xff\xff\xff\xffabc",
    "BINSTRING of negative length": b"T\xff\xff\xff\xffabc",
    "LONG4 of negative length": b"\x8b\xff\xff\xff\xffabc",
    "INT of five million digits": b"I" + b"9" * 5_000_000 + b"\n",
    "a dict with a key and no value": b"}(Nu",
    "TUPLE2 of one": b"N\x86",
    "two values": b"}}",
    "text that is not UTF-8": b"X\x02\x00\x00\x00\xff\xfe",
    "an opcode that does not exist": b"\xff",
}
WHOLE = {
    "empty": b"",
    "no STOP": b"\x80\x04}",
    "only STOP": b".",
    "MARK never closed": b"\x80\x04}(.",
    "cut in the middle": checkpoint({"module": sat_lora()})[60:400],
    "protocol 255": b"\x80\xff}.",
}
TOO_MUCH = {
    "five million opcodes": b"N0" * 2_500_001 + b"N",
    "100,001 values at once": b"(" + b"N" * 100_001 + b"l",
    "1,001 marks at once": b"(" * 1_001 + b"l" * 1_001,
}
WORK = {
    "keys of one hash": b"}" + b"".join(b"(" + b"".join(same_hash(n) + b"N" for n in block) + b"u" for block in BLOCKS),
    "a key of 12,000 digits": b"}\x8b" + struct.pack("<i", 5000) + b"\x7f" * 5000 + b"Ns",
    "a deep tuple as shape": tensor(shape=(DEEP_TUPLE,), strides=(1,)).code,
    "a deep tuple as offset": tensor(offset=DEEP_TUPLE).code,
    "a deep tuple as persistent id": persistent(DEEP_TUPLE).code,
    "twins as shape": tensor(shape=(TWINS,), strides=(1,)).code,
    "twins as offset": tensor(offset=TWINS).code,
    "twins as persistent id": persistent(TWINS).code,
    "twins as key": b"}" + TWINS.code + b"Ns",
}


def cases(table: dict[str, bytes], every: int = 1) -> list:
    """The cases of a table; but for each n-th of them they are `long`."""
    marks = {n: [] if n % every == 0 else pytest.mark.long for n in range(len(table))}
    return [pytest.param(code, id=name, marks=marks[n]) for n, (name, code) in enumerate(table.items())]


def write(file: Path, code: bytes) -> Path:
    file.write_bytes(checkpoint(code, records={"data/0": bytes(128)}))
    return file


@pytest.mark.parametrize("code", cases(DEPTHS))
def test_depth(tmp_path: Path, refused_alone, code: bytes):
    refused_alone(write(tmp_path / "x.pt", b"\x80\x04" + code + b"."))


@pytest.mark.parametrize("code", cases(DEPTHS, every=3))
def test_depth_beside_healthy_weights_cannot_crash(tmp_path: Path, alone, code: bytes):
    """Where nobody looks at the deep thing the weights may convert; nobody may stumble over it either."""
    file = tmp_path / "x.pt"
    file.write_bytes(sat(buffer_names=Raw(code)))
    run, seen = alone(file)
    assert run.returncode in (0, 1), run.stderr
    assert "Traceback" not in run.stderr
    assert seen.get("peak", 0) < MOST_MEMORY


@pytest.mark.parametrize("code", cases(LIES))
def test_lies_about_length_and_memo(tmp_path: Path, refused_alone, code: bytes):
    """Beside weights that are healthy, so that nothing else can be the reason."""
    (tmp_path / "x.pt").write_bytes(sat(buffer_names=Raw(code)))
    refused_alone(tmp_path / "x.pt", "pickle")


@pytest.mark.parametrize("code", cases(WHOLE))
def test_a_pickle_that_is_none(tmp_path: Path, refused_alone, code: bytes):
    refused_alone(write(tmp_path / "x.pt", code))


@pytest.mark.parametrize("code", cases(TOO_MUCH))
def test_more_than_any_checkpoint_has(tmp_path: Path, refused_alone, code: bytes):
    (tmp_path / "x.pt").write_bytes(sat(buffer_names=Raw(code)))
    refused_alone(tmp_path / "x.pt", "pickle")


@pytest.mark.parametrize("code", cases(WORK))
def test_work_without_end(tmp_path: Path, refused_alone, code: bytes):
    refused_alone(write(tmp_path / "x.pt", b"\x80\x04" + code + b"."))


@pytest.mark.skipif(os.name == "nt", reason="files have no holes there")
@pytest.mark.parametrize("record", ["data.pkl", "byteorder"])
def test_a_record_of_a_gigabyte(tmp_path: Path, refused_alone, record: str):
    """The file is one hole; what reads the record before it looks at its size has a gigabyte in memory."""
    file, size = tmp_path / "x.pt", 1 << 30
    records = {"data.pkl": b"\x80\x04}.", "byteorder": b"little"}
    file.write_bytes(archive({name: b"" if name == record else data for name, data in records.items()}))
    inflate(file, f"archive/{record}", size)
    refused_alone(file)


@pytest.mark.parametrize("name", ["latest", "training_config.yaml"])
@pytest.mark.skipif(os.name == "nt", reason="files have no holes there")
def test_a_text_of_a_gigabyte(tmp_path: Path, refused_alone, name: str):
    run = run_folder(tmp_path / "run", "1000", latest="1000")
    with (run / name).open("wb") as stream:
        stream.truncate(1 << 30)
    refused_alone(run)
