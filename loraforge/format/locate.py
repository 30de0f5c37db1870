"""Which file of a source to read, and by which format."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

from loraforge.adapter.drop import left_out
from loraforge.errors import FileError, FolderError, FormatError, LoraforgeError, SeveralError, Try, absent, names_in
from loraforge.files import shards
from loraforge.files.neighbours import subfolders
from loraforge.files.opening import open_tensors, snapshot, tensor_files
from loraforge.files.tensorfile import TensorFile
from loraforge.foreign import reading
from loraforge.format.keys import KeyStyle, few
from loraforge.format.not_an_adapter import taken_out
from loraforge.format.other import OtherFormat
from loraforge.format.protocol import Format, Found
from loraforge.format.registry import formats, named
from loraforge.hub.address import perhaps
from loraforge.hub.folder import reach
from loraforge.names.catalog import architecture, counts, matching
from loraforge.scale.rule import Choice
from loraforge.text import command, listed

_MOST = 50
"""How many files of a folder are opened to see what they are."""
_FACTOR = re.compile(r"lora|lycoris|matrix_[AB]|lokr_|hada_", re.IGNORECASE)
"""In the keys of every adapter, and of no base model; a SAT checkpoint may be either."""
_Located = tuple[Format, Found]


def locate(
    given: str | Path, name: str | None, choice: Choice, *, fetch: bool = True, deep: bool = True
) -> tuple[Format | None, Found, TensorFile]:
    """The format of a source, the file in it that holds the tensors, and that file, opened.

    The format is the one called `name`, otherwise the only one that claims the file; None if no format does. Without
    `fetch`, only the header of a file on the Hub is downloaded. `deep`: the folders in a folder are looked at too.
    Raises FileError or FormatError if nothing can be opened or several formats claim the file, HubError if the file is
    not on the Hub.
    """
    hub = reach(given)
    source, notes = (hub.source, ()) if hub else _resolved(Path(given))
    _check(given, source, choice)
    tried = [named(name)] if name else list(formats().values())
    located, faults = _search(tried, source, choice)
    if not located and faults:
        raise faults[0][1]
    look = open_tensors if hub is None else hub.whole if fetch else hub.header
    if not located:
        with reading(source, "a folder of adapters"):
            only, note = hub.only() if hub else _only(tried, given, source, look, name)
        if not only and deep and (child := _below(given, source, name, choice)):
            return child[0], replace(child[1], notes=(*notes, *child[1].notes)), child[2]
        if only and (flag := _choosing(choice)):
            what = f"{flag} chooses among the checkpoints of a run, and none was found in {source}"
            raise FileError(f"{what}: it holds {only.name}.", command("loraforge", "inspect", only))
        in_file = _search(tried, only, choice)[0] if only else []
        located = [(form, replace(one, notes=(note, *one.notes))) for form, one in in_file]
    if not located:
        held = listed(sorted(child.name for child in source.iterdir()), 5)
        text = f"no adapter{f' in format {name}' if name else ''} was found in {source}, nor in the folders in it"
        raise FolderError(f"{text}: {f'it holds {held}' if held else 'it is empty'}.", *perhaps(given))
    opened = {}
    for path in dict.fromkeys(one.path for _, one in located):
        file, warnings = shards.opened(path, look)
        file, taken = taken_out(file)
        file, left = left_out(file, choice.drop)
        opened[path] = file, [*warnings, *taken, *left]
    seen = {path: few(file) for path, (file, _) in opened.items()}
    claiming = [(form, one) for form, one in located if name or form.claims(seen[one.path])]
    if not claiming and not faults and (hub or source.is_dir()):  # a file under another format's name
        files = {one.path: one for _, one in located}.values()
        claiming = [(form, one) for one in files for form in tried if form.claims(seen[one.path])]
    for faulty, fault in faults:  # of a format whose names the files have
        if not claiming or any(map(faulty.claims, seen.values())):
            raise fault
    names = {form.name for form, _ in claiming}
    claiming = [(form, one) for form, one in claiming if getattr(form, "like", None) not in names]
    claiming = _distinct(claiming, seen, choice)
    if len(claiming) > 1:
        raise _several(source, claiming, [(f, one) for f, one in claiming if _reads(f, opened[one.path][0], choice)])
    form, chosen = claiming[0] if claiming else (None, located[0][1])
    file, warnings = opened[chosen.path]
    form = form.of(file) if isinstance(form, OtherFormat) else form
    run = shards.whole_name(chosen.run).removesuffix(".safetensors").removesuffix(".bin")
    return form, Found(file.path, run, (*notes, *chosen.notes, *warnings)), file


def _distinct(claiming: list[_Located], files: Mapping[Path, TensorFile], choice: Choice) -> list[_Located]:
    """The formats without those that say no more of a file than another one.

    Of two that read it alike, one that is made for a single architecture stays; otherwise the first. What reads the
    rest gives way to any that has the file's names, of the architecture that is stated if one is.
    """
    rest = [pair for pair in claiming if isinstance(pair[0], OtherFormat)]
    named = [pair for pair in claiming if pair not in rest]
    if rest and (stated := choice.architecture):
        having = [pair for pair in named if _has(pair[0], files[pair[1].path], stated)]
        mixed = any(stated in form.of(files[one.path]).layouts for form, one in rest if isinstance(form, OtherFormat))
        named = having if having or mixed else named  # else the statement is at fault, which is told when it is read
    claiming = sorted(named or rest or claiming, key=lambda one: len(one[0].layouts) != 1)
    readings = [_meanings(form, files[one.path]) for form, one in claiming] if len(claiming) > 1 else []
    kept = list(claiming)
    for n, mine in enumerate(readings):
        wider = (m for m, other in enumerate(readings) if m != n and mine <= other and (mine != other or m < n))
        if mine and any(claiming[m] in kept and claiming[m][1].path == claiming[n][1].path for m in wider):
            kept.remove(claiming[n])
    return kept


def _has(form: Format, file: TensorFile, architecture: str) -> bool:
    """Whether a format has names of this architecture for half of the file's modules, or does not say."""
    style: KeyStyle | None = getattr(form, "style", None)
    layout = form.layouts.get(architecture)
    paths = [hit.path for hit in style.hits(file.tensors)] if style else []
    return style is None or bool(layout and matching(paths, {architecture: layout}, style.sep))


