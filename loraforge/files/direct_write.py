"""Writes large files past the page cache, on threads.

Writing gigabytes through the page cache takes longer than computing them, and evicts what else is cached.
On a system without such writes, the same bytes are written through the cache.
"""

from __future__ import annotations

import io
import mmap
import os
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Self

from loraforge.files.tensorfile import Chunk

PIECE = 1 << 24
"""Bytes per write; a multiple of every block size."""
_ALIGNED = 4096
_WRITERS = 2


class _Slot(NamedTuple):
    """What one piece needs while it is written: page-aligned memory, and a file handle with its own position."""

    file: io.FileIO
    piece: mmap.mmap


class DirectFile:
    """A file that is written from beginning to end. Raises OSError if it cannot be written."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.write_bytes(b"")
        self._free = [_Slot(_opened(path), mmap.mmap(-1, PIECE)) for _ in range(_WRITERS + 2)]
        self._all = tuple(self._free)
        self._pool = ThreadPoolExecutor(_WRITERS)
        self._begun: deque[Future[_Slot]] = deque()
        self._filled, self._written = 0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._end()
        finally:
            self._pool.shutdown(cancel_futures=True)
            for slot in self._all:
                slot.file.close()

    def write(self, content: Chunk) -> None:
        """Append bytes."""
        left = memoryview(content).cast("B")
        while left:
            count = min(PIECE - self._filled, len(left))
            self._free[-1].piece[self._filled : self._filled + count] = left[:count]
            self._filled, left = self._filled + count, left[count:]
            if self._filled == PIECE:
                self._send(PIECE)

    def _send(self, size: int) -> None:
        """Give the filled piece to a writer, and wait for an empty one if none is left."""
        self._begun.append(self._pool.submit(self._put, self._free.pop(), size, self._written))
        self._written, self._filled = self._written + self._filled, 0
        if not self._free:
            self._free.append(self._begun.popleft().result())

    def _put(self, slot: _Slot, size: int, position: int) -> _Slot:
        slot.file.seek(position)
        if slot.file.write(memoryview(slot.piece)[:size]) != size:
            raise OSError("the disk took a part of what it was given: it is full")
        return slot

    def _end(self) -> None:
        size = self._written + self._filled
        if self._filled:
            rest = -self._filled % _ALIGNED
            self._free[-1].piece[self._filled : self._filled + rest] = bytes(rest)
            self._send(self._filled + rest)
        for piece in self._begun:
            piece.result()
        os.truncate(self._path, size)


def _opened(path: Path) -> io.FileIO:
    """The file, opened for writes past the cache if its disk supports them."""
    direct = getattr(os, "O_DIRECT", 0)
    try:
        return io.FileIO(path, "r+", opener=lambda name, flags: os.open(name, flags | direct))
    except OSError:
        return io.FileIO(path, "r+")
