"""Reads an adapter of any format, with the scale it was trained at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from loraforge.adapter.adapter import Adapter, Source
from loraforge.adapter.drop import without
from loraforge.conversion.evidence import read_adapter
from loraforge.errors import LoraforgeError, ScaleError, as_commands
from loraforge.files.tensorfile import TensorFile
from loraforge.format.locate import locate
from loraforge.format.not_an_adapter import not_an_adapter
from loraforge.format.protocol import Format
from loraforge.scale.resolve import STATES
from loraforge.scale.rule import Choice
from loraforge.scale.stated import Stated, choice_of, takes_stated


@takes_stated
def read(
    source: str | Path,
    from_: str | None = None,
    *,
    iteration: int | None = None,
    ema: bool = False,
    drop: Sequence[str] = (),
    fetch: bool = True,
    **stated: Unpack[Stated],
) -> Adapter:
    """The adapter in `source`, a path or an address on the Hub; the arguments are those of `loraforge convert`.

    Its factors are read-only views of the file, loaded when used. Without `fetch`, a file on the Hub gives shapes
    without numbers. Raises a LoraforgeError if there is no adapter, or if its scale is ambiguous or contradictory.
    """
    choice = choice_of(stated, iteration=iteration, ema=ema, drop=drop)
    form, located, file = locate(source, from_, choice, fetch=fetch)
    if form is None:
        raise not_an_adapter(file)
    adapter = read_adapter(form, file, choice)
    if adapter.scale.provenance == "ambiguous":
        raise ambiguous(located.path, adapter)
    origin = Source(Path(source) if Path(source).exists() else file.path, file, form.name, located.run)
    return replace(adapter, source=origin, notes=(*located.notes, *adapter.notes))


def read_file(form: Format, file: TensorFile, choice: Choice) -> Adapter:
    """The adapter in a file, without what is dropped. Remedies of an error state a scale or are whole commands."""
    try:
        return without(read_adapter(form, file, choice), choice.drop, file)[0]
    except LoraforgeError as error:
        if all(remedy.gives_only(STATES) for remedy in error.remedies):
            raise
        raise as_commands(error, "loraforge", "convert", file.path, "--to", "diffusers") from None


def ambiguous(path: Path, adapter: Adapter) -> ScaleError:
    """The error for an adapter whose scale is unknown, with a line for each scale that it may have."""
    text = f"{path} does not record the scale of its training: {adapter.scale.source}. "
    text += "State its alpha (--alpha N), or which trainer wrote it."
    if any("--as-in" in remedy.names for remedy in adapter.candidates):
        text += " Or keep what a program does with the file today (--as-in), whatever training used: "
        text += "right if you like that."
    return ScaleError(text, *adapter.candidates)
