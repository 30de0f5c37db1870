"""The process of the command line: memory, threads and signals."""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import suppress


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
        import ctypes

        with suppress(AttributeError, OSError):  # another C library than glibc
            libc = ctypes.CDLL(None)
            libc.mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD
            libc.mallopt(-3, 1 << 25)  # M_MMAP_THRESHOLD
