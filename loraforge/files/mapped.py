"""Files mapped into memory, and what becomes of a reader whose file another program changes meanwhile.

A POSIX system kills a reader of pages that a file no longer has (SIGBUS). Here such pages become not-a-numbers, in
every floating-point type, and `steady` refuses what was computed of them. Windows truncates no file that is mapped.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from loraforge.errors import FileError, adding
from loraforge.text import megabytes

_FILLING = 1 << 24
"""Bytes of not-a-numbers that are mapped as often as is needed."""

State = tuple[int, int, int]
"""Size, time of the last change, and number of a file."""


def state_of(file: Path | int) -> State:
    """The state of a file on the disk."""
    status = os.stat(file)  # noqa: PTH116  # of a handle too
    return status.st_size, status.st_mtime_ns, status.st_ino


@dataclass(slots=True)
class _Pages:
    """What is known of a map, for as long as somebody reads it: arrays outlive the object that they were taken from."""

    path: Path
    stream: BinaryIO
    state: State
    address: int
    size: int
    limit: int
    """Where the pages begin that are the file's no more."""

    def patched(self) -> bool:
        """Whether the file was changed since the last call. Not-a-numbers are then where it has no pages any more."""
        state = state_of(self.stream.fileno())
        start = -(-state[0] // mmap.PAGESIZE) * mmap.PAGESIZE
        if state == self.state or start >= self.limit:
            return False
        with tempfile.TemporaryFile() as ones:
            ones.write(b"\xff" * _FILLING)
            ones.flush()
            for place in range(start, self.size, _FILLING):
                length, how = min(_FILLING, self.size - place), mmap.MAP_SHARED | 0x10  # MAP_FIXED
                _libc().mmap(self.address + place, length, mmap.PROT_READ, how, ones.fileno(), 0)
        self.limit = start
        return True


@dataclass(slots=True, eq=False)
class FileMap:
    """One file on the disk, mapped into memory at the first use."""

    path: Path
    absent: int = 0
    """Bytes of tensors that were not fetched from the Hub: only the header was."""
    state: State | None = None
    """The file's when its header was read; None if nobody looked."""
    _map: mmap.mmap | None = None
    _stream: BinaryIO | None = field(default=None, repr=False)

    def memory(self) -> mmap.mmap:
        """The whole file. Raises FileError if only its header was fetched, or if the file was changed since."""
        if self.absent:
            text = f"{self.path}: that stands in its tensors ({megabytes(self.absent)}); only its header was fetched."
            raise FileError(text, adding("--fetch", why="get them, into the cache of the Hub"))
        if self._map is None:
            self._stream = self.path.open("rb")
            self.state = self.state or state_of(self._stream.fileno())
            self.check()
            self._map = mmap.mmap(self._stream.fileno(), 0, access=mmap.ACCESS_READ)
            address, size = np.frombuffer(self._map, np.uint8).ctypes.data, len(self._map)
            _guard(self._map, _Pages(self.path, self._stream, self.state, address, size, size + mmap.PAGESIZE))
        self.check()
        return self._map

    def check(self) -> None:
        """Raise FileError if the file was changed since its header was read."""
        if self._stream is not None and state_of(self._stream.fileno()) != self.state:
            raise changed_meanwhile(self.path)

    def release(self, *span: int) -> None:
        """Release the pages read so far: all, or those of a span (first byte, length)."""
        if self._map is not None and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED, *span)


def changed_meanwhile(path: Path) -> FileError:
    return FileError(f"{path} changed while it was read: is training still running? Take a file that is whole.")


@contextmanager
def steady(*maps: FileMap) -> Iterator[None]:
    """Raises FileError at the end of the block, in place of any other error, if one of the files was changed."""
    with ExitStack() as checks:
        for part in maps:
            checks.callback(part.check)
        yield


_MAPS = weakref.WeakKeyDictionary[mmap.mmap, _Pages]()
_BEFORE: list[int | None] = []
"""The handler that was there before ours; empty if ours is not there."""
_THREADS = 100
"""After so many faults at which nothing of ours is missing, they are of somebody else."""
_idle = [0]


def _guard(memory: mmap.mmap, pages: _Pages) -> None:
    """From now on, a page that the file has no more ends in an error instead of the end of the process."""
    _MAPS[memory] = pages
    if not _BEFORE and hasattr(signal, "SIGBUS"):
        with suppress(OSError, AttributeError):  # no such C library: as without us
            _BEFORE.append(_libc().signal(signal.SIGBUS, ctypes.cast(_OURS, ctypes.c_void_p)))


def _fault(_: int) -> None:
    """Called in the thread that read a page which is not there; on return it reads the page again."""
    with suppress(Exception):
        _idle[0] = 0 if sum(pages.patched() for pages in list(_MAPS.values())) else _idle[0] + 1
        if _idle[0] < _THREADS:  # several can be at the same page
            return
    if _BEFORE:  # the fault of somebody else, who gets what they would get without us
        _libc().signal(signal.SIGBUS, _BEFORE.pop())


_OURS = ctypes.CFUNCTYPE(None, ctypes.c_int)(_fault)


def _libc() -> Any:
    libc, number = ctypes.CDLL(None), ctypes.c_int
    libc.mmap.restype = libc.signal.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, number, number, number, ctypes.c_long)
    libc.signal.argtypes = (number, ctypes.c_void_p)
    return libc
