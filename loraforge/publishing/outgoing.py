"""The files to send: those that a loader needs, by name, and no others."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from loraforge.base.model import BaseModel
from loraforge.errors import FileError, HubError
from loraforge.files.opening import open_tensors
from loraforge.files.safetensors import write_safetensors
from loraforge.files.tensorfile import KEY, TensorFile
from loraforge.files.texts import read_json
from loraforge.foreign import reading
from loraforge.format.peft import CONFIG
from loraforge.publishing.private import cleaned, cleaned_json, secrets_in
from loraforge.tables import package_table
from loraforge.text import command

_TABLE = package_table("publishing/files")
_COMPONENT, _CONFIGURATION, _WEIGHTS, _OTHER_TENSORS = (
    re.compile("|".join(_TABLE[kind])) for kind in ("component", "configuration", "weights", "other_tensors")
)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One file as it will be in the repository."""

    name: str
    content: Path | bytes
    size: int
    sha256: str

    @property
    def git_hash(self) -> str:
        """The git hash of this content."""
        data = self.content if isinstance(self.content, bytes) else self.content.read_bytes()
        return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def outgoing(name: str, content: Path | bytes) -> Outgoing:
    """A file with its size and digest."""
    if isinstance(content, bytes):
        return Outgoing(name, content, len(content), hashlib.sha256(content).hexdigest())
    with content.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return Outgoing(name, content, content.stat().st_size, digest)


def of_adapter(file: TensorFile, form: str, base_model: str | None, work: Path) -> tuple[list[Outgoing], list[str]]:
    """The tensor file under its canonical name, PEFT's configuration, and notes of what is not sent.

    A header or configuration with private parts is rewritten in `work`, with the same tensors. Raises HubError if
    the history that loraforge recorded would be lost.
    """
    name = _TABLE["canonical"].get(form, file.path.name)
    metadata, notes = cleaned(file.metadata)
    content = file.path.resolve()
    if notes or file.dropped or file.spread:
        if KEY in file.metadata and KEY not in metadata:
            text = f"the history in the header of {file.path} has a path or a token in it, which would be published."
            raise HubError(text, command("loraforge", "inspect", "--history", file.path))
        content = work / "cleaned.safetensors"
        header = {key: (info.dtype, info.shape) for key, info in file.tensors.items()}
        write_safetensors(content, header, ((key, [file.raw(key)]) for key in file.tensors), metadata)
    if form != "peft":
        return [outgoing(name, content)], list(notes)
    text, more = _configuration(_no_way_out(file.path.with_name(CONFIG), file.path.parent), base_model)
    return [outgoing(name, content), outgoing(CONFIG, text.encode())], [*notes, *more]


def _no_way_out(path: Path, folder: Path) -> Path:
    """The same path. Raises HubError for a link out of the folder, other than those of the Hub's own cache."""
    real = path.resolve()
    if path.is_symlink() and not real.is_relative_to(folder.resolve()) and real.parent.name != "blobs":
        text = f"{path} is a link that leads out of its folder: what it leads to stays here."
        raise HubError(text, command("ls", "-l", path))
    return path


def _configuration(path: Path, base_model: str | None) -> tuple[str, tuple[str, ...]]:
    """PEFT's configuration with the base model as on the Hub, and notes."""
    text = path.read_text("utf-8")
    config = json.loads(text)
    notes: tuple[str, ...] = ()
    if base_model and (was := config.get("base_model_name_or_path")) != base_model:
        notes = (f"{CONFIG} said base_model_name_or_path {was!r:.100}; it says {base_model} now",) if was else ()
        text = json.dumps({**config, "base_model_name_or_path": base_model}, indent=2, sort_keys=True) + "\n"
    text, more = cleaned_json(text, path.name)
    return text, (*notes, *more)


def of_model(base: BaseModel) -> tuple[list[Outgoing], list[str]]:
    """The files of a model folder that `from_pretrained` reads, and notes of what is not sent.

    Raises HubError if the header of a shard holds something private, FileError if a file cannot be read.
    """
    shards = {file.path.resolve() for file in base.files}
    files, notes = list[Outgoing](), list[str]()
    for name, path in _parts(base):
        if path.suffix == ".safetensors":
            own = path.resolve() in shards
            if not own and (path.parent == base.folder or not _WEIGHTS.fullmatch(path.name)):
                continue
            if secrets := secrets_in(open_tensors(path)[0].metadata):
                raise HubError(f"{path}: the header: {secrets[0]}.", command("ls", "-l", path))
        if not _CONFIGURATION.fullmatch(name):
            files.append(outgoing(name, path.resolve()))
            continue
        with reading(path, "JSON"):
            text, removed = cleaned_json(path.read_text("utf-8"), name)
        files.append(outgoing(name, text.encode()))
        notes += removed
    return files, notes


def _parts(base: BaseModel) -> Iterator[tuple[str, Path]]:
    """Name in the repository and path of each file that the loader of this kind of folder reads."""
    if base.kind == "file":
        yield base.files[0].path.name, base.files[0].path
        return
    if base.kind == "transformer":
        yield from _component(base.path, "")
        return
    yield (index := base.path / "model_index.json").name, index
    for part in sorted(read_json(index)):
        if not part.startswith("_") and re.fullmatch(r"\w+", part) and (base.path / part).is_dir():
            yield from _component(base.path / part, f"{part}/")


def _component(folder: Path, start: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir()):
        is_read = _COMPONENT.fullmatch(path.name)
        if is_read and path.is_file() and not (path.suffix == ".safetensors" and _OTHER_TENSORS.search(path.name)):
            yield start + path.name, _no_way_out(path, folder)


def of_sample(path: Path) -> Outgoing:
    """A picture or video for the card, named by its content. Raises FileError if it is neither."""
    suffix, known = path.suffix.lower(), _TABLE["samples"]
    if suffix not in known:
        raise FileError(f"{path} is no video or picture: {', '.join(known)} can be shown.", command("ls", "-l", path))
    at, mark = known[suffix]
    with reading(path, f"a {suffix} file"), path.open("rb") as stream:
        head = stream.read(at + len(mark))
    if head[at:] != mark.encode("latin-1"):
        raise FileError(f"{path} does not begin as a {suffix} file does: it is something else.", command("file", path))
    made = outgoing("", path)
    return replace(made, name=f"samples/{made.sha256[:8]}{suffix}")