def _meanings(form: Format, file: TensorFile) -> set[object]:
    """What the file's modules stack, in each of the architectures that have the most of them in a format's names."""
    style: KeyStyle | None = getattr(form, "style", None)
    paths = [hit.path for hit in style.hits(file.tensors)] if style else []
    known = counts(paths, form.layouts, style.sep) if style else {}
    most = [name for name, count in known.items() if count == max(known.values())]
    layouts = {name: architecture(name).layouts[form.layouts[name]] for name in most}
    return {
        (name, located[0].fill(located[1]), layout.modules[located[0]], located[1])
        for name, layout in layouts.items()
        for path in paths
        if style and (located := layout.locate(path, style.sep))
    }


def _resolved(source: Path) -> tuple[Path, tuple[str, ...]]:
    """The path to read, and notes, for the name of a model in several files or a folder of the Hub's cache."""
    try:
        if not source.exists() and (group := shards.group_of(source)):
            files = (source.with_name(name) for name in group.names)
            return group.index or next((path for path in files if path.is_file()), source), ()
        return snapshot(source)
    except (OSError, ValueError):  # not a path at all: `_check` says so
        return source, ()


def _below(
    given: str | Path, source: Path, name: str | None, choice: Choice
) -> tuple[Format | None, Found, TensorFile] | None:
    """What the only subfolder that has an adapter holds, with a note; None if no adapter was found in any.

    Raises FileError that names the subfolders if there are several.
    """
    holding = dict[Path, list[tuple[Format | None, Found, TensorFile]]]()
    for child in islice((child for child in subfolders(source) if not child.name.startswith(".")), _MOST):
        try:
            form, found, file = locate(child, name, choice, deep=False)
            if form and form.claims(file) and any(_FACTOR.search(key) for key in file.tensors):
                note = f"took {child.name}, the only folder in {source.name} with an adapter"
                holding[child] = [(form, replace(found, notes=(note, *found.notes)), file)]
        except SeveralError:
            holding[child] = []
        except LoraforgeError:  # its fault is reported if the folder is given by itself
            continue
    if len(holding) == 1 and (only := next(iter(holding.values()))):
        return only[0]
    if not holding:
        return None
    text = f"{source} holds adapters in {listed([child.name for child in holding], 5)}. Which?"
    raise SeveralError(text, *(Try(str(child), instead=str(given)) for child in islice(holding, 8)))


