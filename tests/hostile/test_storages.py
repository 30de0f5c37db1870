"""Tensors that lie about where they are and how large: refused before a byte of them is touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostile.builders import CHECKPOINT, DENSE, HIDDEN, RANK, checkpoint, sat, sat_lora, tensor
from hostile.pickles import Raw, call, named, persistent

BYTES = RANK * HIDDEN * 4
"""What matrix_A needs, and what record `data/0` has."""


def storage(*changes: object) -> Raw:
    return persistent(("storage", named("torch.FloatStorage"), "0", "cpu", 32)[: 5 - len(changes)] + changes)


def rebuilt(place: object, shape: object = (RANK, HIDDEN), strides: object = (HIDDEN, 1)) -> Raw:
    return call("torch._utils._rebuild_tensor_v2", place, 0, shape, strides, False, {})


LIES = {
    "a storage larger than its record": (tensor(count=33), "storage"),
    "a storage of 2**60 elements": (tensor(count=1 << 60), "storage"),
    "a storage of 10**5000 elements": (tensor(count=1 << 16_600), ""),
    "a storage of negative size": (tensor(count=-1), "storage"),
    "a wider element type than the record": (tensor(storage="torch.DoubleStorage"), "storage"),
    "a storage that is not in the archive": (tensor("7"), "storage 7"),
    "a storage named like a path": (tensor("../../data/0"), "storage"),
    "a storage of a type that does not exist": (tensor(storage="torch.QuantumStorage"), "storage"),
    "a negative offset": (tensor(offset=-1), "offset"),
    "an offset past the end": (tensor(offset=1), "past the end"),
    "an offset of 2**63": (tensor(offset=1 << 63), "offset"),
    "an offset that is true": (tensor(offset=True), "offset"),
    "an offset that is text": (tensor(offset="0"), "offset"),
    "a negative stride": (tensor(strides=(-HIDDEN, 1)), "stride"),
    "a stride past the end": (tensor(strides=(HIDDEN + 1, 1)), "past the end"),
    "strides of 2**47": (tensor(strides=(1 << 47, 1 << 47)), "past the end"),
    "a stride that is no number": (tensor(strides=(HIDDEN, None)), "stride"),
    "more strides than dimensions": (tensor(strides=(HIDDEN, 1, 1)), "stride"),
    "fewer strides than dimensions": (tensor(strides=(1,)), "stride"),
    "a negative length": (tensor(shape=(-4, HIDDEN)), "shape"),
    "a length of 2**47": (tensor(shape=(1 << 47, HIDDEN)), "past the end"),
    "a length of 2**70": (tensor(shape=(1 << 70, HIDDEN)), "shape"),
    "a length that is no whole number": (tensor(shape=(4.0, HIDDEN)), "shape"),
    "a shape that is a number": (tensor(shape=4), ""),
    "a shape that is text": (tensor(shape="48", strides="81"), "shape"),
    "nine dimensions": (tensor(shape=(1,) * 9, strides=(1,) * 9), "shape"),
    "one number seen 2**40 times": (tensor(shape=(RANK, 1 << 40), strides=(0, 0)), ""),
    "more elements than the storage has": (tensor(shape=(RANK, 29), strides=(1, 1)), ""),
    "a persistent id that is no tuple": (rebuilt(persistent("0")), "persistent id"),
    "a persistent id of another kind": (
        rebuilt(persistent(("module", named("torch.FloatStorage"), "0", "cpu", 32))),
        "persistent id",
    ),
    "a persistent id cut short": (rebuilt(persistent(("storage", named("torch.FloatStorage")))), "persistent id"),
    "a persistent id whose class is text": (
        rebuilt(persistent(("storage", "torch.FloatStorage", "0", "cpu", 32))),
        "persistent id",
    ),
    "a persistent id whose key is a number": (
        rebuilt(persistent(("storage", named("torch.FloatStorage"), 0, "cpu", 32))),
        "persistent id",
    ),
    "a textual persistent id": (Raw(b"P0\n"), "PERSID"),
    "a tensor without a storage": (rebuilt(None), ""),
    "a tensor whose storage is a tensor": (rebuilt(tensor()), ""),
    "a tensor without arguments": (call("torch._utils._rebuild_tensor_v2"), ""),
    "a tensor of a sparse layout": (call("torch._utils._rebuild_sparse_tensor", 0, (RANK, HIDDEN)), ""),
    "a tensor of an unknown element type": (
        call("torch._utils._rebuild_tensor_v3", storage(), 0, (4, 8), (8, 1), False, {}, named("torch.float3")),
        "",
    ),
    "a tensor whose element type is text": (
        call("torch._utils._rebuild_tensor_v3", storage(), 0, (4, 8), (8, 1), False, {}, "torch.float32"),
        "",
    ),
    "a wider element type by _rebuild_tensor_v3": (
        call("torch._utils._rebuild_tensor_v3", storage(), 0, (4, 8), (8, 1), False, {}, named("torch.float64")),
        "past the end",
    ),
    "an out-of-band buffer": (Raw(b"\x97"), "NEXT_BUFFER"),
}


@pytest.mark.parametrize(("lie", "fragment"), [pytest.param(*case, id=name) for name, case in LIES.items()])
def test_a_factor_that_lies(tmp_path: Path, refused, lie: Raw, fragment: str):
    file = tmp_path / CHECKPOINT
    file.write_bytes(
        checkpoint({"module": sat_lora() | {f"{DENSE}.matrix_A.0": lie}}, records={"data/0": bytes(range(BYTES))})
    )
    refused(file, fragment)


HUGE = {
    "A, one number seen 2**40 times": ("A", tensor(shape=(RANK, 1 << 40), strides=(0, 0))),
    "A, one number seen 2**28 times": ("A", tensor(shape=(RANK, 1 << 26), strides=(0, 0))),
    "B, one row seen 2**40 times": ("B", tensor(shape=(1 << 40, RANK), strides=(0, 1))),
    "B, a length of 2**47": ("B", tensor(shape=(1 << 47, RANK), strides=(RANK, 1))),
}


@pytest.mark.parametrize(("factor", "lie"), HUGE.values(), ids=HUGE)
def test_a_huge_tensor_costs_no_memory(tmp_path: Path, refused_alone, factor: str, lie: Raw):
    file = tmp_path / CHECKPOINT
    tensors = sat_lora() | {f"{DENSE}.matrix_{factor}.0": lie}
    file.write_bytes(checkpoint({"module": tensors}, records={"data/0": bytes(BYTES)}))
    refused_alone(file)


def test_the_same_tensor_told_truly_converts(tmp_path: Path, cli, out: Path):
    """So that the table above refuses the lies, and nothing else about these files."""
    file = tmp_path / CHECKPOINT
    tensors = sat_lora() | {f"{DENSE}.matrix_A.0": tensor()}
    file.write_bytes(checkpoint({"module": tensors}, records={"data/0": bytes(BYTES)}))
    assert cli("convert", file, "--to", "diffusers", "-o", out).exit_code == 0


@pytest.mark.parametrize(
    ("wrapped", "fragment"),
    [
        pytest.param({"module": {"module": {"module": {"module": {"module": {}}}}}}, "wrapped", id="five times"),
        pytest.param(Raw(b"}q\x00X\x06\x00\x00\x00moduleh\x00s"), "wrapped", id="in itself"),
        pytest.param({"module": []}, "", id="in a list"),
        pytest.param({"module": call("deepspeed.Engine")}, "", id="in an object"),
        pytest.param([1, 2, 3], "", id="a list"),
        pytest.param("text", "", id="a text"),
        pytest.param({}, "", id="nothing"),
    ],
)
def test_a_state_dict_that_is_none(tmp_path: Path, refused, wrapped: object, fragment: str):
    file = tmp_path / CHECKPOINT
    file.write_bytes(checkpoint(wrapped))
    refused(file, fragment)


def test_only_the_tensor_asked_for_is_believed(tmp_path: Path, refused):
    """A lie beside the adapter is a lie all the same."""
    file = tmp_path / CHECKPOINT
    file.write_bytes(sat(sat_lora() | {"model.diffusion_model.time_embed.0.weight": tensor("7")}))
    refused(file, "storage 7")
