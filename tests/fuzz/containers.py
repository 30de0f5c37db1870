"""Random changes of safetensors files, torch archives and pickles that keep them nearly whole."""

from __future__ import annotations

import io
import json
import pickletools
import struct
import warnings
import zipfile
from random import Random
from typing import Any

from hostile.builders import framed
from hostile.pickles import call, named, persistent, push

from fuzz.mutate import MARK, NUMBERS, TEXTS, WORDS, of_bytes, of_json, of_tree

DTYPES = "F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL F8_E4M3 F8_E5M2 F8_E8M0 F4 C64 U16 X f32".split()
FLOATS = (b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x01\x00\x00\x00", b"\xff\xff\x7f\x7f", b"\x00\x00\x00\x80")
"""float32: NaN, infinity, the smallest, the largest, -0."""


def of_safetensors(rng: Random, data: bytes) -> bytes:
    """A safetensors file with its header, offsets, types, metadata, length or numbers changed."""
    length = int.from_bytes(data[:8], "little")
    try:
        header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    except (ValueError, RecursionError):
        return of_bytes(rng, data)
    keys = [key for key in header if key != "__metadata__"]
    match rng.randrange(16):
        case 0:
            return of_bytes(rng, data)
        case 1:
            return framed(of_bytes(rng, data[8 : 8 + length]), body)
        case 2:
            return framed(
                data[8 : 8 + length], body, rng.choice((0, 1, length - 1, length + 1, 10**8, 10**8 + 1, 1 << 63))
            )
        case 3:
            return framed(data[8 : 8 + length], rng.choice((body[:-1], body + b"\0", b"", body * 2)))
        case 4:
            return framed(of_json(rng, data[8 : 8 + length]), body)
        case 5 | 6 | 7 | 8:
            said = header.get("__metadata__", {"format": "pt"})
            header["__metadata__"] = _of_metadata(rng, said if isinstance(said, dict) else {})
        case 9 | 10 if keys:
            _of_entry(rng, header, rng.choice(keys))
        case 11 if keys:
            key = rng.choice(keys)
            header[_renamed(rng, key)] = header.pop(key)
        case 12 if len(keys) > 1:
            one, other = rng.sample(keys, 2)
            header[one], header[other] = header[other], header[one]
        case 13 if keys and rng.random() < 0.3:
            entry = json.dumps({rng.choice(keys): header[keys[0]]})[1:-1]
            return framed(data[8 : 8 + length].rstrip()[:-1] + b", " + entry.encode() + b"}", body)
        case 13 if keys:
            del header[rng.choice(keys)]  # its bytes become a hole
        case 14 if len(body) >= 4:
            at = rng.randrange(0, len(body) - 3, 4)
            body = body[:at] + rng.choice(FLOATS) * rng.choice((1, 1, 8)) + body[at + 4 :]
            body = body[: len(data) - 8 - length]
        case _ if keys:
            for key in rng.sample(keys, min(len(keys), 4)):
                header[_renamed(rng, key)] = header.pop(key)
    return framed(json.dumps(header).encode("utf-8", "surrogatepass"), body)


def _of_metadata(rng: Random, said: dict[str, Any]) -> dict[str, Any]:
    """Metadata with texts changed, JSON in them as JSON; now and then with a value that is no text."""
    new = of_tree(rng, said)
    if not isinstance(new, dict):
        return {"format": "pt"}
    texts = {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in new.items()} if rng.random() < 0.9 else new
    if rng.random() < 0.3:
        texts[rng.choice(WORDS)] = rng.choice((*TEXTS, *map(repr, NUMBERS)))
    return texts


def _of_entry(rng: Random, header: dict[str, Any], key: str) -> None:
    entry = dict(header[key])
    match rng.randrange(5):
        case 0:
            entry["dtype"] = rng.choice(DTYPES)
        case 1 if isinstance(entry.get("shape"), list):
            shape = list(entry["shape"])
            changes = (
                shape[::-1],
                [*shape, 1],
                shape[:-1],
                [*shape, 0],
                [1, *shape],
                [rng.choice(NUMBERS), *shape[1:]],
            )
            entry["shape"] = rng.choice(changes)
        case 2 if isinstance(entry.get("data_offsets"), list):
            start, end = entry["data_offsets"]
            entry["data_offsets"] = rng.choice(
                ([end, start], [start, end + 4], [0, end - start], [start - 1, end], [start])
            )
        case 3:
            entry = of_tree(rng, entry)
        case 4:
            header[_renamed(rng, key)] = entry
    header[key] = entry


def _renamed(rng: Random, key: str) -> str:
    parts = key.split(".")
    n = rng.randrange(len(parts))
    words = ("to_q", "to_k", "lora_A", "lora_B", "weight", "bias", "alpha", "lora_magnitude_vector", "dora_scale", "0",
        "1",
             "diff", "lora_mid", "hada_w1_a", "lokr_w1", "lora_te", "x", "99", "")  # fmt: skip
    match rng.randrange(4):
        case 0:
            parts[n] = rng.choice(words)
        case 1:
            del parts[n]
        case 2:
            parts.insert(n, rng.choice(words))
        case 3:
            return rng.choice(
                (key.upper(), key + key, rng.choice(TEXTS), f"lora_te_{key}", f"model.{key}", f"{key}.alpha")
            )
    return ".".join(parts)


# pickles

_TENSOR = call("torch._utils._rebuild_tensor_v2", persistent(("storage", named("torch.FloatStorage"), "0", "cpu", 1)),
    0, (1,), (1,), False, {})  # fmt: skip
FRAGMENTS = (
    *b"( t ] } N ) 0 1 2 a e d s u l \x85 \x86 \x87 \x88 \x89 \x81 \x92 \x93 \x94 \x90 \x91 \x8f b o R Q".split(),
    b"\x80\x05", b"\x95\x00\x00\x00\x00\x00\x00\x00\x00", b"q\x00", b"h\x00", b"q\xff", b"h\xff", b"r\xff\xff\xff\x7f",
    b"j\xff\xff\xff\x7f", b"p9\n", b"g9\n", b"I1\n", b"I01\n", b"L1L\n", b"F1.5\n", b"S'x'\n", b"Vx\n", b"T\x01\0\0\0x",
    b"U\x01x", b"B\x01\0\0\0x", b"C\x01x", b"\x8e\x01\0\0\0\0\0\0\0x", b"\x8d\x01\0\0\0\0\0\0\0x", b"\x8c\x01x",
    b"\x96\x01\0\0\0\0\0\0\0x", b"\x97", b"\x98", b"\x82\x01", b"\x83\x01\x00", b"\x84\x01\0\0\0", b"Px\n",
    f"c{MARK}\nrun\n".encode(), f"i{MARK}\nrun\n".encode(), b"cos\nsystem\n", b"cbuiltins\neval\n",
    b"ccopyreg\n_reconstructor\n",
    b"ccollections\nOrderedDict\n", b"ctorch\nSize\n", b"ctorch._utils\n_rebuild_tensor\n", b"ctorch\nfloat8_e4m3fn\n",
    b"ctorch._utils\n_rebuild_tensor_v3\n", b"ctorch._utils\n_rebuild_parameter\n", b"ctorch\nHalfStorage\n",
    b"ctorch._utils\n_rebuild_parameter_with_state\n", b"ctorch.serialization\n_get_layout\n", b"c a\n b\n", b"c\n\n",
    push("module"), push(-1), push(1 << 70), push(2.5), push((1, 2)), push([]), push({"a": 1}), push({"module": {}}),
    _TENSOR.code,
    persistent(("storage", named("torch.X"), "0", "cpu", 1)).code, persistent("x").code, call("torch.Size", (1,
        2)).code,
    call("collections.OrderedDict", [("a", 1), (2, 3)]).code, call("collections.OrderedDict", 1).code,
)  # fmt: skip
"""Whole opcodes, and values in opcodes."""


def of_pickle(rng: Random, data: bytes) -> bytes:
    """A pickle with opcodes taken away, doubled, exchanged, put in, or given another argument."""
    if rng.random() < 0.15:
        return of_bytes(rng, data)
    try:
        starts = [at for _, _, at in pickletools.genops(data)]
    except Exception:  # it was changed before
        return of_bytes(rng, data)
    codes = [data[start:end] for start, end in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(rng.randint(1, 3)):
        n = rng.randrange(len(codes))
        match rng.randrange(7):
            case 0:
                del codes[n]
            case 1:
                codes[n:n] = codes[n : n + rng.randint(1, 6)] * rng.choice((1, 1, 1, 50))
            case 2:
                codes[n] = rng.choice(FRAGMENTS)
            case 3:
                codes.insert(n, rng.choice(FRAGMENTS))
            case 4:
                m = rng.randrange(len(codes))
                codes[n], codes[m] = codes[m], codes[n]
            case 5:
                codes[n] = _argued(rng, codes[n])
            case 6:
                codes.insert(n, rng.choice((b"(", b"]", b"}")) * rng.choice((1, 10, 1100)))
        if not codes:
            break
    return b"".join(codes)


def _argued(rng: Random, code: bytes) -> bytes:
    """An opcode of an integer or a text with another one."""
    match code[:1]:
        case b"K" | b"M" | b"J" | b"\x8a":
            number = rng.choice([n for n in NUMBERS if isinstance(n, int)])
            return rng.choice(
                (b"K" + bytes([number % 256]), b"J" + struct.pack("<i", number % (1 << 31)), push(number))
            )
        case b"X" | b"\x8c" | b"U":
            return push(rng.choice((*TEXTS, *WORDS, "cpu", "storage", "0")))
        case b"c":
            return rng.choice([code for code in FRAGMENTS if code[:1] == b"c"])
    return code[:1] + of_bytes(rng, code[1:])


# torch archives


def records(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def zipped(items: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that come twice
        for name, data in items:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return out.getvalue()


def of_torch(rng: Random, data: bytes) -> bytes:
    """A torch archive with its pickle, records, names or structure changed."""
    kind = rng.randrange(12)
    try:
        held = list(records(data).items())
    except Exception:  # it was changed before
        return of_bytes(rng, data)
    names = [name for name, _ in held]
    code = next((n for n, name in enumerate(names) if name.endswith("data.pkl")), None)
    if kind == 0 or code is None:
        return of_bytes(rng, data)
    if kind == 1:  # the tables at the end and before each record
        at = rng.choice([n for n in range(len(data) - 3) if data[n : n + 2] == b"PK"])
        return data[:at] + of_bytes(rng, data[at : at + 46]) + data[at + 46 :]
    n = rng.randrange(len(held))
    if kind <= 7:
        held[code] = names[code], of_pickle(rng, held[code][1])
    elif kind == 8:
        folder = names[code].removesuffix("data.pkl")
        odd = ("data.pkl", "data/0", "byteorder", "../x", "/x", "a\\b", "C:x", "", "x" * 300)
        held[n] = rng.choice((folder, folder, "", "other/")) + rng.choice(odd), held[n][1]
    elif kind == 9:
        held[n] = names[n], rng.choice((b"", held[n][1][:-1], held[n][1] * 2, b"big", b"little\n"))
    elif kind == 10:
        held = rng.choice((held[:n] + held[n + 1 :], [*held, held[n]], held[::-1], [*held, ("x/byteorder", b"big")]))
    return zipped(held, rng.choice((0, 0, 0, 0, 0, 0, zipfile.ZIP_DEFLATED)))
