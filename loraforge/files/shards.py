"""Reads an adapter that is split into several files, by an index beside them or by their numbered names, as one.

Sources: huggingface_hub serialization/_base.py (names of shards), transformers modeling_utils.py (their index).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path, PurePath

from loraforge.errors import FileError, names_in
from loraforge.files.tensorfile import TensorFile
from loraforge.files.texts import read_json
from loraforge.foreign import reading
from loraforge.text import listed

Look = Callable[[Path], tuple[TensorFile, list[str]]]
"""Opens one file, and returns it with warnings."""
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<n>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<suffix>\.\w+)?")
_INDEX = re.compile(r"(?P<whole>.+\.(safetensors|bin|pt|pth|ckpt))\.index(\.[\w-]+)?\.json")
_MANY = 1000
"""The most files that one adapter may be split into."""
_LONGEST = 255
"""Bytes of a name, as systems raise an error for a longer one."""


@dataclass(frozen=True, slots=True)
class Group:
    """The files that belong together."""

    whole: Path
    """The path that one file with all tensors would have."""
    names: tuple[str, ...]
    index: Path | None = None
    places: Mapping[str, str] = field(default_factory=dict)
    """Key -> name of its file, by the index."""


def is_index(path: PurePath) -> bool:
    """Whether its name is that of an index of shards."""
    return _INDEX.fullmatch(path.name) is not None


def is_numbered(path: Path) -> bool:
    """Whether its name is that of one shard of several."""
    return _NUMBERED.fullmatch(path.name) is not None


def whole_name(name: str) -> str:
    """The name that the whole would have, if `name` is a shard or an index; otherwise `name` itself."""
    if match := _INDEX.fullmatch(name):
        return match["whole"]
    if match := _NUMBERED.fullmatch(name):
        suffix = match["suffix"] or ""
        return match["stem"] if match["stem"].endswith(suffix) else match["stem"] + suffix
    return name


def group_of(path: Path) -> Group | None:
    """The group of a shard, an index or the name of a whole; None if the path is a file by itself.

    Raises FileError if the index cannot be read.
    """
    is_file = path.is_file()
    for index in _indices(path.parent):
        whole = whole_name(index.name)
        if index == path or (not is_file and path.name == whole):
            return indexed(index)
        if is_file and path.name != whole:
            group = indexed(index) if whole_name(path.name) == whole else _readable(index)
            if group and path.name in group.names:
                return group
    names = [path.name] if is_file else [entry.name for entry in path.parent.glob("*-of-*")]
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match and 1 < int(match["count"]) <= _MANY and (is_file or whole_name(name) == path.name):
            start, end = match["stem"], f"-of-{match['count']}{match['suffix'] or ''}"
            every = tuple(f"{start}-{n:05d}{end}" for n in range(1, int(match["count"]) + 1))
            return Group(path.with_name(whole_name(name)), every)
    return None


def _indices(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.glob("*.index*.json") if is_index(entry))


def _readable(index: Path) -> Group | None:
    """The group of an index; None if it cannot be read: it may belong to something else."""
    with suppress(FileError):
        return indexed(index)
    return None


def indexed(index: Path) -> Group:
    """The group of an index. Raises FileError if it cannot be read, or names no files beside it."""
    what = "an index of shards"
    places = read_json(index, what).get("weight_map")
    with reading(index, what):
        if not (places and isinstance(places, dict) and all(isinstance(name, str) for name in places.values())):
            raise ValueError("it holds no weight_map of names")
    names = tuple(sorted(set(places.values())))
    if strange := [n for n in names if Path(n).name != n or len(n.encode("utf-8", "replace")) > _LONGEST]:
        raise FileError(f"{index} names {strange[0]!r:.100}, which is no file beside it.")
    return Group(index.with_name(whole_name(index.name)), names, index, places)


def alone(paths: Iterable[Path]) -> list[Path]:
    """The paths with only the first one of each group."""
    kept: dict[object, Path] = {}
    for path in paths:
        group = group_of(path)
        kept.setdefault((group.whole, group.names) if group else path, path)
    return list(kept.values())


def _check_whole(file: TensorFile) -> None:
    """Raises FileError if an index beside a file says that its tensors are a part, and their file is not here."""
    for index, group in ((index, _readable(index)) for index in _indices(file.path.parent)):
        if not group or not file.tensors or not file.tensors.keys() < group.places.keys():
            continue
        names = {group.places[key] for key in file.tensors}
        if not any((index.parent / name).exists() for name in names):
            text = f"{file.path} is not all of it: by {index.name} its tensors are those of {listed(sorted(names), 3)}"
            what = f"{len(file.tensors)} of the {len(group.places)} of {group.whole.name}"
            raise FileError(f"{text}, {what}. Give the files the names in the index.")


def opened(path: Path, look: Look) -> tuple[TensorFile, list[str]]:
    """The tensor file at `path` together with the other files of its group, each opened by `look`.

    Raises FileError if a file of the group is missing, or if the index and the files disagree.
    """
    group = group_of(path)
    if group is None:
        file, warnings = look(path)
        _check_whole(file)
        return file, warnings
    folder = path.parent
    why = f"by {group.index.name}" if group.index else "by its name"
    if missing := [name for name in group.names if not (folder / name).is_file()]:
        what = f"{path} is not all of it: {group.whole.name} lies in {len(group.names)} files, {why}"
        raise FileError(f"{what}, and {listed(missing, 5)} is not here. Copy or download it too.")
    files, warned = zip(*(look(folder / name) for name in group.names), strict=True)
    holder: dict[str, str] = {}
    for name, file in zip(group.names, files, strict=True):
        if twice := sorted(holder.keys() & file.tensors.keys()):
            both = f"{file.path} and {holder[twice[0]]} both hold {listed(twice, 3)}"
            raise FileError(f"{both}. Give the one that is meant, in a folder of its own.")
        holder |= dict.fromkeys(file.tensors, name)
    wrong = sorted(key for key, name in group.places.items() if holder.get(key) != name)
    if wrong:
        where = [f"{key} ({holder.get(key, 'in none of them')})" for key in wrong]
        raise FileError(f"{group.index} names other places than the files beside it have: {listed(where, 3)}.")
    rest = sorted(holder.keys() - group.places.keys()) if group.index else []
    unnamed = [f"{group.index} does not name {listed(rest, 3)}, which the files beside it hold"] if rest else []
    metadata: dict[str, str] = {}
    for file in files:
        if odd := sorted(k for k in metadata.keys() & file.metadata.keys() if metadata[k] != file.metadata[k]):
            text = f"{file.path} says of {odd[0]} what the files beside it do not say: which is meant is not known."
            raise FileError(text, names_in(file.path))
        metadata |= file.metadata
    if len({file.kind for file in files}) > 1:
        raise FileError(f"{path} and the others of {group.whole.name} are files of different kinds.")
    tensors = {key: info._replace(map=n) for n, file in enumerate(files) for key, info in file.tensors.items()}
    opaque = {key: name for file in files for key, name in file.opaque.items()}
    size, maps = sum(file.size for file in files), tuple(part for file in files for part in file.maps)
    whole = replace(
        files[0], path=files[0].path.with_name(group.whole.name), size=size, tensors=tensors, whole=tensors, counts={}
    )
    return replace(whole, metadata=metadata, opaque=opaque, maps=maps), [
        *chain(*warned, unnamed),
        f"read {listed(list(group.names), 3)} as one, {why}",
    ]