def _only(
    tried: Sequence[Format], given: str | Path, source: Path, look: shards.Look, named: str | None
) -> tuple[Path | None, str]:
    """The only adapter in a folder, whatever its name, and a note; None if the folder has no tensor file.

    A single file is returned even if it is no adapter. Raises FileError that names the candidates.
    """
    files = tensor_files(source)
    adapters = list[Path]()
    for path in files[:_MOST] if len(files) > 1 else ():
        try:
            file, _ = shards.opened(path, look)
            if any(named or form.claims(file) for form, _ in _search(tried, path, Choice())[0]):
                adapters.append(path)
        except FileError:  # its fault is reported if the file is given by itself
            continue
    if len(left := adapters or files) > 1:
        names = listed([path.name for path in left], 5)
        if not adapters:
            raise FolderError(f"{source} holds {len(left)} tensor files, none of them an adapter: {names}.")
        each = (Try(str(path), instead=str(given)) for path in left[:8])
        raise SeveralError(f"{source} holds {len(left)} adapters: {names}. Which?", *each)
    if not left:
        return None, ""
    return left[0], f"took {left[0].name}, the only {'adapter' if adapters else 'tensor file'} in {source.name}"


def _search(
    tried: Sequence[Format], source: Path, choice: Choice
) -> tuple[list[_Located], list[tuple[Format, FileError]]]:
    """What each format finds in a source, and the faults of the folders that a format recognises but cannot use."""
    located, faults = list[_Located](), list[tuple[Format, FileError]]()
    for form in tried:
        try:
            with reading(source, f"a folder of {form.name}"):
                if found := form.find(source, choice):
                    located.append((form, found))
        except FileError as error:
            faults.append((form, error))
    return located, faults


def _check(given: str | Path, source: Path, choice: Choice) -> None:
    try:
        source.lstat()
    except (OSError, ValueError) as error:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise FileError(f"{source} cannot be looked at ({error}).") from error
        raise absent(given, *perhaps(given)) from error
    if not (source.is_file() or source.is_dir()):
        raise absent(given) if source.is_symlink() else FileError(f"{source} is neither a file nor a folder.")
    if source.is_file() and (flag := _choosing(choice)):
        text = f"{flag} chooses among the checkpoints of a folder, and {source} is one file."
        raise FileError(text)


def _choosing(choice: Choice) -> str:
    """The option that chooses a checkpoint; empty if none was given."""
    return "--ema" if choice.ema else "" if choice.iteration is None else "--iteration"


def _reads(form: Format, file: TensorFile, choice: Choice) -> bool:
    """Whether a format understands every key of a file; its scale may be unknown."""
    with suppress(FormatError):
        form.read(file, choice)
        return True
    return False


def _several(source: Path, claiming: list[_Located], sound: list[_Located]) -> LoraforgeError:
    """The refusal; its remedies are the formats that understand every key."""
    each = [Try(command("loraforge", "inspect", "--from", form.name, one.path)) for form, one in sound]
    if len({one.path for _, one in claiming}) == 1:
        kinds, path = " and ".join(form.name for form, _ in claiming), claiming[0][1].path
        which = "say which with --from" if each else "none of them has all of its names"
        return FormatError(f"{path} holds names of several formats, {kinds}: {which}.", *(each or [names_in(path)]))
    names = " and ".join(f"{one.path.name} ({form.name})" for form, one in claiming)
    return FormatError(f"{source} holds {names}: give the file, and its format with --from.", *each)
