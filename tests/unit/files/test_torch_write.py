"""What write_torch writes, torch loads in each of its ways, unzip tests, and our own reader reads."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from zlib import crc32

import ml_dtypes
import numpy as np
import pytest
import torch
from helpers.oracle import DATA
from torch.utils.serialization import config

from loraforge.algebra.dtypes import BYTES
from loraforge.errors import ConversionError
from loraforge.files import torch_write
from loraforge.files.tensorfile import TensorFile, TensorInfo
from loraforge.files.torch_read import read_torch
from loraforge.files.torch_write import copy_chunks, write_torch

NUMPY = {
    "F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "C64": np.complex64,
    "I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8, "U8": np.uint8, "BOOL": np.bool_,
}  # fmt: skip
SHAPES = [(), (1,), (3, 5), (2, 1, 3, 4), (0,), (2, 0, 3), (257,)]
EXTRA = {"iteration": 1000, "huge": -(1 << 70), "scale": 0.1, "note": "a\n中", "yes": True, "no": False, "none": None}
WAYS = [{"weights_only": True}, {"weights_only": False}, {"mmap": True}, {"mmap": True, "weights_only": False}]


def everything() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {
        f"{dtype.lower()}.{'x'.join(map(str, shape))}.weight": np.asarray(random.integers(-90, 90, shape)).astype(kind)
        for dtype, kind in NUMPY.items()
        for shape in SHAPES
    }


def header_of(tensors: dict[str, np.ndarray]) -> dict[str, tuple[str, tuple[int, ...]]]:
    names = {np.dtype(kind): dtype for dtype, kind in NUMPY.items()}
    return {key: (names[tensor.dtype], tensor.shape) for key, tensor in tensors.items()}


def write(path: Path, tensors: dict[str, np.ndarray], **more) -> dict[str, int]:
    return write_torch(path, header_of(tensors), tensors.items(), **more)


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else b""


def data_offsets(path: Path) -> dict[str, int]:
    """Record -> where its data begins, by the local headers."""
    content, offsets = path.read_bytes(), {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            lengths = content[info.header_offset + 26 : info.header_offset + 30]
            offsets[info.filename] = (
                info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
            )
    return offsets


def check_loads(path: Path, tensors: dict[str, np.ndarray], extra: dict[str, object]) -> None:
    for way in WAYS:
        loaded = torch.load(path, map_location="cpu", **way)
        module = loaded.pop("module")
        assert loaded == extra
        assert [type(value) for value in loaded.values()] == [type(value) for value in extra.values()]
        assert list(module) == list(tensors)
        for key, tensor in tensors.items():
            got = module[key]
            assert str(got.dtype) == f"torch.{tensor.dtype.name}"
            assert tuple(got.shape) == tensor.shape
            assert got.stride() == torch.empty(tensor.shape).stride()
            assert not got.requires_grad
            assert raw(got) == tensor.tobytes(), key


def check_unzips(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    if shutil.which("unzip"):
        done = subprocess.run(["unzip", "-tq", path], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_torch_loads_every_type_and_shape_in_each_of_its_ways(tmp_path: Path) -> None:
    tensors = everything()
    sums = write(tmp_path / "a.pt", tensors, extra=EXTRA)
    assert sums == {key: crc32(tensor.tobytes()) for key, tensor in tensors.items()}
    assert list(sums) == list(tensors)
    check_loads(tmp_path / "a.pt", tensors, EXTRA)


def test_our_own_reader_reads_it(tmp_path: Path) -> None:
    tensors = everything()
    write(tmp_path / "a.pt", tensors, extra=EXTRA)
    file = read_torch(tmp_path / "a.pt")
    assert (file.wrappers, file.tops, file.opaque) == (("module",), ("module", *EXTRA), {})
    assert {key: (info.dtype, info.shape) for key, info in file.tensors.items()} == header_of(tensors)
    assert all(info.strides is None for info in file.tensors.values())
    assert all(bytes(file.raw(key)) == tensor.tobytes() for key, tensor in tensors.items())


def test_the_storage_classes_are_those_of_torch() -> None:
    """The writer and the reader share the table, so neither can notice that a type has the class of another."""
    classes = {dtype: str(getattr(torch, name).dtype) for dtype, name in torch_write._TYPES.items()}
    assert classes == {dtype: f"torch.{np.dtype(kind).name}" for dtype, kind in NUMPY.items()}


@pytest.mark.parametrize("dtype", sorted(BYTES.keys() - NUMPY.keys()))
def test_a_type_without_a_storage_class_is_refused_before_anything_is_written(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(ConversionError, match=f"x.weight has element type {dtype}"):
        write_torch(tmp_path / "a.pt", {"x.weight": (dtype, (2,))}, [])
    assert not (tmp_path / "a.pt").exists()


def test_the_pickle_says_what_torch_saves(tmp_path: Path) -> None:
    """Pickled by torch and by us, a state dict has the same globals, and the reader sees the same."""
    state = {"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b": torch.ones((), dtype=torch.bfloat16)}
    torch.save({"module": torch.nn.Module().state_dict() | state, "iteration": 3}, tmp_path / "theirs.pt")
    write_torch(
        tmp_path / "ours.pt",
        {"a": ("F32", (2, 3)), "b": ("BF16", ())},
        [(key, [raw(tensor)]) for key, tensor in state.items()],
        extra={"iteration": 3},
    )
    ours, theirs = read_torch(tmp_path / "ours.pt"), read_torch(tmp_path / "theirs.pt")
    assert (ours.globals, ours.tops, ours.wrappers) == (theirs.globals, theirs.tops, theirs.wrappers)
    assert type(torch.load(tmp_path / "ours.pt")["module"]) is type(torch.load(tmp_path / "theirs.pt")["module"])


def test_the_bytes_depend_on_the_input_alone(tmp_path: Path) -> None:
    tensors = everything()
    write(tmp_path / "a.pt", tensors, extra=EXTRA)
    pieces = ((key, [tensor.tobytes()[:1], bytearray(tensor.tobytes()[1:])]) for key, tensor in tensors.items())
    write_torch(tmp_path / "other name.bin", header_of(tensors), pieces, extra=EXTRA)
    assert (tmp_path / "a.pt").read_bytes() == (tmp_path / "other name.bin").read_bytes()


def test_order_of_memory_and_of_bytes_do_not_matter(tmp_path: Path) -> None:
    plain = np.arange(12, dtype=np.float32).reshape(3, 4)
    for name, given in {"a": plain, "b": np.asfortranarray(plain), "c": plain.astype(">f4")}.items():
        write_torch(tmp_path / name, {"x": ("F32", (3, 4))}, [("x", given)])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()


def test_records_are_aligned_stored_and_undated(tmp_path: Path) -> None:
    write(tmp_path / "a.pt", everything())
    offsets = data_offsets(tmp_path / "a.pt")
    assert {offset % 64 for offset in offsets.values()} == {0}
    names = list(offsets)
    assert names[:3] == ["archive/data.pkl", "archive/byteorder", "archive/data/0"]
    assert names[-1] == "archive/version"
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert {(i.compress_type, i.date_time, i.flag_bits, i.create_system) for i in archive.infolist()} == {
            (zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0), 0, 3)
        }
    check_unzips(tmp_path / "a.pt")
    mapped = torch.load(tmp_path / "a.pt", mmap=True)["module"]
    assert all(tensor.data_ptr() % 64 == 0 for tensor in mapped.values() if tensor.numel())


@pytest.mark.parametrize("computed", [False, True])
def test_torch_finds_every_record_also_where_it_would_rather_compute(tmp_path: Path, computed: bool) -> None:
    tensors = everything()
    write(tmp_path / "a.pt", tensors)
    offsets = data_offsets(tmp_path / "a.pt")
    meta = torch.load(tmp_path / "a.pt", map_location="meta")["module"]
    for number, tensor in enumerate(meta.values()):
        assert tensor.untyped_storage()._checkpoint_offset == offsets[f"archive/data/{number}"]
    with config.patch("load.calculate_storage_offsets", computed):
        check_loads(tmp_path / "a.pt", tensors, {})


def test_large_archives_need_zip64(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit lowered, so that sizes, offsets and the table's place all take 64 bits as in a file of gigabytes."""
    tensors = everything() | {"large.weight": np.arange(5000, dtype=np.float32)}
    with monkeypatch.context() as patch:
        patch.setattr(zipfile, "ZIP64_LIMIT", 3000)
        write(tmp_path / "a.pt", tensors, extra=EXTRA)
    content = (tmp_path / "a.pt").read_bytes()
    assert b"PK\x06\x06" in content[-100:]
    assert content[4:6] == b"\x2d\x00"  # data.pkl: version 4.5
    assert {offset % 64 for offset in data_offsets(tmp_path / "a.pt").values()} == {0}
    check_loads(tmp_path / "a.pt", tensors, EXTRA)
    check_unzips(tmp_path / "a.pt")
    assert bytes(read_torch(tmp_path / "a.pt").raw("large.weight")) == tensors["large.weight"].tobytes()


