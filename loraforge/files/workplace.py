"""Folders in which results are made: each is owned by the process that holds its lock, and swept once that is gone."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

LOCK = "loraforge.lock"
_OWNER = "loraforge-owner"
"""Beside the lock: the name and the boot of its machine, as a shared disk may not carry locks from one to another."""


class Lock:
    """The lock of a folder. The system drops it when the process dies."""

    def __init__(self, place: Path) -> None:
        """Open it. Raises OSError."""
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        self.handle = os.open(place / LOCK, flags, 0o600)

    def acquire(self) -> None:
        """Take it, without waiting. Raises one of `HELD` if another process has it, OSError if there are no locks."""
        if sys.platform == "win32":
            msvcrt.locking(self.handle, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        """Let go of it, if that has not been done."""
        handle, self.handle = self.handle, -1
        if handle >= 0:
            os.close(handle)


HELD = (BlockingIOError, PermissionError)
"""What the systems raise: Windows the second, and some disks."""


def take(place: Path) -> Lock | None:
    """Make the folder `place` and take its lock, without waiting; None if another process has it.

    Raises OSError if it cannot be made, or if its disk has no locks and the folder was there: nobody knows whose it is.
    """
    for _ in range(100):
        fresh = not place.is_dir()
        try:
            place.mkdir(parents=True, exist_ok=not fresh)
            lock = Lock(place)
        except FileExistsError:
            if place.is_dir():  # another process was quicker
                continue
            raise
        except FileNotFoundError:  # its owner has just removed it
            continue
        try:
            lock.acquire()
        except HELD:
            lock.release()
            return None
        except OSError as error:
            if not fresh:
                lock.release()
                text = f"its disk has no locks, and {place} exists: remove that if no loraforge is writing there"
                raise OSError(error.errno, text) from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.handle), (place / LOCK).stat()):
                return lock
        lock.release()
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(place))


def sign(place: Path) -> None:
    """Note whose folder it is; its lock is held."""
    (place / _OWNER).write_text("\n".join(_machine()), "utf-8")


def stranger(place: Path) -> str:
    """The name of the other machine on which `place` was made; empty if it was this one."""
    with suppress(OSError, UnicodeDecodeError):
        signed = (place / _OWNER).read_text("utf-8").split("\n")
        return "" if set(signed) & set(_machine()) else signed[0]
    return ""


def _machine() -> list[str]:
    """Its name, which outlives a restart, and its boot, which containers share."""
    with suppress(OSError):
        return [platform.node(), Path("/proc/sys/kernel/random/boot_id").read_text("utf-8").strip()]
    return [platform.node()]


def clear(place: Path) -> None:
    """Remove everything in a folder but its lock."""
    for child in place.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child, ignore_errors=True)
        elif child.name != LOCK:
            child.unlink()


def remove(place: Path, lock: Lock) -> None:
    """Remove a folder, its lock at the end, and let go of it."""
    try:
        with suppress(OSError):  # what is left, the next run removes
            clear(place)
            if os.name == "nt":  # which removes no open file
                lock.release()
            (place / LOCK).unlink(missing_ok=True)
            place.rmdir()
    finally:
        lock.release()


def sweep(folder: Path, pattern: str) -> None:
    """Remove the folders of killed runs in `folder`: ours, made on this machine, and locked by no one."""
    mine = getattr(os, "getuid", lambda: 0)()
    with suppress(OSError):
        for place in folder.glob(pattern):
            with suppress(OSError):
                if place.lstat().st_uid != mine or place.is_symlink() or not (place / LOCK).is_file():
                    continue
                if not stranger(place) and (lock := take(place)):
                    remove(place, lock)


@contextmanager
def temporary(kind: str) -> Iterator[Path]:
    """A folder for what nobody keeps, in the system's own. Those of killed runs are removed first."""
    sweep(Path(tempfile.gettempdir()), f"loraforge-{kind}-*")
    lock = None
    while lock is None:  # a sweep elsewhere can be quicker than our lock
        place = Path(tempfile.mkdtemp(prefix=f"loraforge-{kind}-")).resolve()
        lock = take(place)
    try:
        sign(place)
        (place / "files").mkdir()
        yield place / "files"
    finally:
        remove(place, lock)


def exchange(one: Path, other: Path) -> None:
    """Give two paths each other's content, in one step. Raises OSError where the system or the disk has no such step.

    Source: the manual page renameat2(2), RENAME_EXCHANGE.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if sys.platform == "linux" else None
    here, both = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if call is None or call(here, os.fsencode(one), here, os.fsencode(other), both):
        code = ctypes.get_errno() if call else errno.ENOSYS
        raise OSError(code, os.strerror(code), str(other))


def sync_folder(folder: Path) -> None:
    """Write the entries of a folder to the disk."""
    if os.name == "posix":  # Windows cannot open a folder; there the rename itself is journalled
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
