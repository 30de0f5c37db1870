"""The files of a model folder besides its weights, and the names they get in a copy."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from loraforge.base.model import INDEX, NAME, STEM, BaseModel
from loraforge.files.neighbours import TENSORS
from loraforge.files.tensorfile import TensorFile
from loraforge.files.texts import read_json
from loraforge.format.sat_names import CHECKPOINT, ITERATION

LINKED = 1 << 20
"""Files of this many bytes or more are linked instead of copied. Users may edit smaller ones in place."""

_INDEX = re.compile(r"\.index(\.[\w-]+)?\.json$")
_OUR_KIND = (*TENSORS, ".gguf")
"""Suffixes of weights. Such files beside the transformer's are other versions of it, which lack the adapter."""


def shards(base: BaseModel, out: Path, *, alone: bool) -> dict[str, TensorFile]:
    """Name in the result -> the base's file it is made from. `alone`: the transformer without its pipeline."""
    if out.suffix in {"file": (".safetensors",), "sat": (".pt", ".pth")}.get(base.kind, ()):
        return {out.name: base.files[0]}  # one file, no folder
    if base.kind == "file":
        return {f"{base.files[0].path.stem}.safetensors": base.files[0]}
    if base.kind == "sat":
        folder = base.folder.name if base.folder.name.isdecimal() else ITERATION
        return {f"{folder}/{CHECKPOINT}": base.files[0]}
    inside = f"{base.architecture.component}/" if base.kind == "pipeline" and not alone else ""
    return {f"{inside}{_as_diffusers(file.path.name)}": file for file in base.files}


def _as_diffusers(name: str) -> str:
    """The name that `from_pretrained` looks for, of a file that was a variant, a `.bin` or another library's."""
    match = NAME.fullmatch(name)
    return f"{STEM}{match['part'] or ''}.safetensors" if match else name


def beside(base: BaseModel, names: Mapping[str, TensorFile], *, alone: bool) -> tuple[dict[str, Path], dict[str, str]]:
    """The other files of the result, by name: those that are copied or linked, and the texts that are written."""
    if base.kind == "file":
        return {}, {}
    if base.kind == "sat":
        where = next(iter(names)).rpartition("/")[0]
        config = base.folder.parent / "model_config.json"
        return ({config.name: config} if where and config.is_file() else {}), ({"latest": where} if where else {})
    inside = f"{base.architecture.component}/" if base.kind == "pipeline" and not alone else ""
    kept = [p for p in sorted(base.folder.iterdir()) if p.is_file() and not p.name.startswith(".")]
    kept = [path for path in kept if path.suffix not in _OUR_KIND and not _INDEX.search(path.name)]
    copied = {f"{inside}{path.name}": path for path in kept}
    if inside:
        copied |= {name: path for name, path in _files(base.path) if not name.startswith(inside)}
    return copied, {}


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """Every file below a folder with its relative path; follows links, leaves out hidden files."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if real in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add(real)
        for name in sorted(files):
            path = Path(folder) / name
            if not name.startswith(".") and path.is_file():
                yield path.relative_to(root).as_posix(), path


def index_text(base: BaseModel, names: Mapping[str, TensorFile], nbytes: int) -> dict[str, str]:
    """The text of the index of the written shards, by its name in the result; empty if there is one file."""
    if not base.index:
        return {}
    where, _, _ = next(iter(names)).rpartition("/")
    name, file = f"{where}/{INDEX}" if where else INDEX, base.folder / base.index
    table = read_json(file) if file.is_file() else {"weight_map": {}}
    metadata = table.get("metadata")
    known = metadata if isinstance(metadata, dict) else {}
    real = {key: name.rpartition("/")[2] for name, shard in names.items() for key in shard.tensors}
    if known.get("total_size") == nbytes and table["weight_map"] == real:
        return {name: file.read_text("utf-8")}
    order = dict.fromkeys([key for key in table["weight_map"] if key in real] + sorted(real))
    table |= {"metadata": {**known, "total_size": nbytes}, "weight_map": {key: real[key] for key in order}}
    return {name: json.dumps(table, indent=2) + "\n"}


def put(source: Path, destination: Path) -> None:
    """Link a large file, copy a small one."""
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.unlink(missing_ok=True)
    real = source.resolve()
    if real.stat().st_size >= LINKED:
        with suppress(OSError):  # another disk, or one without links
            os.link(real, destination)
            return
    shutil.copyfile(real, destination)