HEADER = {"a.weight": ("F32", (2,)), "b.weight": ("F16", (3,))}
A, B = np.ones(2, np.float32), np.ones(3, np.float16)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([("b.weight", B), ("a.weight", A)], "a.weight was announced, and b.weight came"),
        ([("a.weight", A)], "b.weight was announced, and nothing came"),
        ([], "a.weight was announced, and nothing came"),
        ([("a.weight", A), ("b.weight", B), ("c.weight", B)], "c.weight came, and was not announced"),
        ([("a.weight", A), ("b.weight", B), ("a.weight", A)], "a.weight came, and was not announced"),
        ([("a.weight", A.astype(np.float64))], r"a.weight is float64 \(2,\), not F32"),
        ([("a.weight", A.reshape(2, 1))], r"a.weight is float32 \(2, 1\), not F32"),
        ([("a.weight", A.view(np.int32))], "a.weight is int32"),
        ([("a.weight", [bytes(4), bytes(3)])], "a.weight has 7 bytes, not 8"),
        ([("a.weight", [])], "a.weight has 0 bytes, not 8"),
        ([("a.weight", (bytes(5) for _ in iter(int, 1)))], "a.weight has more bytes, not 8"),  # without end
    ],
)
def test_other_tensors_than_announced_are_refused_and_leave_nothing_torch_loads(
    tmp_path: Path, tensors: list, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_torch(tmp_path / "a.pt", HEADER, tensors)
    for way in WAYS:
        with pytest.raises(RuntimeError):
            torch.load(tmp_path / "a.pt", **way)


@pytest.mark.parametrize(
    ("extra", "message"),
    [({"module": 1}, "module is where"), ({"lr": np.float64(1)}, "lr is a float64"), ({"x": (1,)}, "x is a tuple")],
)
def test_extra_values_are_plain_and_beside_the_tensors(tmp_path: Path, extra: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write_torch(tmp_path / "a.pt", HEADER, [("a.weight", A), ("b.weight", B)], extra=extra)
    assert not (tmp_path / "a.pt").exists()


def test_a_real_checkpoint_is_copied_piece_by_piece(tmp_path: Path) -> None:
    source = DATA / "sat_2b_r4" / "sat_ckpt" / "1000" / "mp_rank_00_model_states.pt"
    file = read_torch(source)
    header = {key: (info.dtype, info.shape) for key, info in file.tensors.items()}
    write_torch(tmp_path / "a.pt", header, ((key, copy_chunks(file, key, 1000)) for key in header))
    ours = torch.load(tmp_path / "a.pt", weights_only=True)["module"]
    theirs = torch.load(source, weights_only=False)["module"]  # it holds random states of numpy beside the tensors
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.complex64, torch.bool])
def test_tensors_that_are_views_are_copied_as_they_look(tmp_path: Path, dtype: torch.dtype) -> None:
    base = torch.arange(60).reshape(3, 4, 5).to(dtype)
    views = {"t": base.permute(2, 0, 1), "s": base[1:, ::2], "e": base[0, :1].expand(4, 5), "p": base[2]}
    torch.save({"module": views}, tmp_path / "views.pt")
    file = read_torch(tmp_path / "views.pt")
    assert [key for key, info in file.tensors.items() if info.strides] == ["t", "s", "e"]
    for key, view in views.items():
        assert b"".join(copy_chunks(file, key, 7)) == raw(view)


