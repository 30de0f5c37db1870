"""Reads an adapter of any format, with the scale it was trained at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loraforge.adapter.adapter import Adapter, Source
from loraforge.conversion.evidence import read_adapter
from loraforge.errors import ScaleError
from loraforge.format.locate import locate
from loraforge.format.not_an_adapter import not_an_adapter
from loraforge.scale.resolve import statement
from loraforge.scale.rule import Choice


def read(
    source: str | Path,
    from_: str | None = None,
    *,
    iteration: int | None = None,
    ema: bool = False,
    alpha: float | None = None,
    trained_scale: float | None = None,
    trained_by: str | None = None,
    training_config: str | Path | None = None,
    as_in: str | None = None,
    as_loaded: bool = False,
    override_scale: bool = False,
    architecture: str | None = None,
    drop: Sequence[str] = (),
    fetch: bool = True,
) -> Adapter:
    """The adapter in `source`, a path or an address on the Hub; the arguments are those of `loraforge convert`.

    Its factors are read-only views of the file, so that nothing is loaded before it is used; not `fetch`: of a file
    on the Hub, shapes without numbers. Raises a
    LoraforgeError when there is no adapter, or when its scale is ambiguous or contradictory.
    """
    config = Path(training_config) if training_config else None
    stated = statement(
        alpha=alpha, trained_scale=trained_scale, trained_by=trained_by,
        as_in=as_in, as_loaded=as_loaded, override_scale=override_scale,
    )  # fmt: skip
    choice = Choice(iteration, ema, config, stated, tuple(drop), architecture)
    form, place, file = locate(source, from_, choice, fetch=fetch)
    if form is None:
        raise not_an_adapter(file)
    adapter = read_adapter(form, file, choice)
    if adapter.scale.provenance == "ambiguous":
        raise ambiguous(place.path, adapter)
    return replace(
        adapter,
        source=Source(Path(source) if Path(source).exists() else file.path, file, form.name, place.run),
        notes=(*place.notes, *adapter.notes),
    )


def ambiguous(path: Path, adapter: Adapter) -> ScaleError:
    """The refusal of an adapter whose scale nobody knows, with a line for each that it may have."""
    kept = any("--as-in" in remedy.names for remedy in adapter.candidates)
    keep = " Or keep what a program does with the file today (--as-in), whatever training used: right if you like that."
    return ScaleError(
        f"{path} does not record the scale of its training: {adapter.scale.source}. "
        f"State its alpha (--alpha N), or which trainer wrote it.{keep if kept else ''}",
        *adapter.candidates,
    )
