"""Writes large files past the page cache, on threads.

Writing gigabytes through the page cache takes longer than computing them, and evicts what else is cached.
On a system without such writes, the same bytes are written through the cache.
"""

from __future__ import annotations

import io
import mmap
import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from loraforge.files.tensorfile import Chunk
from loraforge.threads import in_order

PIECE = 1 << 24
"""Bytes per write; a multiple of every block size."""
_ALIGNED = 4096
_WRITERS = 2


class _Slot(NamedTuple):
    """What one piece needs while it is written: page-aligned memory, and a file handle with its own position."""

    file: io.FileIO
    piece: mmap.mmap


def write_direct(path: Path, chunks: Iterable[Chunk]) -> None:
    """Write bytes to a file, in order. Raises OSError if they cannot be written."""
    path.write_bytes(b"")
    slots = [_Slot(_opened(path), mmap.mmap(-1, PIECE)) for _ in range(_WRITERS + 2)]
    free, size = deque(slots), 0

    def pieces() -> Iterator[tuple[_Slot, int, int]]:
        """Filled slots, their positions in the file, and their sizes: the last is filled up to a whole block."""
        nonlocal size
        filled = 0
        for left in (memoryview(chunk).cast("B") for chunk in chunks):
            while left:
                count = min(PIECE - filled, len(left))
                free[-1].piece[filled : filled + count] = left[:count]
                filled, size, left = filled + count, size + count, left[count:]
                if filled == PIECE:
                    yield free.pop(), size - filled, filled
                    filled = 0
        if filled:
            rest = -filled % _ALIGNED
            free[-1].piece[filled : filled + rest] = bytes(rest)
            yield free.pop(), size - filled, filled + rest

    try:
        with in_order(_put, pieces(), _WRITERS + 1) as written:
            for slot in written:
                free.append(slot)
    finally:
        for slot in slots:
            slot.file.close()
    os.truncate(path, size)


def _put(filled: tuple[_Slot, int, int]) -> _Slot:
    slot, position, size = filled
    slot.file.seek(position)
    if slot.file.write(memoryview(slot.piece)[:size]) != size:
        raise OSError("the disk took a part of what it was given: it is full")
    return slot


def _opened(path: Path) -> io.FileIO:
    """The file, opened for writes past the cache if its disk supports them."""
    direct = getattr(os, "O_DIRECT", 0)
    try:
        return io.FileIO(path, "r+", opener=lambda name, flags: os.open(name, flags | direct))
    except OSError:
        return io.FileIO(path, "r+")
