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
from loraforge.files.tensorfile import TensorFile
from loraforge.files.texts import read_json
from loraforge.foreign import reading
from loraforge.format.peft import CONFIG
from loraforge.publishing.allowed import Allowed, at_home, has_form, rewritten
from loraforge.tables import package_table

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


def of_adapter(file: TensorFile, form: str, base_model: str, work: Path) -> tuple[list[Outgoing], list[str]]:
    """The tensor file under its canonical name, PEFT's configuration, and notes of what is not sent.

    A header that is not published as it is gets rewritten in `work`, with the same tensors.
    """
    own = file.path.name if has_form("file", file.path.name) else "lora.safetensors"
    sent, notes = _tensor_file(file, _TABLE["canonical"].get(form, own), Allowed(file.tensors, base_model), work)
    if form != "peft":
        return [sent], notes
    config = json.loads(_no_way_out(file.path.with_name(CONFIG), file.path.parent).read_text("utf-8"))
    kept = Allowed(file.tensors, base_model).config(config)
    text = json.dumps(kept, indent=2, sort_keys=True) + "\n"
    return [sent, outgoing(CONFIG, text.encode())], [*notes, *at_home(config, kept, CONFIG)]


def _tensor_file(file: TensorFile, name: str, allowed: Allowed, work: Path) -> tuple[Outgoing, list[str]]:
    """The file, or if its header is not published as it is, a copy with another one."""
    metadata = allowed.header(file.metadata)
    if metadata == file.metadata and not file.dropped and not file.spread:
        return outgoing(name, file.path.resolve()), []
    content = work / name
    content.parent.mkdir(parents=True, exist_ok=True)
    header = {key: (info.dtype, info.shape) for key, info in file.tensors.items()}
    write_safetensors(content, header, ((key, [file.raw(key)]) for key in file.tensors), metadata)
    return outgoing(name, content), list(at_home(file.metadata, metadata, f"the header of {name}"))


def _no_way_out(path: Path, folder: Path) -> Path:
    """The same path. Raises HubError for a link out of the folder, other than those of the Hub's own cache."""
    real = path.resolve()
    if path.is_symlink() and not real.is_relative_to(folder.resolve()) and real.parent.name != "blobs":
        text = f"{path} is a link that leads out of its folder: what it leads to stays here."
        raise HubError(text)
    return path


def of_model(base: BaseModel, base_model: str, work: Path) -> tuple[list[Outgoing], list[str]]:
    """The files of a model folder that `from_pretrained` reads, and notes of what is not sent.

    Headers and configurations that are not published as they are get rewritten, those of tensors in `work`. Raises
    FileError if a file cannot be read.
    """
    shards = {file.path.resolve() for file in base.files}
    files, notes = list[Outgoing](), list[str]()
    for name, path in _parts(base):
        more = list[str]()
        if path.suffix == ".safetensors":
            own = path.resolve() in shards
            if not own and (path.parent == base.folder or not _WEIGHTS.fullmatch(path.name)):
                continue
            file = open_tensors(path)[0]
            sent, more = _tensor_file(file, name, Allowed(file.tensors, base_model), work)
        elif not _CONFIGURATION.fullmatch(name):
            sent = outgoing(name, path.resolve())
        else:
            allowed, config = Allowed((), base_model), read_json(path)
            text = rewritten(path.read_text("utf-8"), allowed.index if "weight_map" in config else allowed.component)
            more = list(at_home(config, json.loads(text or "{}"), name))
            sent = outgoing(name, (text or "{}").encode())
        files.append(sent)
        notes += more
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
        if not part.startswith("_") and re.fullmatch(r"\w{1,60}", part) and (base.path / part).is_dir():
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
        raise FileError(f"{path} is no video or picture: {', '.join(known)} can be shown.")
    at, mark = known[suffix]
    with reading(path, f"a {suffix} file"), path.open("rb") as stream:
        head = stream.read(at + len(mark))
    if head[at:] != mark.encode("latin-1"):
        raise FileError(f"{path} does not begin as a {suffix} file does: it is something else.")
    made = outgoing("", path)
    return replace(made, name=f"samples/{made.sha256[:8]}{suffix}")
