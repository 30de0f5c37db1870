"""A repository on the Hub as a folder, so that the code that reads adapters from a disk works for it too.

Every file has its name and size but no content. Only the header of a tensor file that is opened is downloaded, by range
requests; the configurations beside it are downloaded whole, and of a base model all that is loaded.
"""

from __future__ import annotations

import atexit
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path, PurePosixPath

from loraforge.errors import FileError, HubError, adding
from loraforge.files.mapped import FileMap
from loraforge.files.neighbours import BESIDE, TENSORS
from loraforge.files.opening import open_tensors
from loraforge.files.shards import alone, is_index
from loraforge.files.tensorfile import TensorFile
from loraforge.files.workplace import temporary
from loraforge.hub.address import address
from loraforge.hub.repo import Repo, open_repo, page
from loraforge.text import megabytes

_FIRST = 1 << 16
"""Bytes of the first request: enough for the header of most adapters."""
_LONGEST = 1 << 24
"""Bytes of the longest header that is downloaded; that of an adapter is a hundred times shorter."""
_CONFIGS = frozenset({*BESIDE, "adapter_config.json", "model_config.yaml"})
_MOST = 1 << 20
"""Bytes of the longest configuration that is downloaded."""

_READ = (".safetensors", ".json", ".txt", ".model")
"""Suffixes of weights, configurations and tokenizers."""
_SAT = (".pt", "latest", ".yaml")


@dataclass(frozen=True, slots=True)
class Reached:
    """A revision of a repository, and the folder that represents it."""

    repo: Repo
    folder: Path

    @property
    def source(self) -> Path:
        """The path that the address names."""
        return self.folder / self.repo.address.path

    def header(self, path: Path) -> tuple[TensorFile, list[str]]:
        """The tensor file at `path`, as from `open_tensors`, with only its header downloaded.

        A file that is in the cache, or no longer than a header, is whole. Raises FileError for a torch archive, which
        has no header.
        """
        name = self._configured(path)
        if (cached := self.repo.cached(name)) is not None:
            return self._opened(cached, name)
        size = self.repo.files[name]
        head = self.repo.piece(name, 0, min(size, _FIRST)) if size else b""
        if len(head) < size and head.startswith(b"PK\x03\x04"):
            text = f"{path} is a torch checkpoint: only the whole file ({megabytes(size)}) tells what is in it."
            raise FileError(text, adding("--fetch", why="get it, into the cache of the Hub"))
        end = 8 + int.from_bytes(head[:8], "little")
        if len(head) < end <= min(size, _LONGEST):
            head += self.repo.piece(name, len(head), end)
        with path.open("r+b") as stream:
            stream.write(head)
        file, warnings = open_tensors(path)
        absent = sum(info.nbytes for info in file.tensors.values()) if len(head) < size else 0
        return replace(file, maps=(FileMap(path, absent),)), warnings

    def whole(self, path: Path) -> tuple[TensorFile, list[str]]:
        """The whole tensor file at `path`, from the cache of the Hub's client; downloaded if it is missing."""
        name = self._configured(path)
        return self._opened(self.repo.fetch(name), name)

    def only(self) -> tuple[Path, str]:
        """The only tensor file below the address, and a note. Raises HubError that lists the files if it is not one."""
        below = [name for name in self.repo.files if (self.folder / name).is_relative_to(self.source)]
        plain = [name for name in below if ".safetensors" in name]
        every = plain or [name for name in below if name.endswith(TENSORS)]
        whole = alone(self.folder / name for name in every if not is_index(PurePosixPath(name)))
        names = [path.relative_to(self.folder).as_posix() for path in whole]
        if len(names) != 1:
            raise self.repo.missing(f"has {len(names)} tensor files: say which" if names else "has no tensor file")
        return self.folder / names[0], f"took {names[0]}, the only one in {self.repo.address}"

    def _opened(self, cached: Path, name: str) -> tuple[TensorFile, list[str]]:
        self.repo.known_as(cached.parents[name.count("/")])
        return open_tensors(cached)

    def _configured(self, path: Path) -> str:
        """The name of the file in the repository, after downloading the configurations beside and above it."""
        name = path.relative_to(self.folder).as_posix()
        for folder in list(PurePosixPath(name).parents)[:3]:
            for config in _CONFIGS:
                self._small((folder / config).as_posix())
        return name

    def _small(self, name: str) -> None:
        if 0 < self.repo.files.get(name, 0) <= _MOST:
            shutil.copyfile(self.repo.fetch(name), self.folder / name)


def reach(source: str | Path) -> Reached | None:
    """The repository that `source` names, as a folder; None if it is a path. Raises HubError if there is none."""
    where = address(source)
    if where is None:
        return None
    repo = open_repo(where)
    where = repo.address
    kept = ExitStack()
    atexit.register(kept.close)
    # deep enough that a search for training configurations, upwards, stays in our folders
    folder = kept.enter_context(temporary("hub")) / "hub" / where.repo
    reached = Reached(repo, folder)
    repo.known_as(folder)
    folder.mkdir(parents=True)
    for name, size in repo.files.items():
        try:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("wb") as stream:
                stream.truncate(size)
        except OSError as error:
            text = f"{where.at(name)}, of {size:,} bytes, cannot be a file on this machine: {error.strerror}."
            raise HubError(text, page(where)) from error
        if PurePosixPath(name).name == "latest" or is_index(PurePosixPath(name)):
            reached._small(name)
    if where.path and not reached.source.exists():
        raise repo.missing(f"has no {where.path}")
    return reached


def base_folder(source: str | Path, *, only: Sequence[str] = ()) -> Path:
    """The folder of a base model on this machine: `source` if it is a path, else the downloaded one.

    `only`: components of a pipeline, of which the first that it has is downloaded; all if empty. Raises HubError if the
    Hub has no such model.
    """
    where = address(source)
    if where is None:
        return Path(source)
    from huggingface_hub import snapshot_download

    repo = open_repo(where)
    where = repo.address
    names = _needed(repo, only)
    if not names:
        raise repo.missing(f"has no {where.path}" if where.path else "has no base model in it")
    folder = repo.download(snapshot_download, str(where), allow_patterns=[escape(name) for name in names])
    repo.known_as(folder)
    return folder / where.path


def _needed(repo: Repo, only: Sequence[str]) -> list[str]:
    inside = repo.address.path
    if inside in repo.files:
        return [inside]
    start = f"{inside}/" if inside else ""
    below = {name.removeprefix(start) for name in repo.files if name.startswith(start)}
    read = {name for name in below if name.endswith(_READ)}
    if "model_index.json" in below:
        having = [one for one in only if any(name.startswith(f"{one}/") for name in below)]
        folder = f"{[*having, *only][0]}/" if only else ""
        chosen = {name for name in read if ("/" in name and name.startswith(folder)) or name == "model_index.json"}
    elif "config.json" in below:
        chosen = {name for name in read if "/" not in name}
    else:
        chosen = {name for name in below if name.endswith(_SAT)}
    return sorted(start + name for name in chosen)
