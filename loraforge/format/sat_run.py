"""Run folders of SAT: checkpoints by iteration, the parts of a run, the name of a result."""

from __future__ import annotations

import re
from pathlib import Path

from loraforge.errors import FileError, Try, adding
from loraforge.files.tensorfile import TensorFile
from loraforge.format.sat_names import CHECKPOINT
from loraforge.scale.rule import Choice
from loraforge.text import command, listed, told


def shards(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("*model_states.pt") if p.is_file())


def only_shard(folder: Path) -> Path:
    """The only checkpoint of a folder. Raises FileError if it is split over ranks, or not there."""
    names = shards(folder)
    if split := [name for name in names if name.startswith(("z3_rank_", "zero_pp_rank_"))]:
        raise FileError(
            f"{folder} is a DeepSpeed ZeRO-3 checkpoint: its weights are cut into {len(split)} pieces like {split[0]}. "
            "Train with ZeRO stage 2 (SAT's default), or gather them with DeepSpeed's zero_to_fp32.py first."
        )
    if [name for name in names if _PART.fullmatch(name)] not in ([], [CHECKPOINT]):
        raise _divided(folder, f"{listed(names, 3)} lie in it")
    if names != [CHECKPOINT]:
        raise FileError(f"{folder} has {listed(names)}, but no {CHECKPOINT}.")
    return folder / CHECKPOINT


_PART = re.compile(r"mp_rank_([0-9]{2})_model_states\.pt")


def undivided(file: TensorFile) -> None:
    """Raises FileError for one of several parts, shown by the file's own count, its name, or the files beside it."""
    folder, why = file.path.absolute().parent, ""
    if (parts := file.counts.get("mp_world_size", 1)) > 1:
        why = f"its mp_world_size is {parts}"
    elif match := _PART.fullmatch(file.path.name):
        others = [p.name for p in sorted(folder.glob("mp_rank_*_model_states.pt")) if p.name != file.path.name]
        first = match[1] == "00"
        why = f"beside it lies {listed(others, 3)}" if others else "" if first else "it is not the first part"
    if why:
        raise _divided(file.path, why)


def _divided(path: Path, why: str) -> FileError:
    return FileError(
        f"{path} was saved with model parallelism ({why}): each part has some rows of every module, and SAT's LoRA "
        "acts differently in each, so that no one update is what was trained. Train with model_parallel_size: 1. "
        "The parts of a base model can be merged first, by SAT."
    )


def choose(run: Path, checkpoints: set[str], choice: Choice) -> tuple[str, str]:
    """The iteration folder to take, and a note that says which and why. Raises FileError if there is no such one."""
    plain, averaged = _by_number(checkpoints, r"(?:global_step)?(\d+)"), _by_number(checkpoints, r"(\d+)-ema")
    have, ending = (averaged, "-ema") if choice.ema else (plain, "")
    everything = listed([*plain.values(), *averaged.values()]) or "none"
    latest, name, others = _latest(run / "latest"), run.resolve().name, f"; the run has {everything}"
    if choice.ema and not averaged:
        raise FileError(f"{run} has no averaged weights (-ema); it has {everything}.")
    if choice.iteration is not None:
        if choice.iteration not in have:
            text = f"{run} has no checkpoint {choice.iteration}{ending} (it has {everything})."
            raise FileError(text, *(adding("--iteration", str(n)) for n in list(have)[-3:]))
        chosen = have[choice.iteration]
        return chosen, f"took iteration {chosen} of {name}, as asked{others}"
    if latest is not None:
        chosen = f"{latest.removesuffix('-ema')}{ending}" if choice.ema else latest
        if chosen not in checkpoints:
            text = f"{run / 'latest'} names {chosen!r}, but there is no such checkpoint (found: {everything})."
            raise FileError(text, *(Try(told(run / name), instead=told(run)) for name in list(have.values())[-3:]))
        others = others if len(checkpoints) > 1 else ""
        return chosen, f"took iteration {chosen} of {name}, which `latest` names{others}"
    if have:
        newest = have[max(have)]
        return newest, f"took iteration {newest} of {name}, the newest; there is no `latest`{others}"
    if len(checkpoints) == 1:
        (only,) = checkpoints
        return only, f"took {only} of {name}, the only one; there is no `latest`"
    remedies = [command("loraforge", "inspect", run / child) for child in sorted(checkpoints)[:5]]
    raise FileError(f"{run} has no numbered checkpoint (it has {listed(sorted(checkpoints))}).", *remedies)


def _latest(file: Path) -> str | None:
    """The checkpoint that a run's `latest` names, or None."""
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        text = stream.read(100)
    wide = text[:2] in (b"\xff\xfe", b"\xfe\xff")
    return text.decode("utf-16" if wide else "utf-8-sig", "replace").strip()


def _by_number(checkpoints: set[str], pattern: str) -> dict[int, str]:
    """Iteration -> the name of its folder, the oldest first. DeepSpeed's own names begin with global_step."""
    matches = (match for name in checkpoints if (match := re.fullmatch(pattern, name)))
    return {int(match[1]): match[0] for match in sorted(matches, key=lambda match: int(match[1]))}


def run_name(file: Path) -> str:
    """`<run>-<iteration>` for a checkpoint in SAT's folders, otherwise the file's own stem."""
    folder = file.resolve().parent
    if file.name == CHECKPOINT and re.fullmatch(r"\d+(-ema)?|release", folder.name):
        return f"{folder.parent.name}-{folder.name}"
    return folder.name if file.name == CHECKPOINT else file.stem
