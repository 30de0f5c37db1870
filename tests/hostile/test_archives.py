"""Zip archives that lie, lead out of themselves, or are not what torch.save writes."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import pytest

from hostile.builders import CENTRAL, CHECKPOINT, LOCAL, archive, checkpoint, patched, sat, sat_lora

HEALTHY = {
    "data.pkl": b"\x80\x04}.",
    "byteorder": b"little",
    "data/0": bytes(64),
    "data/1": bytes(64),
    "version": b"3\n",
}
TWICE = [*HEALTHY.items(), ("data/0", bytes(64))]
TAIL = sat().rindex(b"PK\x05\x06")


def named(name: str) -> bytes:
    return checkpoint({"module": sat_lora()}, records={name: bytes(64)})


def changed(field: str, value: int, name: str = "archive/data/100", where: bytes = CENTRAL) -> bytes:
    return patched(sat(), name, field, value, where)


def moved(data: bytes, name: str, onto: str) -> bytes:
    """The archive with one record's entry pointing to where another record lies."""
    return patched(data, name, "offset", data.index(onto.encode()) - 30)


ARCHIVES = {
    "a record that climbs out": (named("../../evil"), "leads out"),
    "a record that climbs out with backslashes": (named("..\\..\\evil"), "leads out"),
    "a record in the folder above": (named("data/../../evil"), "leads out"),
    "an absolute record": (archive(HEALTHY, folder="/etc/"), "leads out"),
    "a record on another drive": (archive(HEALTHY, folder="C:/"), "leads out"),
    "the same name twice": (archive(TWICE), "two records"),
    "the same name in two folders": (
        archive([("a/data.pkl", b"}."), ("b/data.pkl", b"}.")], folder=""),
        "two records",
    ),
    "two records on the same bytes": (moved(sat(), "archive/data/101", "archive/data/100"), "overlap"),
    "a record inside another": (changed("offset", sat().index(b"archive/data/100") + 6), "where"),
    "a record that reaches into the next": (
        patched(changed("packed", 200), "archive/data/100", "size", 200),
        "overlap",
    ),
    "a record longer than the file": (
        patched(changed("packed", 1 << 30), "archive/data/100", "size", 1 << 30),
        "more than the file",
    ),
    "a record at the end of the file": (changed("offset", len(sat()) - 10), ""),
    "a record far past the end of the file": (changed("offset", (1 << 32) - 2), ""),
    "two sizes that disagree": (changed("size", 1), ""),
    "a local header longer than its neighbour allows": (changed("extra", 60_000, where=LOCAL), ""),
    "another pickle's checksum": (sat().replace(b"matrix_A.0", b"matrix_A.1", 1), "damaged"),
    "encrypted": (changed("flags", 1), "encrypted"),
    "an encrypted pickle": (changed("flags", 1, "archive/data.pkl"), "encrypted"),
    "compressed": (archive(HEALTHY, compression=zipfile.ZIP_DEFLATED), "compressed"),
    "a compressed bomb": (archive({"data.pkl": bytes(50 << 20)}, compression=zipfile.ZIP_DEFLATED), "compressed"),
    "a method that does not exist": (changed("method", 99), ""),
    "no data.pkl": (archive({"version": b"3\n", "data/0": bytes(64)}), "data.pkl"),
    "an empty zip with something before it": (b"PK\x03\x04" + archive({}), ""),
    "a zip of documents": (archive({"word/document.xml": b"<w/>"}, folder=""), "data.pkl"),
    "a TorchScript archive": (archive(HEALTHY | {"code/__torch__.py": b"", "constants.pkl": b"\x80\x02)."}), ""),
    "big-endian": (checkpoint({"module": sat_lora()}, records={"byteorder": b"big"}), "big-endian"),
    "a byte order that does not exist": (checkpoint({"module": sat_lora()}, records={"byteorder": b"middle"}), ""),
    "cut in its directory": (sat()[: TAIL - 20], "damaged"),
    "cut in its data": (sat()[: TAIL // 2], "damaged"),
    "cut after four bytes": (sat()[:4], "damaged"),
    "the last byte missing": (sat()[:-1], "damaged"),
    "a directory of 4 GB": (sat()[: TAIL + 12] + b"\xfe\xff\xff\xff" + sat()[TAIL + 16 :], "damaged"),
    "a directory at 4 GB": (sat()[: TAIL + 16] + b"\xfe\xff\xff\xff" + sat()[TAIL + 20 :], "damaged"),
}


@pytest.mark.parametrize(("data", "fragment"), [pytest.param(*case, id=name) for name, case in ARCHIVES.items()])
def test_an_archive_that_lies(tmp_path: Path, refused, data: bytes, fragment: str):
    file = tmp_path / CHECKPOINT
    file.write_bytes(data)
    refused(file, fragment)


def zip64(offset: int) -> bytes:
    """A record whose place is told by a 64-bit extra field."""
    extra = b"\x01\x00\x08\x00" + offset.to_bytes(8, "little")
    data = bytearray(changed("offset", 0xFFFFFFFF))
    name = data.rindex(b"archive/data/100")
    data[name + 16 : name + 16] = extra
    data[name - 46 + 30 : name - 46 + 32] = len(extra).to_bytes(2, "little")
    end = data.rindex(b"PK\x05\x06")
    size = int.from_bytes(data[end + 12 : end + 16], "little") + len(extra)
    data[end + 12 : end + 16] = size.to_bytes(4, "little")
    return bytes(data)


@pytest.mark.parametrize("offset", [1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_a_record_at_a_64_bit_offset(tmp_path: Path, refused, offset: int):
    file = tmp_path / CHECKPOINT
    file.write_bytes(zip64(offset))
    refused(file)


def test_the_builder_of_that_is_right(tmp_path: Path, cli, out: Path):
    file = tmp_path / CHECKPOINT
    file.write_bytes(zip64(sat().index(b"archive/data/100") - 30))
    assert cli("convert", file, "--to", "diffusers", "-o", out).exit_code == 0


LEGACY = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, []))


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_torch_files_from_before_2020(tmp_path: Path, refused, name: str):
    (tmp_path / name).write_bytes(LEGACY)
    refused(tmp_path / name, "2020")


def test_torch_files_from_before_2020_as_torch_writes_them(tmp_path: Path, refused):
    torch = pytest.importorskip("torch")
    file = tmp_path / CHECKPOINT
    torch.save({"module": {"x": torch.ones(2)}}, file, _use_new_zipfile_serialization=False)
    refused(file, "2020")


def test_torch_reads_what_the_builder_writes(tmp_path: Path):
    """So that healthy means healthy: torch itself, in its safe mode, agrees with the archives built here."""
    torch = pytest.importorskip("torch")
    file = tmp_path / CHECKPOINT
    file.write_bytes(sat())
    tree = torch.load(file, weights_only=True)
    assert {key: value.tolist() for key, value in tree["module"].items()} == {
        key: value.tolist() for key, value in sat_lora().items()
    }
