"""safetensors files whose header lies about the tensors, or is no header."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hostile.builders import TO_Q, diffusers_lora, framed, numbers, safetensors

A, B = f"{TO_Q}.lora_A.weight", f"{TO_Q}.lora_B.weight"
SIZE = 128
DATA = bytes(2 * SIZE)


def entry(start: int = 0, stop: int = SIZE, shape: Any = (4, 8), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def told(a: Any = None, b: Any = None, data: bytes = DATA, **more: Any) -> bytes:
    """A file with an A and a B, as told."""
    header = {A: a or entry(), B: b or entry(SIZE, 2 * SIZE, (8, 4)), **more}
    return framed(json.dumps(header).encode(), data)


def text(*entries: str) -> bytes:
    return framed(("{" + ",".join(entries) + "}").encode(), DATA)


KEY_A, KEY_B = f'"{A}":{json.dumps(entry())}', f'"{B}":{json.dumps(entry(SIZE, 2 * SIZE, (8, 4)))}'
HIDDEN = "\\u0022" * KEY_A.count('"')
NESTED = b'{"a":' * 100_000 + b"1" + b"}" * 100_000

HEADERS = {
    "tensors that overlap": told(b=entry(SIZE - 4, 2 * SIZE - 4, (8, 4)), data=DATA[4:]),
    "both tensors on the same bytes": told(b=entry(0, SIZE, (8, 4)), data=DATA[SIZE:]),
    "a gap between tensors": told(b=entry(SIZE + 8, 2 * SIZE + 8, (8, 4)), data=DATA + bytes(8)),
    "a gap before the first": told(entry(8, SIZE + 8), entry(SIZE + 8, 2 * SIZE + 8, (8, 4)), data=DATA + bytes(8)),
    "bytes that belong to nobody": told(data=DATA + b"more"),
    "an offset past the end": told(b=entry(SIZE, 3 * SIZE, (16, 4))),
    "an offset of 2**63": told(b=entry(SIZE, (1 << 63) + SIZE, (8, 4))),
    "an offset of 10**30": told(b=entry(SIZE, 10**30, (8, 4))),
    "a negative offset": told(entry(-SIZE, 0)),
    "an end before the start": told(b=entry(2 * SIZE, SIZE, (8, 4))),
    "offsets that are text": told({"dtype": "F32", "shape": [4, 8], "data_offsets": ["0", "128"]}),
    "three offsets": told({"dtype": "F32", "shape": [4, 8], "data_offsets": [0, 64, 128]}),
    "no offsets": told({"dtype": "F32", "shape": [4, 8]}),
    "no shape": told({"dtype": "F32", "data_offsets": [0, SIZE]}),
    "a larger shape than the bytes": told(entry(shape=(8, 8))),
    "a smaller shape than the bytes": told(entry(shape=(4, 4))),
    "a shape whose product wraps round": told(entry(shape=(1 << 32, 1 << 32))),
    "a negative length": told(entry(shape=(-4, -8))),
    "a length with a fraction": told(entry(shape=(4.5, 8))),
    "a shape that is a number": told(entry(shape=32)),
    "an element type that does not exist": told(entry(dtype="F33")),
    "an element type that is a number": told(entry(dtype=32)),
    "an element type in lower case": told(entry(dtype="f32")),
    "a tensor that is null": text(f'"{A}":null', KEY_B),
    "a key twice": text(KEY_A, KEY_A, KEY_B),
    "a key twice with other offsets": text(KEY_A, KEY_B, f'"{A}":{json.dumps(entry(SIZE, 2 * SIZE))}'),
    "a key twice beside escapes of as many quotes": text(f'"__metadata__":{{"a":"{HIDDEN}"}}', KEY_A, KEY_A, KEY_B),
    "a field twice": text(f'"{A}":{json.dumps(entry())[:-1]},"dtype":"F16"}}', KEY_B),
    "metadata twice": text('"__metadata__":{}', '"__metadata__":{"a":"b"}', KEY_A, KEY_B),
    "a metadata entry twice": text('"__metadata__":{"a":"b","a":"c"}', KEY_A, KEY_B),
    "metadata that is a number": text('"__metadata__":{"a":1}', KEY_A, KEY_B),
    "metadata that is a list": text('"__metadata__":[]', KEY_A, KEY_B),
    "not JSON": framed(b"{lora_A: 1, lora_B: 2}", DATA),
    "JSON cut in the middle": framed(json.dumps({A: entry()}).encode()[:-9], DATA),
    "JSON with something behind it": framed(b'{"a":1}{"b":2}', DATA),
    "JSON nested 100,000 deep": framed(NESTED),
    "not UTF-8": framed(b'{"\xff\xfe":{}}', DATA),
    "a key with half a surrogate pair": framed(b'{"\\ud800":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'),
    "header longer than the file": framed(b'{"a":1}', length=10_000),
    "header of 100 MB that is not there": framed(b'{"a":1}', length=100_000_000),
    "header larger than any": framed(b'{"a":1}', length=100_000_001),
    "header of 2**63 bytes": framed(b'{"a":1}', length=1 << 63),
    "header of length 0": framed(b""),
    "header of length 0 with JSON behind it": framed(b'{"a":1}', length=0),
    "header of length 1": framed(b"{", DATA),
    "header of blanks": framed(b" " * 64, DATA),
    "data cut short": told(data=DATA[:-1]),
    "no data": told(data=b""),
    "seven bytes": b"\x10\0\0\0\0\0\0",
    "eight bytes": b"\x10\0\0\0\0\0\0\0",
    "no tensors": framed(b"{}"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("data", HEADERS.values(), ids=HEADERS)
def test_a_header_that_lies(tmp_path: Path, refused, data: bytes, suffix: str):
    file = tmp_path / f"x{suffix}"
    file.write_bytes(data)
    refused([file, "--as-loaded"])


@pytest.mark.parametrize("dtype", ["I64", "I8", "U8", "BOOL", "C64", "F4", "F8_E8M0"])
def test_an_element_type_no_factor_has(tmp_path: Path, refused, dtype: str):
    bits = {"I64": 64, "C64": 64, "F4": 4}.get(dtype, 8)
    size = 32 * bits // 8
    file = tmp_path / "x.safetensors"
    file.write_bytes(told(entry(0, size, dtype=dtype), entry(size, size + SIZE, (8, 4)), bytes(size + SIZE)))
    refused([file, "--as-loaded"], dtype, "lora_A")


def test_null_metadata_is_no_metadata(tmp_path: Path, cli, out: Path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(text('"__metadata__":null', KEY_A, KEY_B))
    assert cli("convert", file, "--to", "diffusers", "-o", out, "--as-loaded").exit_code in (0, 1)


def test_the_header_as_it_should_be_converts(tmp_path: Path, cli, out: Path):
    """So that the table refuses the lies, and nothing else about these files."""
    for number, data in enumerate((told(), text(KEY_A, KEY_B), safetensors(diffusers_lora(), {"format": "pt"}))):
        file = tmp_path / f"{number}.safetensors"
        file.write_bytes(data)
        assert cli("convert", file, "--to", "diffusers", "-o", out, "--as-loaded", "--force").exit_code == 0


def test_a_header_of_many_keys_is_quick(tmp_path: Path, refused_alone):
    """20,000 keys, none of an adapter."""
    file = tmp_path / "x.safetensors"
    file.write_bytes(safetensors({f"layer.{n}.weight": numbers(1) for n in range(20_000)}))
    refused_alone(file)
