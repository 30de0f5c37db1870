"""Makes a result of many gigabytes beside its destination: resumed after a kill, and moved there once it is whole."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from loraforge.errors import LoraforgeError, OutputError, adding
from loraforge.files.neighbours import TENSORS
from loraforge.files.workplace import LOCK, Lock, clear, exchange, remove, sync_folder, take

PROGRESS = "loraforge-progress.json"
"""In the unfinished folder: its plan, and a record of each finished file."""
_MADE = "made"
"""In it: the folder with the files of the result."""


@dataclass(slots=True)
class Partial:
    """An unfinished result. The files in `done` were whole."""

    place: Path
    plan: str
    done: dict[str, Any]

    @property
    def folder(self) -> Path:
        """Where the files are written."""
        return self.place / _MADE

    def finish(self, name: str, record: Mapping[str, Any]) -> None:
        """Put a file on the disk, and note that it is whole."""
        file = self.folder / name
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())
        self.done[name] = {**record, "size": file.stat().st_size}
        self.save()

    def save(self, **more: int) -> None:
        """Write the progress file, in one step."""
        new = self.place / f"{PROGRESS}.new"
        new.write_text(json.dumps({"plan": self.plan, "done": self.done, **more}), "utf-8")
        new.replace(self.place / PROGRESS)


def check_place(out: Path, names: Sequence[str], sources: Sequence[Path], *, force: bool) -> None:
    """Raise OutputError if `out` exists (unless `force`, and it holds nothing but `names`) or lies in a source.

    `names`: the files of the result. If the only one is called as `out`, the result is a file.
    """
    try:
        for path, source in product((out, _unfinished(out)), sources):
            _check_outside(path, source)
        _settle(out)
        _check_free(out, names, force=force)
    except (OSError, RuntimeError) as error:  # a name that is too long, or links in a circle
        elsewhere = adding("-o", Path.home() / out.name[:100], why="another place")
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{out!s:.1000} cannot be written: {reason}.", elsewhere) from error


def _unfinished(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


def is_file(out: Path, names: Sequence[str]) -> bool:
    """Whether a result of these files is a single file, not a folder."""
    return list(names) == [out.name]


def _check_outside(out: Path, source: Path) -> None:
    whole, origin = out.resolve(), source.resolve()
    if origin.is_relative_to(whole) or (source.is_dir() and whole.is_relative_to(origin)):
        beside = Path(os.path.relpath(origin.parent)) / f"{origin.stem}-fused{out.suffix}"
        text = f"{out} would replace or lie inside {source}, which is left as it is."
        raise OutputError(text, adding("-o", beside, why="beside it"))


def _check_free(out: Path, names: Sequence[str], *, force: bool) -> None:
    if out.suffix in TENSORS and not is_file(out, names):
        text = f"{out} is the name of a file, and the result is a folder of {names[0]} and more."
        raise OutputError(text, adding("-o", out.with_suffix("")))
    if not (out.exists() or out.is_symlink()):
        return
    other = adding("-o", out.with_name(f"{out.stem}-2{out.suffix}"), why="another name")
    files = {path.relative_to(out) for path in out.rglob("*") if not path.is_dir()}
    strange = sorted(map(str, files - set(map(Path, (*names, PROGRESS)))))
    if strange or out.is_symlink():
        raise OutputError(f"{out} exists and is no such model: it holds {(strange or ['a link'])[0]}.", other)
    if out.is_file() and not is_file(out, names):
        raise OutputError(f"{out} exists and is a file: the result is a folder of {names[0]} and more.", other)
    if not force:
        raise OutputError(f"{out} exists.", adding("--force", why="replace it"), other)


@contextmanager
def resumable(
    out: Path, plan: str, nbytes: Mapping[str, int], *, alone: bool = False, new: bool = False
) -> Iterator[Partial]:
    """The folder `OUT.partial`, which becomes `out` if the block succeeds, and stays if it raises.

    `plan` is a hash of everything the result depends on: files that an earlier run with the same plan finished count
    as done; with another plan the work starts again. `nbytes`: file -> its size in bytes. `alone`: the only file of
    the folder becomes `out`. `new`: refuse if `out` exists by now. Raises OutputError if another process is writing
    it, if the folder is not ours, or if the disk is too small or cannot be written.
    """
    place = _unfinished(out)
    try:
        made = [above for above in place.parents if not above.exists()]
        if place.exists() and any(place.iterdir()) and not any((place / own).exists() for own in (PROGRESS, LOCK)):
            raise OutputError(f"{place} is in the way, and loraforge did not make it. Move it away.")
        lock = take(place)
        if lock is None:
            raise OutputError(f"another loraforge is writing {out}. Wait for it.")
        try:
            if new and out.exists():
                _unmake(place, lock, made)
                text = f"{out} exists: another loraforge has just written it."
                raise OutputError(text, adding("--force", why="replace it"))
            partial = _resumed(place, plan)
            worth_keeping = bool(partial.done)
            try:
                free = shutil.disk_usage(place).free
                needed = sum(size for name, size in nbytes.items() if name not in partial.done)
                if free < needed:
                    elsewhere = adding("-o", Path.home() / out.name, why="another disk")
                    text = f"{out} needs {needed:,} bytes, and {free:,} are free on its disk."
                    raise OutputError(text, elsewhere)
                worth_keeping = False  # what fails from here on would fail again
                yield partial
            except LoraforgeError:
                if not worth_keeping:
                    _unmake(place, lock, made)
                raise
            _appear(partial, out, next(iter(nbytes)) if alone else None)
            remove(place, lock)
        finally:
            lock.release()
    except OSError as error:
        text = f"{out} cannot be written: {error.strerror or error}."
        raise OutputError(text) from error


def _unmake(place: Path, lock: Lock, made: Sequence[Path]) -> None:
    """Remove an unfinished folder, and the folders above that were made for it."""
    remove(place, lock)
    with suppress(OSError):  # another program has put a file there
        for above in made:
            above.rmdir()


def _progress(place: Path) -> dict[str, Any]:
    """What an earlier run noted; empty if it cannot be read, or is of another shape."""
    with suppress(Exception):  # the work begins anew
        progress: dict[str, Any] = json.loads((place / PROGRESS).read_bytes())
        if all(type(record["size"]) is int for record in progress.get("done", {}).values()):
            return progress
    return {}


def _resumed(place: Path, plan: str) -> Partial:
    """What an earlier run left, if it followed the same plan; else an empty folder."""
    progress, partial = _progress(place), Partial(place, plan, {})
    if progress.get("plan") == plan:
        files = ((partial.folder / name, name, record) for name, record in progress.get("done", {}).items())
        partial.done = {
            n: record for file, n, record in files if file.is_file() and file.stat().st_size == record["size"]
        }
    else:
        clear(place)
    partial.folder.mkdir(exist_ok=True)
    partial.save()
    return partial


def _appear(partial: Partial, out: Path, alone: str | None) -> None:
    """Give the name `out` to the file `alone`, or to the folder if it is None: in one step where the system has one."""
    made = partial.folder / alone if alone is not None else partial.folder
    partial.save(appears=made.stat().st_ino)
    if not out.exists():
        made.rename(out)
    else:
        try:
            exchange(made, out)
        except OSError:
            aside = partial.place / "old"
            out.rename(aside)
            made.rename(out)
    sync_folder(out.parent)


def _settle(out: Path) -> None:
    """Remove what a run left that was killed when `out` had its name already."""
    place = _unfinished(out)
    appeared = _progress(place).get("appears")
    if appeared and out.exists() and out.stat().st_ino == appeared and (lock := take(place)):
        remove(place, lock)
