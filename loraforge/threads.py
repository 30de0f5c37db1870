"""Work on several modules at once, with the results in order and a bounded amount of memory."""

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
"""How many items are in work or finished and not yet taken: enough to keep the threads busy, few enough for memory."""


@contextmanager
def in_order(function: Callable[[T], R], items: Iterable[T], ahead: int = AHEAD) -> Iterator[Iterator[R]]:
    """The results of `map` on threads, in order. Work begins at once, and is cancelled at the end of the block.

    numpy releases the interpreter's lock while it computes, so threads are enough.
    """
    pool = ThreadPoolExecutor(min(os.cpu_count() or 1, 4))
    waiting = iter(items)
    begun = deque[Future[R]]()

    def results() -> Iterator[R]:
        while begun:
            yield begun.popleft().result()
            begun.extend(pool.submit(function, item) for item in islice(waiting, 1))

    try:
        begun.extend(pool.submit(function, item) for item in islice(waiting, ahead))
        yield results()
    finally:
        pool.shutdown(cancel_futures=True)
