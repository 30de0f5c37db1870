"""Reads logs of any size in bounded memory: the beginning, where loaders warn, and the end, where programs stop."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

MOST = 2_000_000
"""Number of characters that are kept of each end of a log."""
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive text of a log, and the number of the line that it begins in."""

    line: int
    content: str


Log = Sequence[Part]
"""The whole log as one part, or its beginning and its end."""


def log_of(text: str) -> Log:
    """The log that is this text."""
    if len(text) <= 2 * MOST:
        return (Part(1, text),)
    return Part(1, text[:MOST]), Part(1 + text.count("\n", 0, len(text) - MOST), text[-MOST:])


def read_log(stream: BinaryIO) -> Log:
    """The log in a stream: UTF-8, or the UTF-16 that PowerShell writes. Bytes that are neither are replaced."""
    data = stream.read(_CHUNK)
    name = "utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"
    decoder = codecs.getincrementaldecoder(name)("replace")
    head, tail, line, is_cut = "", "", 1, False  # `line`: the one that `tail` begins in
    while data:
        tail += decoder.decode(data)
        if not head and len(tail) > MOST:
            head, tail, line = tail[:MOST], tail[MOST:], 1 + tail.count("\n", 0, MOST)
        if (cut := len(tail) - MOST) > _CHUNK:
            line, tail, is_cut = line + tail.count("\n", 0, cut), tail[cut:], True
        data = stream.read(_CHUNK)
    tail += decoder.decode(b"", final=True)
    return (Part(1, head), Part(line, tail)) if is_cut else (Part(1, head + tail),)