def test_pieces_have_the_size_asked_for(tmp_path: Path) -> None:
    (tmp_path / "raw").write_bytes(bytes(range(100)))
    file = TensorFile(
        tmp_path / "raw", "torch", 100, {"x": TensorInfo("U8", (90,), 10), "empty": TensorInfo("U8", (0, 3), 5)}
    )
    assert [len(piece) for piece in copy_chunks(file, "x", 40)] == [40, 40, 10]
    assert b"".join(copy_chunks(file, "x", 40)) == bytes(range(10, 100))
    assert list(copy_chunks(file, "empty")) == []


MEASURE = """
import resource, sys
from pathlib import Path
import numpy as np
from loraforge.files.torch_read import read_torch
from loraforge.files.torch_write import copy_chunks, write_torch

COUNT, SIZE = 20, 30_000_000
place = Path(sys.argv[1])
header = {str(n): ("U8", (SIZE,)) for n in range(COUNT)}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
start = peak()
write_torch(place / "a.pt", header, ((key, np.full(SIZE, int(key), np.uint8)) for key in header))
made = peak()
file = read_torch(place / "a.pt")
write_torch(place / "b.pt", header, ((key, copy_chunks(file, key)) for key in header))
print(made - start, peak() - start, "torch" in sys.modules)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures with the resource module, in Linux's unit")
def test_600_megabytes_pass_through_less_than_100(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE, tmp_path], capture_output=True, text=True, check=True)
    made, copied, torch_loaded = done.stdout.split()
    assert float(made) < 100
    assert float(copied) < 100
    assert torch_loaded == "False"
    assert (tmp_path / "a.pt").stat().st_size > 600_000_000
    same = subprocess.run(["cmp", tmp_path / "a.pt", tmp_path / "b.pt"])
    assert same.returncode == 0
    for name in ("a.pt", "b.pt"):
        (tmp_path / name).unlink()  # pytest keeps what a test leaves


def test_the_module_does_not_load_torch() -> None:
    program = "import sys, loraforge.files.torch_write\nprint({'torch'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
