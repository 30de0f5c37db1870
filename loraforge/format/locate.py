"""Which file of a source to read, and by which format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from loraforge.adapter.drop import left_out
from loraforge.errors import FileError, FormatError, LoraforgeError, Try
from loraforge.files import shards
from loraforge.files.opening import open_tensors, snapshot, tensor_files
from loraforge.files.tensorfile import TensorFile
from loraforge.format.not_an_adapter import taken_out
from loraforge.format.protocol import Format, Found
from loraforge.format.registry import formats, named
from loraforge.hub.address import perhaps
from loraforge.hub.folder import reach
from loraforge.scale.rule import Choice
from loraforge.text import command, listed

_MOST = 50
"""Files of a folder that are opened to see what they are."""


def locate(
    given: str | Path, name: str | None, choice: Choice, *, fetch: bool = True
) -> tuple[Format | None, Found, TensorFile]:
    """The format of a source, the file in it that holds the tensors, and that file, opened.

    The format is the one called `name`, else the only one that claims the file; None where none does. Of a file on
    the Hub the header alone is fetched where not `fetch`.
    Raises FileError or FormatError when nothing can be opened or several formats claim the file, HubError when the
    Hub has it not.
    """
    hub = reach(given)
    source, notes = (hub.source, ()) if hub else _meant(Path(given))
    _check(source, choice)
    wanted = [named(name)] if name else list(formats().values())
    found, faults = _search(wanted, source, choice)
    if not found and faults:
        raise faults[0]
    look = open_tensors if hub is None else hub.whole if fetch else hub.header
    if not found:
        only, note = hub.only() if hub else _only(wanted, source, look, bool(name))
        if only and (flag := _choosing(choice)):
            what = f"{flag} chooses among the checkpoints of a run, and {source} has none"
            raise FileError(f"{what}: it holds {only.name}.", command("loraforge", "inspect", only))
        placed = _search(wanted, only, choice)[0] if only else []
        found = [(form, replace(at, notes=(note, *at.notes))) for form, at in placed]
    if not found:
        what = f"no {name} checkpoint" if name else "nothing that any format reads"
        folders = (child for child in sorted(source.iterdir()) if child.is_dir())
        below = (child for child in folders if tensor_files(child) or any(_search(wanted, child, Choice())))
        remedies = [command("loraforge", "inspect", child) for child in islice(below, 3)]
        remote = perhaps(str(given)) if hub is None else None
        other = [command("ls", "-l", source), *([remote] if remote else [])]
        raise FileError(f"{source} has {what} in it.", *(remedies or other))
    opened = {}
    for path in dict.fromkeys(place.path for _, place in found):
        file, warnings = shards.opened(path, look)
        file, taken = taken_out(file)
        file, left = left_out(file, choice.drop)
        opened[path] = file, [*warnings, *taken, *left]
    claiming = [(entry, place) for entry, place in found if name or entry.claims(opened[place.path][0])]
    if not claiming and not faults and hub is None and source.is_dir():  # a file under another format's name
        each = {at.path: at for _, at in found}.values()
        claiming = [(entry, at) for at in each for entry in wanted if entry.claims(opened[at.path][0])]
    if not claiming and faults:
        raise faults[0]
    if len(claiming) > 1:
        raise _several(source, claiming)
    form, place = claiming[0] if claiming else (None, found[0][1])
    file, warnings = opened[place.path]
    run = shards.whole_name(place.run).removesuffix(".safetensors").removesuffix(".bin")
    return form, Found(file.path, run, (*notes, *place.notes, *warnings)), file


def _meant(source: Path) -> tuple[Path, tuple[str, ...]]:
    """What a path stands for, and notes: the name of a whole in several files, a folder of the Hub's cache."""
    try:
        if not source.exists() and (group := shards.group_of(source)):
            there = (source.with_name(name) for name in group.names)
            return group.index or next((path for path in there if path.is_file()), source), ()
        return snapshot(source)
    except (OSError, ValueError):  # what is no path at all is told of as such
        return source, ()


def _only(wanted: Sequence[Format], source: Path, look: shards.Look, named: bool) -> tuple[Path | None, str]:
    """The one file of a folder that is an adapter, whatever it is called, and a note; None where no file is there.

    Where none is an adapter and there is one file, that file. Raises FileError that names those it could be.
    """
    files = tensor_files(source)
    adapters = list[Path]()
    for path in files[:_MOST] if len(files) > 1 else ():
        try:
            file, _ = shards.opened(path, look)
            if any(named or form.claims(file) for form, _ in _search(wanted, path, Choice())[0]):
                adapters.append(path)
        except FileError:  # told where it is given by itself
            continue
    if len(left := adapters or files) > 1:
        what = "adapters" if adapters else "tensor files, none of them an adapter"
        text = f"{source} holds {len(left)} {what}: {listed([path.name for path in left], 5)}. Which?"
        raise FileError(text, *(command("loraforge", "inspect", path) for path in left[:8]))
    if not left:
        return None, ""
    return left[0], f"took {left[0].name}, the only {'adapter' if adapters else 'tensor file'} in {source.name}"


def _search(
    wanted: Sequence[Format], source: Path, choice: Choice
) -> tuple[list[tuple[Format, Found]], list[FileError]]:
    """What each format finds in a source, and the faults of those that find a folder of their kind and no more."""
    found, faults = list[tuple[Format, Found]](), list[FileError]()
    for entry in wanted:
        try:
            found += [(entry, place)] if (place := entry.find(source, choice)) else []
        except FileError as error:  # it is a folder of that kind, and has what another wants or nobody
            faults.append(error)
    return found, faults


def _check(source: Path, choice: Choice) -> None:
    try:
        source.lstat()
    except (OSError, ValueError) as error:
        lines: list[Try | str] = [command("ls", "-l", source.parent)]
        if not isinstance(error, FileNotFoundError):
            raise FileError(f"{source} cannot be looked at ({error}).", *lines) from error
        hub = perhaps(str(source))
        lines = [*([hub] if hub else []), *(lines if source.parent.exists() else [])]
        raise FileError(f"{source} does not exist.", *(lines or ["ls -l"])) from error
    if not (source.is_file() or source.is_dir()):
        raise FileError(f"{source} is neither a file nor a folder.", command("ls", "-l", source))
    if source.is_file() and (flag := _choosing(choice)):
        text = f"{flag} chooses among the checkpoints of a folder, and {source} is one file."
        raise FileError(text, command("ls", "-l", source.absolute().parent))


def _choosing(choice: Choice) -> str:
    """The option that chooses a checkpoint; empty if none was given."""
    return "--ema" if choice.ema else "" if choice.iteration is None else "--iteration"


def _several(source: Path, claiming: list[tuple[Format, Found]]) -> LoraforgeError:
    each = [command("loraforge", "inspect", "--from", entry.name, place.path) for entry, place in claiming]
    if len({place.path for _, place in claiming}) == 1:
        kinds, path = " and ".join(entry.name for entry, _ in claiming), claiming[0][1].path
        return FormatError(f"{path} holds names of several formats, {kinds}: say which with --from.", *each)
    names = " and ".join(f"{place.path.name} ({entry.name})" for entry, place in claiming)
    return FormatError(f"{source} holds {names}: give the file, and its format with --from.", *each)
