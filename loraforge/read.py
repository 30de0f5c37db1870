"""Reads an adapter of any format, with the scale it was trained at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loraforge.adapter import Adapter, Source
from loraforge.errors import ScaleError
from loraforge.formats import Choice
from loraforge.kinds import not_an_adapter
from loraforge.registry import locate
from loraforge.scale import Statement, candidates


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
    as_loaded: bool = False,
    override_scale: bool = False,
    drop: Sequence[str] = (),
    fetch: bool = True,
) -> Adapter:
    """The adapter in `source`, a path or an address on the Hub; the arguments are those of `loraforge convert`.

    Its factors are read-only views of the file, so that nothing is loaded before it is used; not `fetch`: of a file
    on the Hub, shapes without numbers. Raises a
    LoraforgeError when there is no adapter, or when its scale is ambiguous or contradictory.
    """
    config = Path(training_config) if training_config else None
    stated = Statement(alpha, trained_scale, trained_by, as_loaded, override_scale)
    choice = Choice(iteration, ema, config, stated, tuple(drop))
    form, place, file = locate(source, from_, choice, fetch=fetch)
    if form is None:
        raise not_an_adapter(file)
    adapter = form.read(file, choice)
    if adapter.scale.provenance == "ambiguous":
        raise ambiguous(place.path, adapter)
    return replace(
        adapter,
        source=Source(Path(source) if Path(source).exists() else file.path, file, form.name, place.run),
        notes=(*place.notes, *adapter.notes),
    )


def ambiguous(path: Path, adapter: Adapter) -> ScaleError:
    """The refusal of an adapter whose scale nothing records and no one stated."""
    ranks = {module: delta[0].rank for module, delta in adapter.modules.items()}
    return ScaleError(
        f"{path} does not record the scale of its training: {adapter.scale.source}. "
        "State its alpha (--alpha N), or which trainer wrote it.",
        *candidates(ranks, adapter.written_as),
    )
