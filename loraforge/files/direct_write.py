"""Writes large files past the page cache, behind the caller's back.

Gigabytes through the page cache cost a system more time than computing them, and push out what else is cached.
Where there are no such writes, the same goes through the cache.
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
"""Bytes written at once; a multiple of every block size."""
_ALIGNED = 4096
_WRITERS = 2


class _Slot(NamedTuple):
    """What one piece needs while it is under way: memory at a page's beginning, and a place in the file of its own."""

    file: io.FileIO
    piece: mmap.mmap


class DirectFile:
    """A file that is written from its beginning to its end. Raises OSError when it cannot be written."""

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
        """Give the filled piece to a writer, and make sure that there is an empty one."""
        self._begun.append(self._pool.submit(self._put, self._free.pop(), size, self._written))
        self._written, self._filled = self._written + self._filled, 0
        if not self._free:
            self._free.append(self._begun.popleft().result())

    def _put(self, slot: _Slot, size: int, place: int) -> _Slot:
        slot.file.seek(place)
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
    """The file, past the cache where its disk can do that."""
    direct = getattr(os, "O_DIRECT", 0)
    try:
        return io.FileIO(path, "r+", opener=lambda name, flags: os.open(name, flags | direct))
    except OSError:
        return io.FileIO(path, "r+")
