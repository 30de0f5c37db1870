"""Where a result goes, and that it appears there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from loraforge.errors import OutputError, Try, adding
from loraforge.files.neighbours import TENSORS


@dataclass(frozen=True, slots=True)
class Destination:
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
    """The files to write: in the folder `out`, or `out` itself where it ends in .safetensors and there is one file.

    `sources` are read and left as they are. `governs` are patterns of files whose scale a written configuration
    would state too. Raises OutputError when a file exists (unless `force`), cannot exist, lies inside a
    source, or has the suffix of another kind; and when the folder holds what the configuration would speak for.
    """
    place = out or Path(default)
    try:
        found = _named(place, tuple(names), to)
        for name in found.names:
            for source in sources:
                _apart(found.folder / name, source, default, found)
            _free(found.folder / name, found, force=force)
        own = {found.folder / name for name in found.names}
        others = sorted({path for pattern in governs for path in found.folder.glob(pattern)} - own)
    except (OSError, ValueError, RuntimeError) as error:
        raise OutputError(f"{_short(place)} cannot be written: {_reason(error)}.", _elsewhere(names[0])) from error
    if others:
        raise OutputError(
            f"{found.folder} holds {others[0].relative_to(found.folder)}, for which {' and '.join(found.names[1:])} "
            "would speak too, with a scale that is not its own.",
            adding("-o", _beside(found), why="a folder of its own"),
        )
    return found


def _named(place: Path, names: tuple[str, ...], to: str) -> Destination:
    """What a destination means: a file where its suffix says so and one is enough, else a folder."""
    if place.suffix not in TENSORS or place.is_dir():
        one = len(names) == 1 and place.suffix == ".safetensors"
        return Destination(place.parent, (place.name,)) if one else Destination(place, names)
    if len(names) > 1:
        raise OutputError(f"{place}: {to} is a folder of {', '.join(names)}.", adding("-o", place.with_suffix("")))
    if place.suffix != ".safetensors":
        right = place.with_suffix(".safetensors")
        raise OutputError(f"{place}: what is written is a safetensors file.", adding("-o", right))
    return Destination(place.parent, (place.name,))


def _apart(file: Path, source: Path, default: str, found: Destination) -> None:
    whole, origin = file.resolve(), source.resolve()
    if whole != origin and not (source.is_dir() and whole.is_relative_to(origin)):
        return
    beside = Path(os.path.relpath(origin.parent)) / default
    elsewhere = _elsewhere(file.name) if len(found.names) == 1 else adding("-o", _beside(found), why="beside it")
    raise OutputError(
        f"{file} lies inside the source {source}, which is left as it is.",
        adding("-o", beside, why="beside it") if source.is_dir() else elsewhere,
    )


def _free(file: Path, found: Destination, *, force: bool) -> None:
    if file.is_dir():
        raise OutputError(f"{file} is a folder, not a file.", _elsewhere(file.name))
    if file.exists() and not force:
        other = file.with_stem(f"{file.stem}-2") if len(found.names) == 1 else _beside(found)
        raise OutputError(
            f"{file} exists.", adding("--force", why="replace it"), adding("-o", other, why="another name")
        )


def _beside(found: Destination) -> Path:
    return found.folder.with_name(f"{found.folder.name}-2")


@contextmanager
def replacing(place: Destination, nbytes: int, *, force: bool = True) -> Iterator[Path]:
    """A temporary folder whose files take their places when the block ends well, and vanish when it does not.

    A folder that is new appears in one step. In one that exists each file is replaced in one step, the
    tensor file first. Raises OutputError when the disk cannot be written or has no `nbytes` left, and,
    unless `force`, when one of the files has appeared meanwhile.
    """
    folder = place.folder
    temporary = (folder if folder.exists() else folder.parent) / f".{os.urandom(8).hex()}.part"
    made: list[Path] = []
    try:
        made = [above for above in (temporary.parent, *temporary.parent.parents) if not above.exists()]
        temporary.mkdir(parents=True)
        free = shutil.disk_usage(temporary).free
        if free < nbytes:
            raise OutputError(
                f"{place.file} needs {nbytes:,} bytes, and {free:,} are free on its disk.", _elsewhere(place.file.name)
            )
        yield temporary
        for name in place.names:
            with (temporary / name).open("rb+") as stream:
                os.fsync(stream.fileno())
        for name in place.names:
            _free(folder / name, place, force=force)
        if folder.exists():
            for name in place.names:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (temporary / name).replace(folder / name)
                sync_folder((folder / name).parent)
        else:
            temporary.replace(folder)
        made = []
        sync_folder(folder)
        sync_folder(folder.parent)
    except (OSError, RecursionError) as error:
        name = place.file.name
        raise OutputError(f"{_short(place.file)} cannot be written: {_reason(error)}.", _elsewhere(name)) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for above in made:
            with suppress(OSError):
                above.rmdir()  # only if empty


def _elsewhere(name: str) -> Try:
    return adding("-o", Path.home() / Path(name).name[-100:], why="another place")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _short(file: Path) -> str:
    return str(file) if len(str(file)) <= 200 else f"...{str(file)[-200:]}"


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk."""
    if os.name == "posix":  # Windows cannot open a folder; there the rename itself is journalled
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
