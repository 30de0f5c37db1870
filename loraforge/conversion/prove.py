"""Reads a written file back as its loader would, and compares the update it makes with the source's."""

from __future__ import annotations

from loraforge.adapter.adapter import Adapter
from loraforge.adapter.proof import Comparison, compare, pair_up
from loraforge.conversion.prepare import Prepared, refusal
from loraforge.conversion.store import Written
from loraforge.errors import LoraforgeError, VerificationError
from loraforge.files.digest import changed
from loraforge.files.opening import open_tensors
from loraforge.files.tensorfile import TensorFile
from loraforge.scale.rule import Choice
from loraforge.text import command, listed


def prove(prepared: Prepared, written: Written) -> tuple[TensorFile, Adapter, list[Comparison]]:
    """The written file, the adapter in it, and how each segment compares with the source's.

    Raises VerificationError if they differ; ConversionError if rounding took too much.
    """
    back, again = _read_back(prepared, written)
    results = _compared(prepared, written, back, again)
    _find(prepared, written)
    if lossy := {result.module: result.loss for result in results if not result.holds}:
        raise refusal(prepared, lossy)  # in one of several segments: the module as a whole could bear it
    return back, again, results


def _read_back(prepared: Prepared, written: Written) -> tuple[TensorFile, Adapter]:
    """The written file and the adapter in it. Raises VerificationError if its bytes or header have changed."""
    file = written.file
    try:
        back, _ = open_tensors(file)
    except LoraforgeError as error:
        text = error.message.replace(str(file), file.name)
        raise VerificationError(f"the written file is damaged: {text} Nothing was kept.") from error
    damaged = changed(back, written.sums)
    if back.kind == "safetensors" and back.metadata != written.metadata:
        damaged.append("its metadata")
    if damaged:
        text = f"the disk gave back other bytes than were written ({listed(damaged, 5)}). Nothing was kept."
        raise VerificationError(text, command("ls", "-l", file.parent.parent))
    try:
        return back, prepared.target.read(back, Choice(architecture=prepared.adapter.architecture))
    except LoraforgeError as error:
        text = error.message.replace(str(file), file.name)
        raise VerificationError(f"the written file is not read as it was meant: {text} Nothing was kept.") from error


def _compared(prepared: Prepared, written: Written, back: TensorFile, again: Adapter) -> list[Comparison]:
    """The result for each segment; only rounding can make one fail to hold. Raises VerificationError otherwise."""

    def release() -> None:
        if prepared.file:
            prepared.file.release()
        back.release()

    rounded = {step.module for step in written.computed.steps if step.kind == "rounded"}
    pairs, alone = pair_up(prepared.adapter, again)
    if any(alone):
        names = listed([*alone[0], *alone[1]], 5)
        raise VerificationError(f"the written file adapts other modules than the source: {names}. Nothing was kept.")
    results = compare(pairs, rounded.__contains__, release)
    if wrong := sorted((result for result in results if not result.rounding), key=lambda result: -result.error):
        worst = listed([f"{result.module} (off by {result.error:.1e} of a row)" for result in wrong], 5)
        raise VerificationError(
            f"the written file does not do what the source does, in {len(wrong)} of {len(results)} segments: {worst}. "
            "Nothing was kept. This is a fault of loraforge: please report it with the skeleton of your file.",
            *([command("loraforge", "inspect", "--skeleton", prepared.file.path)] if prepared.file else []),
        )
    return results


def _find(prepared: Prepared, written: Written) -> None:
    """Check that a reader who is given the folder finds the file. Raises VerificationError if not."""
    target, folder, names = prepared.target, written.folder, prepared.destination.names
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise VerificationError(f"{listed(missing)} was not written. Nothing was kept.")
    if len(names) == 1:
        return
    try:
        located = target.find(folder, Choice())
    except LoraforgeError as error:
        text = error.message.replace(str(folder), folder.name)
        raise VerificationError(f"the written folder is not one of {target.name}: {text} Nothing was kept.") from error
    if located is None or located.path != written.file:
        raise VerificationError(f"{written.file.name} is not what is found in the written folder. Nothing was kept.")
