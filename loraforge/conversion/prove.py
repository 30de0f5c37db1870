"""Reads a written file back as its loader would, and compares the update it makes with the source's."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraforge.adapter.adapter import Adapter, Step
from loraforge.adapter.proof import compare, pair_up
from loraforge.conversion.prepare import Prepared, refusal
from loraforge.conversion.store import Written
from loraforge.errors import LoraforgeError, VerificationError
from loraforge.files.digest import changed
from loraforge.files.opening import open_tensors
from loraforge.files.tensorfile import TensorFile
from loraforge.programs.measured import Program, programs
from loraforge.programs.outlook import outlooks
from loraforge.scale.rule import Choice
from loraforge.text import command, listed

if TYPE_CHECKING:
    from loraforge.adapter.proof import Comparison


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a conversion, or its dry run, found out."""

    digest: str | None
    """Of the source's tensors; None if they were not fetched."""
    steps: tuple[Step, ...] = ()
    programs: tuple[Program, ...] = ()
    worst_error: float | None = None
    """Of any row; None if nothing was written."""
    idle: bool = False
    """Whether the update is zero."""


def prove(prepared: Prepared, written: Written) -> Outcome:
    """Compare the files with the source. Raises VerificationError; ConversionError if rounding took too much."""
    back, again = _read_back(prepared, written)
    results = _compared(prepared, written, back, again)
    _find(prepared, written)
    if lossy := {result.module: result.loss for result in results if not result.holds}:
        raise refusal(prepared, lossy)  # of one of several segments, which the module as a whole could bear
    return Outcome(
        digest=written.digest,
        steps=tuple(written.steps),
        programs=programs(outlooks(prepared.target, back, again), prepared.target.name),
        worst_error=max(result.error for result in results),
        idle=all(math.isnan(result.strength) for result in results),
    )


def _read_back(prepared: Prepared, written: Written) -> tuple[TensorFile, Adapter]:
    """The written file, and the adapter in it. Raises VerificationError for bytes or a header that are others."""
    file = written.file
    try:
        back, _ = open_tensors(file)
    except LoraforgeError as error:
        said = error.message.replace(str(file), file.name)
        raise VerificationError(f"the written file is damaged: {said} Nothing was kept.") from error
    damaged = changed(back, written.sums)
    if back.kind == "safetensors" and back.metadata != written.metadata:
        damaged.append("its metadata")
    if damaged:
        raise VerificationError(
            f"the disk gave back other bytes than were written ({listed(damaged, 5)}). Nothing was kept.",
            command("ls", "-l", file.parent.parent),
        )
    try:
        return back, prepared.target.read(back, Choice(architecture=prepared.adapter.architecture))
    except LoraforgeError as error:
        said = error.message.replace(str(file), file.name)
        raise VerificationError(f"the written file is not read as it was meant: {said} Nothing was kept.") from error


def _compared(prepared: Prepared, written: Written, back: TensorFile, again: Adapter) -> list[Comparison]:
    """The result for each segment; one that does not hold lost too much to rounding, and to nothing else.

    Raises VerificationError.
    """

    def release() -> None:
        if prepared.file:
            prepared.file.release()
        back.release()

    rounded = {step.module for step in written.steps if step.kind == "rounded"}
    pairs, alone = pair_up(prepared.adapter, again)
    if any(alone):
        names = listed([*alone[0], *alone[1]], 5)
        raise VerificationError(f"the written file adapts other modules than the source: {names}. Nothing was kept.")
    results = compare(pairs, rounded.__contains__, release)
    wrong = [result for result in results if not result.rounding]
    if wrong:
        wrong.sort(key=lambda result: -result.error)
        worst = listed([f"{result.module} (off by {result.error:.1e} of a row)" for result in wrong], 5)
        raise VerificationError(
            f"the written file does not do what the source does, in {len(wrong)} of {len(results)} segments: {worst}. "
            "Nothing was kept. This is a fault of loraforge: please report it with the skeleton of your file.",
            *([command("loraforge", "inspect", "--skeleton", prepared.file.path)] if prepared.file else []),
        )
    return results


def _find(prepared: Prepared, written: Written) -> None:
    """What was written is found where it lies, by whoever is given the folder. Raises VerificationError."""
    target, folder, names = prepared.target, written.folder, prepared.destination.names
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise VerificationError(f"{listed(missing)} was not written. Nothing was kept.")
    if len(names) == 1:
        return
    try:
        found = target.find(folder, Choice())
    except LoraforgeError as error:
        said = error.message.replace(str(folder), folder.name)
        raise VerificationError(f"the written folder is not one of {target.name}: {said} Nothing was kept.") from error
    if found is None or found.path != written.file:
        raise VerificationError(f"{written.file.name} is not what is found in the written folder. Nothing was kept.")
