"""Where a result goes, and that it appears there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loraforge.errors import OutputError, Try, command


def destination(out: Path | None, default: str, file_name: str, source: Path, *, force: bool) -> Path:
    """The file to write: `out` itself when it ends in .safetensors, else `file_name` in that folder.

    Raises OutputError when it exists (unless `force`), cannot exist, lies inside the source folder, or
    has the suffix of another kind of file.
    """
    place = out or Path(default)
    if place.suffix in (".pt", ".pth", ".bin", ".ckpt") and not place.is_dir():
        right = place.with_suffix(".safetensors")
        raise OutputError(f"{place}: what is written is a safetensors file.", Try(command("-o", right)))
    file = place if place.suffix == ".safetensors" else place / file_name
    try:
        whole, origin = file.resolve(), source.resolve()
        if whole == origin or (source.is_dir() and whole.is_relative_to(origin)):
            beside = Path(os.path.relpath(origin.parent)) / default
            raise OutputError(
                f"{file} lies inside the source {source}, which is left as it is.",
                Try(command("-o", beside), "beside it") if source.is_dir() else _elsewhere(file_name),
            )
        if file.is_dir():
            raise OutputError(f"{file} is a folder, not a file.", _elsewhere(file_name))
        if file.exists() and not force:
            other = file.with_stem(f"{file.stem}-2")
            raise OutputError(
                f"{file} exists.", Try("--force", "replace it"), Try(command("-o", other), "another name")
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise OutputError(f"{_short(file)} cannot be written: {_reason(error)}.", _elsewhere(file_name)) from error
    return file


@contextmanager
def replacing(file: Path, nbytes: int) -> Iterator[Path]:
    """A temporary path beside `file` that takes its place when the block ends well, and vanishes when it does not.

    Raises OutputError when the folder cannot be written or `nbytes` do not fit on the disk.
    """
    temporary = file.with_name(f".{os.urandom(8).hex()}.part")
    made: list[Path] = []
    try:
        made = [folder for folder in (file.parent, *file.parent.parents) if not folder.exists()]
        file.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(file.parent).free
        if free < nbytes:
            raise OutputError(
                f"{file} needs {nbytes:,} bytes, and {free:,} are free on its disk.", _elsewhere(file.name)
            )
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(file)
        made = []
        _sync_folder(file.parent)
    except (OSError, RecursionError) as error:
        raise OutputError(f"{_short(file)} cannot be written: {_reason(error)}.", _elsewhere(file.name)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):
                folder.rmdir()  # only if empty


def _elsewhere(name: str) -> Try:
    return Try(command("-o", Path.home() / name[-100:]), "another place")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _short(file: Path) -> str:
    return str(file) if len(str(file)) <= 200 else f"...{str(file)[-200:]}"


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # Windows cannot open a folder; there the rename itself is journalled
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
