"""Which checkpoint of a training output folder to take. The trainers of Diffusers and PEFT number them the same way."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from loraforge.errors import FileError, adding
from loraforge.format.protocol import Found
from loraforge.scale.rule import Choice
from loraforge.text import command, listed

_NUMBERED = re.compile(r"(?:checkpoint-)?([0-9]{1,18})")
_FILE = re.compile(r"checkpoint-([0-9]{1,18})\.safetensors|([0-9]{1,18})_adapters\.safetensors")
"""VideoX-Fun and the trainers of MLX write files, not folders."""


def choose(folder: Path, names: Sequence[str], choice: Choice) -> Found | None:
    """The tensor file of a training output folder, with a note on the choice; `folder` itself if it is a file.

    A checkpoint is `checkpoint-N/NAME` (accelerate's), `lora_weights/N/NAME` (finetrainers'),
    `checkpoint-N.safetensors` or `N_adapters.safetensors` (MLX's); a NAME in the folder itself is the final result.
    None if there is none of them.

    Raises FileError if the requested iteration is missing, or exists twice.
    """
    if folder.is_file():
        return Found(folder, folder.stem if folder.name not in names else folder.resolve().parent.name)
    whole = folder.resolve()
    own = _NUMBERED.fullmatch(whole.name)
    run = f"{whole.parent.name}-{own[1]}" if own and whole.name != own[1] else whole.name
    final = next((folder / name for name in names if (folder / name).is_file()), None)
    numbered, empty = _checkpoints(folder, names)
    if final is None and not numbered:
        return None
    if choice.ema:
        text = f"{folder}: --ema takes the averaged weights of a run of SAT (N-ema), and no such folder is in it."
        raise FileError(text)
    everything = listed([str(n) for n in sorted(numbered)]) or "no numbered ones"
    if choice.iteration is not None:
        if final is not None and own and int(own[1]) == choice.iteration:
            return Found(final, run)
        if choice.iteration not in numbered:
            newest = [adding("--iteration", str(n)) for n in sorted(numbered)[-3:]]
            text = f"{folder} has no checkpoint {choice.iteration} (it has {everything})."
            raise FileError(text, *newest)
        number = choice.iteration
        notes = [f"took checkpoint {number} of {run}, as asked; it has {everything}"]
    elif final is not None:
        note = f"took {final.name} of {run} itself, its final result; --iteration N takes another of {everything}"
        return Found(final, run, (note,) if numbered else ())
    else:
        number = max(numbered)
        notes = [f"took checkpoint {number} of {run}, the newest of {everything}"] if len(numbered) > 1 else []
        if later := [empty[n].name for n in sorted(empty) if n > number]:
            notes.append(f"{listed(later, 3)} of {run} has no {' or '.join(names)}, and was passed over")
    paths = numbered[number]
    if len(paths) > 1:
        text = f"{paths[0]} and {paths[1]} have the same number: give the one you mean."
        raise FileError(text, *(command("loraforge", "inspect", path) for path in paths[:3]))
    return Found(paths[0], f"{run}-{number}", tuple(notes))


def _checkpoints(folder: Path, names: Sequence[str]) -> tuple[dict[int, list[Path]], dict[int, Path]]:
    """Number -> its tensor files; and number -> the folder that is named like a checkpoint but has no tensor file."""
    numbered, empty = defaultdict[int, list[Path]](list), dict[int, Path]()
    places = [place for place in (folder, folder / "lora_weights") if place.is_dir()]
    for child in sorted(child for place in places for child in place.iterdir()):
        if match := _FILE.fullmatch(child.name) if child.is_file() else None:
            numbered[int(match[1] or match[2])].append(child)
        elif match := _NUMBERED.fullmatch(child.name):
            file = next((child / name for name in names if (child / name).is_file()), None)
            if file is not None:
                numbered[int(match[1])].append(file)
            elif child.name != match[1]:  # a bare number may be anything
                empty[int(match[1])] = child
    return numbered, empty
