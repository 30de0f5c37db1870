"""Opens a tensor file by what it contains, whatever it is called, and says what it is when it is none."""

from __future__ import annotations

from pathlib import Path

from loraforge.errors import FileError, Try
from loraforge.files.safetensors import read_safetensors
from loraforge.files.shards import alone, is_numbered
from loraforge.files.tensorfile import HEADER_LIMIT, TensorFile
from loraforge.files.torch_read import read_torch
from loraforge.text import command

_BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself", "git lfs pull"),
    (b"<!doctype html", "a web page, probably an error page saved in place of the file", None),
    (b"<html", "a web page, probably an error page saved in place of the file", None),
    (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19", "a torch file in the format from before 2020", None),
    (b"\x80", "a bare pickle, not a tensor file", None),
    (b"\x1f\x8b", "a gzip archive; unpack it first", None),
    (b"GGUF", "a GGUF model", None),
    (b"{", "a JSON text", None),
)
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_SUFFIXES = {"safetensors": (".safetensors",), "torch": (".pt", ".pth", ".bin", ".ckpt")}


def open_tensors(path: Path) -> tuple[TensorFile, list[str]]:
    """The tensor file at `path`, and warnings (a suffix that says otherwise).

    Raises FileError that says what the file is when it is neither safetensors nor a torch archive.
    """
    look = command("ls", "-l", path)
    try:
        if not path.is_file():
            raise FileError(f"{path} is no file.", look)
        size = path.stat().st_size
        with path.open("rb") as stream:
            head = stream.read(64)
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.", look) from error
    if not size:
        raise FileError(f"{path} is empty (0 bytes): the save or the download failed.", look)
    try:
        if head.startswith(b"PK\x03\x04"):
            file = read_torch(path)
        elif 0 < int.from_bytes(head[:8], "little") <= HEADER_LIMIT and head[8:9] in (b"{", b" "):
            file = read_safetensors(path)
        else:
            raise FileError(*_other(path, head))
    except FileError as error:
        error.remedies = error.remedies or (Try(look, "who wrote it, and when"),)
        raise
    warnings = []
    if path.suffix.lower() not in _SUFFIXES[file.kind]:
        warnings.append(f"{path.name} is really a {file.kind} file; its suffix says otherwise.")
    return file, warnings


def tensor_files(folder: Path) -> list[Path]:
    """What lies in a folder and is called as tensor files are, one path for each set of shards; safetensors first."""
    files = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES or is_numbered(path)]
    files = alone(path for path in files if path.is_file())
    return [path for path in files if ".safetensors" in path.name.lower()] or files


def snapshot(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """What a folder of the Hub's cache (`models--user--name`) stands for: the files of main; any other as it is.

    Raises FileError that names the snapshots where it cannot be told which.
    """
    if not (folder / "snapshots").is_dir() or not folder.resolve().name.startswith("models--"):
        return folder, ()
    held = sorted(child for child in (folder / "snapshots").iterdir() if child.is_dir())
    main = folder / "refs" / "main"
    name = main.read_text("utf-8", "replace").strip() if main.is_file() else ""
    chosen = [child for child in held if child.name == name] or (held if not name else [])
    if len(chosen) != 1:
        text = f"{folder} is a folder of the Hub's cache, with {len(held)} snapshots and no main among them: which?"
        raise FileError(
            text, *([command("loraforge", "inspect", child) for child in held[:5]] or [command("ls", "-l", folder)])
        )
    return chosen[0], (f"took the snapshot {chosen[0].name[:12]} of {folder.resolve().name}",)


def _other(path: Path, head: bytes) -> tuple[str, str]:
    start = head.lstrip().lower()
    kind, remedy = next(
        ((what, fix) for begin, what, fix in _BEGINNINGS if start.startswith(begin.lower())), (None, None)
    )
    return (
        f"{path} is {kind or 'neither a safetensors file nor a torch archive (or it is damaged at the start)'}.",
        remedy or command("file", path),
    )
