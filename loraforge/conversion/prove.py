"""The proof of a written file: it is read back, and its update compared with the source's, row by row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from loraforge.adapter.adapter import Adapter, Step
from loraforge.adapter.proof import compare, pair_up
from loraforge.errors import LoraforgeError, VerificationError
from loraforge.files.digest import changed
from loraforge.files.opening import open_tensors
from loraforge.files.tensorfile import TensorFile
from loraforge.format.protocol import Format
from loraforge.scale.rule import Choice
from loraforge.text import command, listed

if TYPE_CHECKING:
    from loraforge.adapter.proof import Comparison


def _prove(
    adapter: Adapter,
    target: Format,
    written: Path,
    sums: Mapping[str, int],
    metadata: Mapping[str, str],
    steps: Sequence[Step],
    file: TensorFile | None,
) -> tuple[list[Comparison], TensorFile, Adapter]:
    """Read the written file as its loader would: its bytes, its header, then its update against the source's.

    Returns what was found of each segment, and what was read; a segment that does not hold lost too much to rounding,
    and to nothing else. Raises VerificationError.
    """
    try:
        back, _ = open_tensors(written)
    except LoraforgeError as error:
        said = error.message.replace(str(written), written.name)
        raise VerificationError(f"the written file is damaged: {said} Nothing was kept.") from error
    damaged = changed(back, sums)
    if back.kind == "safetensors" and back.metadata != metadata:
        damaged.append("its metadata")
    if damaged:
        raise VerificationError(
            f"the disk gave back other bytes than were written ({listed(damaged, 5)}). Nothing was kept.",
            command("ls", "-l", written.parent.parent),
        )

    def release() -> None:
        if file:
            file.release()
        back.release()

    rounded = {step.module for step in steps if step.kind == "rounded"}
    try:
        again = target.read(back, Choice(architecture=adapter.architecture))
    except LoraforgeError as error:
        said = error.message.replace(str(written), written.name)
        raise VerificationError(f"the written file is not read as it was meant: {said} Nothing was kept.") from error
    pairs, alone = pair_up(adapter, again)
    if alone.first or alone.second:
        names = listed([*alone.first, *alone.second], 5)
        raise VerificationError(f"the written file adapts other modules than the source: {names}. Nothing was kept.")
    results = compare(pairs, rounded.__contains__, release)
    wrong = [result for result in results if not result.rounding]
    if wrong:
        wrong.sort(key=lambda result: -result.error)
        worst = listed([f"{result.module} (off by {result.error:.1e} of a row)" for result in wrong], 5)
        raise VerificationError(
            f"the written file does not do what the source does, in {len(wrong)} of {len(results)} segments: {worst}. "
            "Nothing was kept. This is a fault of loraforge: please report it with the skeleton of your file.",
            *([command("loraforge", "inspect", "--skeleton", file.path)] if file else []),
        )
    return results, back, again


def _prove_place(target: Format, folder: Path, names: Sequence[str], written: Path) -> None:
    """What was written is found where it lies, by whoever is given the folder. Raises VerificationError."""
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise VerificationError(f"{listed(missing)} was not written. Nothing was kept.")
    if len(names) == 1:
        return
    try:
        found = target.find(folder, Choice())
    except LoraforgeError as error:
        said = error.message.replace(str(folder), folder.name)
        raise VerificationError(f"the written folder is not one of {target.name}: {said} Nothing was kept.") from error
    if found is None or found.path != written:
        raise VerificationError(f"{written.name} is not what is found in the written folder. Nothing was kept.")
