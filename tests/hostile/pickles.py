"""Writes pickles opcode by opcode, so that a test can say anything in them, and nothing is imported to write them."""

from __future__ import annotations

import pickle
import struct
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Raw:
    """Opcodes that push one value, written as they are."""

    code: bytes


def push(value: Any) -> bytes:
    """The opcodes that put a plain value, or the Raw ones inside it, on the stack."""
    match value:
        case Raw(code):
            return code
        case None:
            return b"N"
        case bool():
            return b"\x88" if value else b"\x89"
        case int():
            number = pickle.encode_long(value)
            long = len(number) > 255
            return (b"\x8b" + struct.pack("<I", len(number)) if long else b"\x8a" + bytes([len(number)])) + number
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            text = value.encode("utf-8", "surrogatepass")
            return b"X" + struct.pack("<I", len(text)) + text
        case tuple():
            return b"(" + b"".join(map(push, value)) + b"t"
        case list():
            return b"](" + b"".join(map(push, value)) + b"e"
        case dict():
            return b"}(" + b"".join(push(part) for item in value.items() for part in item) + b"u"
    raise TypeError(type(value))


def named(dotted: str) -> Raw:
    """GLOBAL: `os.system` by module and name."""
    module, _, name = dotted.rpartition(".")
    return Raw(b"c" + module.encode() + b"\n" + name.encode() + b"\n")


def call(function: str | Raw, *arguments: Any) -> Raw:
    """REDUCE: what `function(*arguments)` gives."""
    return Raw(push(function if isinstance(function, Raw) else named(function)) + push(arguments) + b"R")


def persistent(identity: Any) -> Raw:
    return Raw(push(identity) + b"Q")


def pickled(value: Any) -> bytes:
    """A whole pickle, of protocol 2 as torch writes it; readers take the opcodes of any."""
    return b"\x80\x02" + push(value) + b"."
