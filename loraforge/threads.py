"""Work on several modules at once, results in order, without threads and memory getting in each other's way."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TypeVar


def settle_process() -> None:
    """Tune this process for many short-lived arrays on threads of our own. For the command line, whose process it is.

    BLAS threads on top of ours wait for each other in busy loops: ten times slower on a loaded machine.
    glibc gives every freed array back to the system and faults it in again: half of the CPU time.
    Nothing here makes cycles worth looking for, and a checkpoint's pickle makes many small objects.
    Must be called before numpy is imported.
    """
    gc.disable()
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are taken away
    for library in ("OPENBLAS", "MKL", "OMP"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library than glibc
            libc = ctypes.CDLL(None)
            libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
            libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD


T = TypeVar("T")
R = TypeVar("R")


AHEAD = 16
"""Items in work or waiting to be taken: enough to keep the threads busy, few enough to fit in memory."""


@contextmanager
def in_order(function: Callable[[T], R], items: Iterable[T], ahead: int = AHEAD) -> Iterator[Iterator[R]]:
    """The results of `map` on threads, in order. Work begins at once, and none is left behind the block.

    numpy lets go of the lock while it computes, so that threads are enough.
    """
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 4))
    waiting = iter(items)
    begun: deque[Future[R]] = deque(pool.submit(function, item) for item in islice(waiting, ahead))

    def results() -> Iterator[R]:
        while begun:
            yield begun.popleft().result()
            begun.extend(pool.submit(function, item) for item in islice(waiting, 1))

    try:
        yield results()
    finally:
        pool.shutdown(cancel_futures=True)
