"""Which folders belong to an adapter's run: whether a configuration is of that run, or only near it."""

from __future__ import annotations

import os
import re
from itertools import islice
from pathlib import Path
from typing import Any

from loraforge.files.neighbours import TENSORS
from loraforge.tables import package_table
from loraforge.text import told

_STATE = re.compile(r"(optimizer|scheduler|scaler|sampler|random_states|rng_state|training_args).*")
"""What trainers save beside an adapter to resume from."""
_FACTOR = re.compile(rb"lora[._]([AaBb]\b|up|down)|matrix_A|lokr_|hada_")
"""In the names of an adapter's tensors."""
_HEAD, _MOST_FILES = 1 << 20, 500
_MOST_FOLDERS = 20
"""If more folders than this lie beside a run's, naming one of them is noise."""
UP = 3
"""Number of folders above a file that are searched, including its own."""


def places() -> dict[str, Any]:
    """The table of places."""
    return package_table("scale/places")


def states_scale(name: str, text: str = "alpha") -> bool:
    """Whether a header entry states a scale or a rank, with or without the component's name in front."""
    words, word = places()["header"], name.rpartition(".")[2]
    if name in words["documents"]:
        return "alpha" in text or "split_qkv" in text
    return name in words["configs"] or word in (*words["alpha"], *words["rank"], *words["rslora"])


def own(file: Path) -> list[Path]:
    """The folders of the run that wrote `file`, the nearest first: its own, and those that trainers put it into."""
    folder = file.absolute().parent
    folders = [folder]
    for row in places()["results"]:
        words = row["folder"].split("/")
        tail = folder.parts[-len(words) :]
        pattern = re.escape(row["folder"]).replace(r"\{n\}", "[0-9]{1,18}")
        deep = len(folder.parts) > len(words) and row.get("file", file.name) == file.name
        if deep and re.fullmatch(pattern, "/".join(tail)):
            folders += [*folder.parents[: len(words)]]
    return list(dict.fromkeys(folders))


def beside(file: Path) -> list[Path]:
    """The folders beside that of its run, which usually belong to other runs; none if there are too many."""
    mine = own(file)
    try:
        with os.scandir(mine[-1].parent) as entries:
            folders = sorted(islice((entry.path for entry in entries if entry.is_dir()), _MOST_FOLDERS + 1))
    except OSError:
        return []
    return [folder for folder in map(Path, folders) if folder not in mine] if len(folders) <= _MOST_FOLDERS else []


def adapters(folder: Path) -> list[Path]:
    """The adapters directly in a folder, except those that loraforge wrote."""
    try:
        with os.scandir(folder) as entries:
            files = [Path(entry.path) for entry in islice(entries, _MOST_FILES) if entry.is_file()]
    except OSError:
        return []
    wanted = (path for path in files if path.suffix.lower() in TENSORS and not _STATE.fullmatch(path.name))
    return sorted(path for path in wanted if _is_adapter(path))


def of_several_runs(folder: Path) -> bool:
    """Whether its adapters differ in more than checkpoint numbers: a configuration may belong to any of them."""
    differ = re.compile(places()["checkpoints"]["differ_in"])
    return len({differ.sub("", path.stem.lower()) for path in adapters(folder)}) > 1


def is_anothers(output: str, folder: Path, file: Path) -> bool:
    """Whether the `output_dir` of a configuration in `folder` exists and is not that of the run of `file`."""
    name = re.split(r"[\\/]+", output.rstrip("\\/"))[-1]
    if name in ("", ".", "..", *(mine.name for mine in own(file))):
        return False
    return any(os.path.isdir(place / name) for place in (folder.parent, folder))  # noqa: PTH112 - raises nothing


def as_typed(path: Path, file: Path) -> str:
    """A path beside `file`, as the user would type it: relative if `file` is."""
    return told(path if file.is_absolute() else os.path.relpath(path))


def _is_adapter(path: Path) -> bool:
    """Judged by the tensor names at the beginning of the file. A file that cannot be read may be one."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError:
        return True
    return b'"loraforge":' not in head and (_FACTOR.search(head) is not None or not any(head))
