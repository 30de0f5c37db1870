"""Decides where a result is written, and makes it appear there whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from loraforge.errors import OutputError, Try, adding
from loraforge.files.neighbours import TENSORS
from loraforge.files.workplace import clear, exchange, remove, sign, stranger, sweep, sync_folder, take
from loraforge.text import command


class Destination(NamedTuple):
    """The files to write: their folder, and their names in it, the tensor file first."""

    folder: Path
    names: tuple[str, ...]

    @property
    def file(self) -> Path:
        return self.folder / self.names[0]


def destination(
    out: Path | None,
    default: str,
    names: Sequence[str],
    sources: Sequence[Path],
    *,
    force: bool,
    to: str = "this format",
    governs: Sequence[str] = (),
) -> Destination:
    """The files to write: in the folder `out`, or `out` itself if it ends in .safetensors and there is one file.

    `default` is the name of the result if `out` is None. `governs` are patterns of files for which a written
    configuration would state a scale too. Raises OutputError if a file exists (unless `force`), cannot exist, lies
    inside one of the `sources`, or has the suffix of another kind; or if the folder has a file that `governs` matches.
    """
    target = out or Path(default)
    try:
        chosen = _named(target, tuple(names), to)
        files = [chosen.folder / name for name in chosen.names]
        for file in files:
            for source in sources:
                _check_outside(file, source, default, chosen)
            _check_free(file, chosen, force=force)
        others = sorted({path for pattern in governs for path in chosen.folder.glob(pattern)} - set(files))
    except (OSError, ValueError, RuntimeError) as error:
        raise _cannot_be_written(target, error, names[0]) from error
    if others:
        what = f"{chosen.folder} holds {others[0].relative_to(chosen.folder)}, for which {' and '.join(names[1:])}"
        text = f"{what} would speak too, with a scale that is not its own."
        raise OutputError(text, adding("-o", _beside(chosen), why="a folder of its own"))
    return chosen


def _named(target: Path, names: tuple[str, ...], to: str) -> Destination:
    """The file `target` if its suffix says so and there is one to write, else the folder `target`."""
    if target.suffix in TENSORS and not target.is_dir():
        if len(names) > 1:
            text = f"{target}: {to} is a folder of {', '.join(names)}."
            raise OutputError(text, adding("-o", target.with_suffix("")))
        if target.suffix != ".safetensors":
            right = adding("-o", target.with_suffix(".safetensors"))
            raise OutputError(f"{target}: what is written is a safetensors file.", right)
    one = len(names) == 1 and target.suffix == ".safetensors"
    return Destination(target.parent, (target.name,)) if one else Destination(target, names)


def _check_outside(file: Path, source: Path, default: str, chosen: Destination) -> None:
    whole, origin = file.resolve(), source.resolve()
    if whole == origin or (source.is_dir() and whole.is_relative_to(origin)):
        near = Path(os.path.relpath(origin.parent)) / default if source.is_dir() else _beside(chosen)
        alone = len(chosen.names) == 1 and not source.is_dir()
        remedy = _elsewhere(file.name) if alone else adding("-o", near, why="beside it")
        raise OutputError(f"{file} lies inside the source {source}, which is left as it is.", remedy)


def _check_free(file: Path, chosen: Destination, *, force: bool) -> None:
    if file.is_dir():
        raise OutputError(f"{file} is a folder, not a file.", _elsewhere(file.name))
    nowhere = next((path for path in (file, chosen.folder) if path.is_symlink() and not path.exists()), None)
    if (file.exists() or nowhere) and not force:
        other = file.with_stem(f"{file.stem}-2") if len(chosen.names) == 1 else _beside(chosen)
        remedies = adding("--force", why="replace it"), adding("-o", other, why="another name")
        raise OutputError(f"{nowhere} exists: a link to nothing." if nowhere else f"{file} exists.", *remedies)


def _beside(chosen: Destination) -> Path:
    return chosen.folder.with_name(f"{chosen.folder.name}-2")


@contextmanager
def replacing(target: Destination, nbytes: int, *, force: bool = True) -> Iterator[Path]:
    """A temporary folder; its files move to `target` if the block succeeds, and are removed if it raises.

    A file appears in one step, and so does a new folder. Several files in a folder that exists appear in one step too
    where the system can exchange two folders (Linux); elsewhere the tensor file is missing while they are replaced: a
    reader finds the old result, the new one or none. What a killed run left there is removed. Raises OutputError if the
    disk cannot be written or has less than `nbytes` left, if another process is writing the same, or if one of the
    files has appeared meanwhile (unless `force`).
    """
    names, first, made = target.names, target.file, list[Path]()
    try:
        folder = target.folder.resolve()
        place = _place(folder, names)
        made = [above for above in place.parents if not above.exists()]
        if other := stranger(place):
            text = f"a run on {other} writes {first}, or was killed when it did: {place} is its folder."
            raise OutputError(text, Try(command("rm", "-r", place), f"if none is running on {other}"))
        lock = take(place)
        if lock is None:
            raise OutputError(f"another loraforge is writing {first}. Wait for it.")
        try:
            clear(place)
            sign(place)
            for where in (folder, folder.parent):
                sweep(where, f".{'[0-9a-f]' * 16}.part")
            free = shutil.disk_usage(place).free
            if free < nbytes:
                text = f"{first} needs {nbytes:,} bytes, and {free:,} are free on its disk."
                raise OutputError(text, _elsewhere(first.name))
            new = place / "new"
            new.mkdir()
            yield new
            for name in names:
                with (new / name).open("rb+") as stream:
                    os.fsync(stream.fileno())
            for name in names:
                _check_free(target.folder / name, target, force=force)
            _appear(new, folder, names)
            made = []
        finally:
            remove(place, lock)
    except (OSError, RecursionError) as error:
        raise _cannot_be_written(first, error, first.name) from error
    finally:
        for above in made:
            with suppress(OSError):
                above.rmdir()  # only if empty


def _place(folder: Path, names: Sequence[str]) -> Path:
    """Where the files are made: beside a folder that will be swapped or is new, else in it. One place per result."""
    inside = folder.exists() and (len(names) == 1 or not _can_move(folder))
    key = names[0] if inside else folder.name
    return (folder if inside else folder.parent) / f".{sha256(key.encode()).hexdigest()[:16]}.part"


def _can_move(folder: Path) -> bool:
    """Whether another folder can get its name: it is no disk, its parent can be written, no user stands in it."""
    try:
        stands_in_it = Path.cwd().is_relative_to(folder)
    except OSError:  # the current folder was removed
        stands_in_it = False
    return not (stands_in_it or os.path.ismount(folder)) and os.access(folder.parent, os.W_OK | os.X_OK)


def _appear(new: Path, folder: Path, names: Sequence[str]) -> None:
    """Move the files to their folder."""
    for name in names:
        keep_attributes(folder / name, new / name)
    if not folder.exists():
        new.replace(folder)
    elif len(names) == 1 or not _swap(new, folder):
        if len(names) > 1:  # no reader takes configurations for an adapter: it finds none until the last step
            (folder / names[0]).unlink(missing_ok=True)
        for name in reversed(names):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).replace(folder / name)
            sync_folder((folder / name).parent)
    sync_folder(folder)
    sync_folder(folder.parent)


def _swap(new: Path, folder: Path) -> bool:
    """Exchange two folders, after the new one has got the other files of the old; False if that cannot be."""
    if new.parent.parent != folder.parent:
        return False
    try:
        _link_rest(folder, new)
        sync_folder(new)
        exchange(new, folder)
    except OSError:
        return False
    _link_rest(new, folder)  # what was put there in between
    return True


def _link_rest(source: Path, other: Path) -> None:
    """Give the folder `other` everything in `source` that it has not, by hard links, and the same attributes."""
    if not os.access(source, os.W_OK | os.X_OK):  # it could not be removed afterwards
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(source))
    for child in source.iterdir():
        twin = other / child.name
        if child.is_dir() and not child.is_symlink():
            twin.mkdir(exist_ok=True)
            _link_rest(child, twin)
        elif not (twin.exists() or twin.is_symlink()):
            os.link(child, twin, follow_symlinks=False)
    keep_attributes(source, other)


def keep_attributes(old: Path, new: Path) -> None:
    """Give `new` the owner, the permissions and the extended attributes of `old`, if that exists, as far as one may."""
    if not old.exists():
        return
    state = old.stat()
    with suppress(OSError):  # only root may give a file away
        if hasattr(os, "chown"):
            os.chown(new, state.st_uid, state.st_gid)
    new.chmod(stat.S_IMODE(state.st_mode))
    with suppress(OSError, AttributeError):  # the disk, or the system, has none
        for key in os.listxattr(old):
            os.setxattr(new, key, os.getxattr(old, key))


def _elsewhere(name: str) -> Try:
    return adding("-o", Path.home() / Path(name).name[-100:], why="another place")


def _cannot_be_written(path: Path, error: Exception, name: str) -> OutputError:
    short = str(path) if len(str(path)) <= 200 else f"...{str(path)[-200:]}"
    reason = getattr(error, "strerror", None) or error
    return OutputError(f"{short} cannot be written: {reason}.", _elsewhere(name))
