"""Say why an adapter has no effect, is too weak, too strong or garbled: one verdict, the numbers, one command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Unpack

from loraforge.adapter.adapter import Adapter
from loraforge.adapter.fits import fits
from loraforge.diagnosis.examine import diagnosed
from loraforge.diagnosis.verdict import Diagnosis, Kind, Verdict
from loraforge.errors import LoraforgeError, adding
from loraforge.facts.given_settings import parse
from loraforge.facts.setting_rules import compare
from loraforge.facts.symptoms import find, language
from loraforge.facts.variants import settings as variant_settings
from loraforge.files.shards import group_of
from loraforge.hub.address import address
from loraforge.programs.table import runtime
from loraforge.scale.stated import Stated, takes_stated
from loraforge.text import command


@takes_stated
def doctor(
    source: str | Path,
    *,
    base: str | Path | None = None,
    runtime_: str | None = None,
    error: str | None = None,
    settings: Sequence[str | Path] = (),
    like: str | None = None,
    variant: str | None = None,
    drop: Sequence[str] = (),
    fetch: bool = False,
    **stated: Unpack[Stated],
) -> Diagnosis:
    """Diagnose the adapter in `source`, a path or an address on the Hub; the arguments are those of `loraforge doctor`.

    Only the header of a file on the Hub is judged, unless called with `fetch` or with a `base`.
    Raises LoraforgeError only for mistakes of the user: a path that does not exist, an unknown runtime.
    """
    given = parse(settings)
    if variant is not None:
        variant_settings(variant)
    if address(source) is None and not Path(source).exists() and group_of(Path(source)) is None:
        raise LoraforgeError(f"{source} does not exist.", command("ls", "-l", Path(source).parent))
    program = runtime(runtime_).name if runtime_ else None
    diagnosis, adapter = diagnosed(source, base, program, stated, drop, fetch=fetch or base is not None)
    file = adapter.source.file if adapter and adapter.source else None
    if file and file.spread:
        why = f"in {len(file.maps)} files, and loaders read one"
        diagnosis = _elsewhere_whole(diagnosis, source, Kind.IN_PARTS, why)
    elif file and file.within:
        why = "among the weights of a whole model, and loaders read noise from that"
        diagnosis = _elsewhere_whole(diagnosis, source, Kind.IN_MODEL, why)
    if error is not None:
        entries = tuple(entry.to_dict(language(), source) for entry in find(error))
        notes = [] if entries else ["no failure text that is known stands in what --error was given"]
        if entries and diagnosis.healthy:
            notes = ["nothing in this file explains that text: another file, or another program (--runtime), gave it"]
        diagnosis = replace(diagnosis, errors=entries, notes=(*diagnosis.notes, *notes))
    if adapter and (given or like):
        rank = max(delta[0].rank for delta in adapter.modules.values())
        diagnosis = replace(diagnosis, settings=tuple(compare(given, _variant(adapter, variant), like=like, rank=rank)))
    return diagnosis


def _elsewhere_whole(diagnosis: Diagnosis, source: str | Path, kind: Kind, why: str) -> Diagnosis:
    """The diagnosis of an adapter that is not a file of its own; without the table, which judges whole files."""
    if diagnosis.judgement.kind not in (Kind.AS_TRAINED, Kind.NOTHING):
        return replace(diagnosis, outlooks=())
    effect = "be as trained" if diagnosis.judgement.kind is Kind.AS_TRAINED else "act"
    whole = f"it lies {why}; as one file it would {effect}"
    remedy = adding("--to", "diffusers", why="one file").added_to("loraforge", "convert", source)
    return replace(diagnosis, judgement=Verdict(kind, whole), outlooks=(), remedies=(remedy,))


def _variant(adapter: Adapter, stated: str | None) -> str:
    """The model whose settings apply: the stated one, the recorded one, or the only one with these shapes."""
    if stated is not None:
        return stated
    known = [v for v in adapter.model.variants if v.repo == adapter.base_model] or fits(adapter)
    if len(known) == 1:
        return known[0].name
    every = known or adapter.model.variants
    text = "which model it is for is neither recorded nor told by its shapes, and the right settings depend on it."
    raise LoraforgeError(text, *(adding("--variant", v.name) for v in every))
