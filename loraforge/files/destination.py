"""Decides where a result is written, and makes it appear there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from loraforge.errors import OutputError, Try, adding
from loraforge.files.neighbours import TENSORS


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
    if file.exists() and not force:
        other = file.with_stem(f"{file.stem}-2") if len(chosen.names) == 1 else _beside(chosen)
        remedies = adding("--force", why="replace it"), adding("-o", other, why="another name")
        raise OutputError(f"{file} exists.", *remedies)


def _beside(chosen: Destination) -> Path:
    return chosen.folder.with_name(f"{chosen.folder.name}-2")


@contextmanager
def replacing(target: Destination, nbytes: int, *, force: bool = True) -> Iterator[Path]:
    """A temporary folder; its files move to `target` if the block succeeds, and are removed if it raises.

    A new folder appears in one step. In a folder that exists, each file is replaced in one step, the tensor
    file first. Raises OutputError if the disk cannot be written or has less than `nbytes` left, or if one of
    the files has appeared meanwhile (unless `force`).
    """
    folder, names, first = target.folder, target.names, target.file
    temporary = (folder if folder.exists() else folder.parent) / f".{os.urandom(8).hex()}.part"
    made: list[Path] = []
    try:
        made = [above for above in temporary.parents if not above.exists()]
        temporary.mkdir(parents=True)
        free = shutil.disk_usage(temporary).free
        if free < nbytes:
            text = f"{first} needs {nbytes:,} bytes, and {free:,} are free on its disk."
            raise OutputError(text, _elsewhere(first.name))
        yield temporary
        for name in names:
            with (temporary / name).open("rb+") as stream:
                os.fsync(stream.fileno())
        for name in names:
            _check_free(folder / name, target, force=force)
        if folder.exists():
            for name in names:
                file = folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                (temporary / name).replace(file)
                sync_folder(file.parent)
        else:
            temporary.replace(folder)
        made = []
        sync_folder(folder)
        sync_folder(folder.parent)
    except (OSError, RecursionError) as error:
        raise _cannot_be_written(first, error, first.name) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for above in made:
            with suppress(OSError):
                above.rmdir()  # only if empty


def _elsewhere(name: str) -> Try:
    return adding("-o", Path.home() / Path(name).name[-100:], why="another place")


def _cannot_be_written(path: Path, error: Exception, name: str) -> OutputError:
    short = str(path) if len(str(path)) <= 200 else f"...{str(path)[-200:]}"
    reason = getattr(error, "strerror", None) or error
    return OutputError(f"{short} cannot be written: {reason}.", _elsewhere(name))


def sync_folder(folder: Path) -> None:
    """Write the entries of a folder to the disk."""
    if os.name == "posix":  # Windows cannot open a folder; there the rename itself is journalled
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
