"""Which checkpoint of a training output folder to take: the trainers of Diffusers and PEFT number them alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from loraforge.errors import FileError, Try, command, listed
from loraforge.formats import Choice, Found

_NUMBERED = re.compile(r"(?:checkpoint-)?(\d{1,9})")
_FILE = re.compile(r"checkpoint-(\d{1,9})\.safetensors")
"""VideoX-Fun writes files, not folders."""


def choose(folder: Path, names: Sequence[str], choice: Choice) -> Found | None:
    """The tensor file of a training output folder, with a note of the choice.

    A checkpoint is `checkpoint-N/NAME` (accelerate's), `lora_weights/N/NAME` (finetrainers') or
    `checkpoint-N.safetensors`; a NAME of the folder itself is the final result. None where there is nothing.

    Raises FileError when the iteration asked for is not there.
    """
    final = next((folder / name for name in names if (folder / name).is_file()), None)
    found = _checkpoints(folder, names)
    whole = folder.resolve()
    own = re.fullmatch(r"checkpoint-(\d+)", whole.name)
    run = f"{whole.parent.name}-{own[1]}" if own else whole.name
    everything = listed([str(n) for n in sorted(found)]) or "no numbered ones"
    if choice.iteration is not None:
        if not found and final is None:
            return None
        if choice.iteration not in found:
            newest = [Try(f"--iteration {n}") for n in sorted(found)[-3:]] or [Try(command("ls", "-l", folder))]
            raise FileError(f"{folder} has no checkpoint {choice.iteration} (it has {everything}).", *newest)
        asked = f"took checkpoint {choice.iteration} of {run}, as asked; it has {everything}"
        return Found(found[choice.iteration], f"{run}-{choice.iteration}", (asked,))
    if final is not None:
        note = f"took {final.name} of {run} itself, its final result; --iteration N takes another of {everything}"
        return Found(final, run, (note,) if found else ())
    if not found:
        return None
    last = max(found)
    note = f"took checkpoint {last} of {run}, the newest of {everything}"
    return Found(found[last], f"{run}-{last}", (note,) if len(found) > 1 else ())


def _checkpoints(folder: Path, names: Sequence[str]) -> dict[int, Path]:
    places = [folder, *(child for child in [folder / "lora_weights"] if child.is_dir())]
    found: dict[int, Path] = {}
    for child in sorted(child for place in places for child in place.iterdir()):
        if match := _FILE.fullmatch(child.name) if child.is_file() else None:
            found[int(match[1])] = child
        elif (match := _NUMBERED.fullmatch(child.name)) and child.is_dir():
            file = next((child / name for name in names if (child / name).is_file()), None)
            if file is not None:
                found[int(match[1])] = file
    return found
