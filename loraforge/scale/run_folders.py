"""Which folder is a run's own: where a configuration is of the adapter's run, and where it is only near it."""

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
"""Folders beside a run's, of which one may be worth naming; among more, naming one is noise."""
UP = 3
"""Folders above a file that are looked at, its own among them."""


def places() -> dict[str, Any]:
    """The table of places."""
    return package_table("scale/places")


def states_scale(name: str, text: str = "alpha") -> bool:
    """Whether a header entry states a scale or a rank, with or without the component's name in front."""
    words, word = places()["header"], name.rpartition(".")[2]
    if name in words["documents"]:
        return "alpha" in text
    return name in words["configs"] or word in (*words["alpha"], *words["rank"], *words["rslora"])


def own(file: Path) -> list[Path]:
    """The folders of the run that wrote `file`, the nearest first: where it lies, and what a trainer puts that into."""
    folder = file.absolute().parent
    found = [folder]
    for row in places()["results"]:
        words = row["folder"].split("/")
        tail = folder.parts[-len(words) :]
        pattern = re.escape(row["folder"]).replace(r"\{n\}", "[0-9]{1,18}")
        deep = len(folder.parts) > len(words) and row.get("file", file.name) == file.name
        if deep and re.fullmatch(pattern, "/".join(tail)):
            found += [*folder.parents[: len(words)]]
    return list(dict.fromkeys(found))


def above(file: Path) -> list[Path]:
    """The folders above a file that are not its run's."""
    return [folder for folder in file.absolute().parents[:UP] if folder not in own(file)]


def beside(file: Path) -> list[Path]:
    """The folders beside that of its run: other runs', as a rule."""
    mine = own(file)
    try:
        with os.scandir(mine[-1].parent) as entries:
            found = sorted(islice((entry.path for entry in entries if entry.is_dir()), _MOST_FOLDERS + 1))
    except OSError:
        return []
    return [folder for folder in map(Path, found) if folder not in mine] if len(found) <= _MOST_FOLDERS else []


def adapters(folder: Path) -> list[Path]:
    """The adapters that lie in a folder itself, less what loraforge made of one."""
    try:
        with os.scandir(folder) as entries:
            files = [Path(entry.path) for entry in islice(entries, _MOST_FILES) if entry.is_file()]
    except OSError:
        return []
    wanted = (path for path in files if path.suffix.lower() in TENSORS and not _STATE.fullmatch(path.name))
    return sorted(path for path in wanted if _is_adapter(path))


def of_several_runs(folder: Path) -> bool:
    """Whether its adapters have names that checkpoints of one run have not: what lies beside may be of any of them."""
    differ = re.compile(places()["checkpoints"]["differ_in"])
    return len({differ.sub("", path.stem.lower()) for path in adapters(folder)}) > 1


def is_anothers(output: str, folder: Path, file: Path) -> bool:
    """Whether the `output_dir` of a configuration in `folder` is another run's than that of `file`, and is there."""
    name = re.split(r"[\\/]+", output.rstrip("\\/"))[-1]
    if name in ("", ".", "..", *(mine.name for mine in own(file))):
        return False
    return any((place / name).is_dir() for place in (folder.parent, folder))


def as_typed(path: Path, file: Path) -> str:
    """A path beside `file`, as the user would type it: relative where that one was."""
    return told(path if file.is_absolute() else os.path.relpath(path))


def _is_adapter(path: Path) -> bool:
    """Judged by the names at its beginning. What cannot be read may be one."""
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError:
        return True
    return b'"loraforge":' not in head and (_FACTOR.search(head) is not None or not any(head))
