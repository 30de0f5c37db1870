"""Where a result goes, and that it appears there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from loraforge.errors import OutputError, Try, command


def destination(out: Path | None, default: str, file_name: str, source: Path, *, force: bool) -> Path:
    """The file to write: `out` itself when it ends in .safetensors, else `file_name` in that folder.

    Raises OutputError when it exists (unless `force`), or lies inside the source folder.
    """
    place = out or Path(default)
    file = place if place.suffix == ".safetensors" else place / file_name
    elsewhere = (
        Path("..") / file.name if source.is_dir() and Path.cwd().is_relative_to(source.resolve()) else Path(file.name)
    )
    if file.resolve() == source.resolve() or (source.is_dir() and file.resolve().is_relative_to(source.resolve())):
        raise OutputError(
            f"{file} lies inside the source {source}, which is never written to.",
            Try(command("-o", elsewhere), "another place"),
        )
    if file.is_dir():
        raise OutputError(f"{file} is a folder, not a file.", Try(command("-o", elsewhere), "another name"))
    if file.exists() and not force:
        raise OutputError(
            f"{file} exists.",
            Try("--force", "replace it"),
            Try(command("-o", file.with_stem(f"{file.stem}-2")), "another name"),
        )
    return file


@contextmanager
def replacing(file: Path, nbytes: int) -> Iterator[Path]:
    """A temporary path beside `file` that takes its place when the block ends well, and vanishes when it does not.

    Raises OutputError when the folder cannot be written or `nbytes` do not fit on the disk.
    """
    made = [folder for folder in (file.parent, *file.parent.parents) if not folder.exists()]
    temporary = file.with_name(f".{file.name}.{os.getpid()}.part")
    remedy = Try(command("-o", Path.home() / file.name), "another place")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(file.parent).free
        if free < nbytes:
            raise OutputError(f"{file} needs {nbytes:,} bytes, and {free:,} are free on its disk.", remedy)
        temporary.touch(exist_ok=False)
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(file)
        made = []
        _sync_folder(file.parent)
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror or error}.", remedy) from error
    finally:
        temporary.unlink(missing_ok=True)
        for folder in made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":  # Windows cannot open a folder; there the rename itself is journalled
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
