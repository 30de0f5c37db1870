"""Opens a tensor file by its content, not its name, and says what another file is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from loraforge.errors import FileError
from loraforge.files.mapped import state_of
from loraforge.files.neighbours import SAFETENSORS, TENSORS, TORCH
from loraforge.files.safetensors import begins_safetensors, read_safetensors
from loraforge.files.shards import alone, is_numbered
from loraforge.files.tensorfile import TensorFile
from loraforge.files.torch_read import read_torch
from loraforge.foreign import reading
from loraforge.text import command

_OLD_TORCH = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"
_POINTER = b"version https://git-lfs"
_BEGINNINGS: tuple[tuple[bytes | tuple[bytes, ...], str], ...] = (
    (_POINTER, "a Git LFS pointer, not the file itself"),
    ((b"<!doctype html", b"<html"), "a web page, probably an error page saved in place of the file"),
    (_OLD_TORCH.lower(), "a torch file in the format from before 2020"),
    (b"\x80", "a bare pickle, not a tensor file"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"gguf", "a GGUF model"),
    (b"{", "a JSON text"),
)
"""How another kind of file begins, in lower case, and what it is."""


class Container(NamedTuple):
    """One way to store tensors, in a file or in a folder of files."""

    kind: str
    """Its name in messages, and `TensorFile.kind`."""
    suffixes: tuple[str, ...]
    """A file with another suffix is read too, with a warning."""
    recognises: Callable[[bytes, Path], bool]
    """Whether a path is one; called with its first 64 bytes (none for a folder) and the path."""
    open: Callable[[Path], TensorFile]
    """Reads names, shapes and metadata, and runs nothing in the file. Raises FileError if it cannot be read."""


CONTAINERS = (
    Container("torch", TORCH, lambda head, _: head.startswith(b"PK\x03\x04"), read_torch),
    Container("safetensors", SAFETENSORS, lambda head, _: begins_safetensors(head), read_safetensors),
)
"""The first that recognises a path opens it. To add one: a line here, and a file beside this one."""


def open_tensors(path: Path) -> tuple[TensorFile, list[str]]:
    """The tensor file at `path`, and warnings (of a suffix of another kind).

    Raises FileError that says what the file is, if it is neither safetensors nor a torch archive.
    """
    with reading(path, "a tensor file"):
        head, is_file = b"", path.is_file()
        if is_file:
            with path.open("rb") as stream:
                head = stream.read(64)
        container = next((container for container in CONTAINERS if container.recognises(head, path)), None)
    if container is None:
        if not head:
            what = "empty (0 bytes): save it or download it again" if is_file else "no file"
            raise FileError(f"{path} is {what}.")
        start = head.lstrip().lower()
        what = "neither a safetensors file nor a torch archive (or it is damaged at the start)"
        what = next((kind for begin, kind in _BEGINNINGS if start.startswith(begin)), what)
        cloned = start.startswith(_POINTER) and any((above / ".git").exists() for above in path.absolute().parents)
        raise FileError(f"{path} is {what}.", *([command("git", "-C", path.parent, "lfs", "pull")] if cloned else []))
    state = state_of(path) if is_file else None
    file = container.open(path)
    for part in file.maps:
        part.state = state
    if is_file and path.suffix.lower() not in container.suffixes:
        return file, [f"{path.name} is really a {container.kind} file; its suffix says otherwise."]
    return file, []


def tensor_files(folder: Path) -> list[Path]:
    """The files of a folder with names of tensor files, one per set of shards."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in TENSORS or is_numbered(path)]
    return alone(path for path in files if path.is_file())


def snapshot(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The snapshot of `main` in a folder of the Hub's cache (`models--user--name`), and a note; else the folder itself.

    Raises FileError that names the snapshots if it is not clear which is that of `main`.
    """
    if not (folder / "snapshots").is_dir() or not folder.resolve().name.startswith("models--"):
        return folder, ()
    held = sorted(child for child in (folder / "snapshots").iterdir() if child.is_dir())
    main = folder / "refs" / "main"
    name = main.read_text("utf-8", "replace").strip() if main.is_file() else ""
    chosen = [child for child in held if child.name == name] or (held if not name else [])
    if len(chosen) != 1:
        text = f"{folder} is a folder of the Hub's cache, with {len(held)} snapshots and no main among them: which?"
        remedies = [command("loraforge", "inspect", child) for child in held[:5]]
        raise FileError(text, *remedies)
    return chosen[0], (f"took the snapshot {chosen[0].name[:12]} of {folder.resolve().name}",)
