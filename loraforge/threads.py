"""Work on several modules at once, results in order, without threads and memory getting in each other's way."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import TypeVar

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
