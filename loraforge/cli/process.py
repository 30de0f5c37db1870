"""The process of the command line: memory, threads and signals."""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import suppress


def settle_process() -> None:
    """Tune this process for many short-lived arrays on our own threads. Only for the command line, which owns it.

    BLAS threads on top of ours wait in busy loops: ten times slower on a loaded machine. glibc returns every freed
    array to the system and faults it in again: half of the CPU time. Nothing here makes reference cycles that matter,
    and a checkpoint's pickle makes many small objects, which the garbage collector would visit again and again.
    Must be called before numpy is imported.
    """
    gc.disable()
    with suppress(ValueError):  # not the main thread
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    for library in ("OPENBLAS", "MKL", "OMP"):
        os.environ.setdefault(f"{library}_NUM_THREADS", "1")
    if sys.platform == "linux":
        import ctypes

        with suppress(AttributeError, OSError):  # the C library is not glibc
            libc = ctypes.CDLL(None)
            libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
            libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD
