"""Work on several modules at once, results in order, without threads and memory getting in each other's way."""

from __future__ import annotations

import ctypes
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar


def settle_process() -> None:
    """Tune this process for many short-lived arrays on threads of our own. For the command line, whose process it is.

    BLAS threads on top of ours wait for each other in busy loops: ten times slower on a loaded machine.
    glibc gives every freed array back to the system and faults it in again: half of the CPU time.
    Must be called before numpy is imported.
    """
    for library in ("OPENBLAS", "MKL", "OMP"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # another C library than glibc
            libc = ctypes.CDLL(None)
            libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
            libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD


T = TypeVar("T")
R = TypeVar("R")


def in_order(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map` on threads, a few items ahead and no more: numpy lets go of the lock while it computes."""
    workers = min(os.cpu_count() or 1, 4)
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[R]] = deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > workers + 1:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
