"""Watches one execution: what it raises, how long it takes, its memory, and what it asks the system for."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.mutate import MARK
from loraforge.scale.peft_config import PROGRAM

SECONDS = 5.0
"""Of CPU for one execution."""
GROWTH, TIMES = 64 << 20, 10
"""Bytes of memory that one may take, and how many times the bytes of its input more."""
_RUNS = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "pickle.find_class", "ctypes.dlopen")
_WRITES = {"os.mkdir": (0,), "os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,), "os.link": (1,),
    "os.symlink": (1,),
           "os.chmod": (0,), "os.chown": (0,), "os.truncate": (0,), "shutil.rmtree": (0,)}  # fmt: skip
"""Events of the interpreter that change the disk -> which of their values are the paths that are changed."""
_OPENED_TO_WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class HangError(BaseException):
    """It took far longer than it may. No handler of ours catches it."""


class Watch:
    """What happens from its making on is watched; made once in a process, as an audit hook stays."""

    def __init__(self, root: Path, *, hosts: tuple[str, ...] = ()) -> None:
        """`root`: the folder below which files may be written. `hosts`: the addresses that may be connected to."""
        self.root, self.hosts, self.on, self.seen = os.path.realpath(root), hosts, False, list[str]()
        sys.addaudithook(self._event)
        signal.signal(signal.SIGALRM, _too_long)
        signal.signal(signal.SIGPROF, _too_long)

    def _event(self, event: str, values: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event in _RUNS and values != (None,):  # dlopen of this process itself, by our own map of files
            self.seen.append(f"{event} {values!r:.100}")
        elif event == "subprocess.Popen":
            if list(values[1]) != [sys.executable, "-I", "-S", "-c", PROGRAM]:  # ours, which matches patterns
                self.seen.append(f"{event} {values!r:.100}")
        elif event in ("import", "compile", "exec"):
            if MARK in repr(values[:2]):
                self.seen.append(f"{event} {values!r:.100}")
        elif event == "open":
            if (values[2] or 0) & _OPENED_TO_WRITE:
                self._written(event, values[0])
        elif event in _WRITES:
            for place in _WRITES[event]:
                self._written(event, values[place])
        elif event == "socket.connect" and not (isinstance(values[1], tuple) and values[1][0] in self.hosts):
            self.seen.append(f"{event} {values[1]!r:.100}")

    def _written(self, event: str, path: Any) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            whole = os.path.abspath(os.fsdecode(path))
            if not (whole.startswith(self.root + os.sep) or whole == os.devnull):
                self.seen.append(f"{event} {whole}")

    def faults(self, call: Callable[[], object], size: int) -> list[str]:
        """Run `call` on an input of `size` bytes. Returns what was wrong, one line each; empty if nothing was."""
        self.seen, wrong = [], list[str]()
        before, began = _memory(reset=True), sum(os.times()[:4])
        signal.setitimer(signal.ITIMER_PROF, 4 * SECONDS)
        signal.setitimer(signal.ITIMER_REAL, 40 * SECONDS)  # the machine may be shared
        self.on = True
        try:
            call()
        except (Exception, HangError) as error:
            wrong.append(signature(error))
        finally:
            self.on = False
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
        if (took := sum(os.times()[:4]) - began) > SECONDS:
            wrong.append(f"hang: {took:.0f} s of CPU")
        if (grown := _memory() - before) > GROWTH + TIMES * size:
            wrong.append(f"memory: {grown >> 20} MB for {size:,} bytes")
        return wrong + self.seen


def _too_long(*_: object) -> None:
    raise HangError("stopped")


def signature(error: BaseException) -> str:
    """An exception and where in loraforge it came from: two findings with the same are one."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}loraforge{os.sep}" in frame.filename] or frames[-1:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(ours[-3:]))
    return f"{type(error).__name__} at {places}: {str(error)[:120]!r}"


def _memory(*, reset: bool = False) -> int:
    """Bytes: what the process has now, from where its peak is counted anew (`reset`), or that peak; 0 if unknown."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(status.partition("VmRSS:" if reset else "VmHWM:")[2].split()[0]) << 10


def now() -> float:
    """Seconds of CPU that this process and its children took."""
    return time.process_time() + sum(os.times()[2:4])
