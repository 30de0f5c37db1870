"""Which formats there are, and how the one for a source is found."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pluggy

from loraforge import hookspecs
from loraforge.errors import FileError, FormatError, command
from loraforge.formats import Choice, Format, Found, builtin
from loraforge.source import open_tensors
from loraforge.tensorfile import TensorFile


@cache
def formats() -> Mapping[str, Format]:
    """Every format by name."""
    manager = pluggy.PluginManager("loraforge")
    manager.add_hookspecs(hookspecs)
    manager.register(builtin, name="loraforge")
    return {entry.name: entry for batch in manager.hook.loraforge_formats() for entry in batch}


def named(name: str) -> Format:
    """The format of that name. Raises FormatError with the names there are."""
    if name not in formats():
        raise FormatError(
            f"there is no format {name!r}; there are {', '.join(formats())}.", command("loraforge", "formats")
        )
    return formats()[name]


def locate(source: Path, name: str | None, choice: Choice) -> tuple[Format | None, Found, TensorFile]:
    """The format of a source, the file in it that holds the tensors, and that file, opened.

    The format is the one called `name`, else the only one that claims the file; None where none does.
    Raises FileError or FormatError when nothing can be opened or several formats claim the file.
    """
    try:
        source.lstat()
    except (OSError, ValueError) as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be looked at ({error})"
        raise FileError(f"{source} {reason}.", command("ls", "-l", source.parent)) from error
    if not (source.is_file() or source.is_dir()):
        raise FileError(f"{source} is neither a file nor a folder.", command("ls", "-l", source))
    if source.is_file() and (choice.iteration is not None or choice.ema):
        flag = "--ema" if choice.ema else "--iteration"
        raise FileError(
            f"{flag} chooses among the checkpoints of a folder, and {source} is one file.",
            command("ls", "-l", source.absolute().parent),
        )
    wanted = [named(name)] if name else list(formats().values())
    found, faults = list[tuple[Format, Found]](), list[FileError]()
    for entry in wanted:
        try:
            found += [(entry, place)] if (place := entry.find(source, choice)) else []
        except FileError as error:  # it is a folder of that kind, and has what another wants or nobody
            faults.append(error)
    if not found and faults:
        raise faults[0]
    if not found:
        what = f"no {name} checkpoint" if name else "nothing that any format reads"
        below = [
            child for child in sorted(source.iterdir()) if child.is_dir() and any(_finds(f, child) for f in wanted)
        ]
        remedies = [command("loraforge", "inspect", child) for child in below[:3]]
        raise FileError(f"{source} has {what} in it.", *(remedies or [command("ls", "-l", source)]))
    opened = {place.path: open_tensors(place.path) for _, place in found}
    claiming = [(entry, place) for entry, place in found if name or entry.claims(opened[place.path][0])]
    if len(claiming) > 1:
        names = " and ".join(f"{place.path.name} ({entry.name})" for entry, place in claiming)
        each = [command("loraforge", "inspect", "--from", entry.name, place.path) for entry, place in claiming]
        if len({place.path for _, place in claiming}) == 1:
            kinds = " and ".join(entry.name for entry, _ in claiming)
            path = claiming[0][1].path
            raise FormatError(f"{path} holds names of several formats, {kinds}: take those of one out.", *each)
        raise FormatError(f"{source} holds {names}: give the file, and its format with --from.", *each)
    form, place = claiming[0] if claiming else (None, found[0][1])
    file, warnings = opened[place.path]
    return form, Found(place.path, place.run, (*place.notes, *warnings)), file


def _finds(entry: Format, folder: Path) -> bool:
    try:
        return entry.find(folder, Choice()) is not None
    except FileError:
        return True  # a folder of that kind, with a fault of its own to tell
