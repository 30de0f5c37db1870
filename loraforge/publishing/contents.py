"""What a file or folder is that is to be published: its files, and what the card says of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loraforge.adapter.adapter import Adapter
from loraforge.adapter.fits import check_base, fits
from loraforge.base.model import BaseModel
from loraforge.base.opening import open_base
from loraforge.base.origin import held
from loraforge.conversion.evidence import doubt
from loraforge.conversion.inspect import trigger_words
from loraforge.diagnosis.examine import diagnosed
from loraforge.diagnosis.result import Diagnosis
from loraforge.diagnosis.verdict import SCALE_UNKNOWN, Kind
from loraforge.errors import HubError, LoraforgeError, Try, adding
from loraforge.names.catalog import architecture
from loraforge.names.layout import Architecture
from loraforge.programs.measured import acting
from loraforge.publishing.card import Facts, rows
from loraforge.publishing.outgoing import Outgoing, of_adapter, of_model
from loraforge.publishing.private import cleaned
from loraforge.scale.origin import history, own_entry
from loraforge.scale.stated import Stated
from loraforge.text import command, fraction


@dataclass(frozen=True, slots=True)
class Published:
    """What leaves, and what is said of it."""

    facts: Facts
    files: tuple[Outgoing, ...]
    notes: tuple[str, ...]


def published(
    source: Path, repo: str, base_model: str | None, stated: Stated, drop: Sequence[str], work: Path
) -> Published:
    """What `source` is. `base_model` was stated, or stands in the repository's card.

    Raises HubError where the file by itself would not act as trained, or its base model is not known.
    """
    if base := _model(source):
        if drop:
            text = f"{source} is a model with adapters in it: --drop takes nothing out of it."
            raise HubError(text, command("loraforge", "fuse", "--help"))
        return _of_model(base, base_model, as_loaded=stated["as_loaded"])
    return _of_adapter(source, repo, base_model, stated, drop, work)


def _model(source: Path) -> BaseModel | None:
    """The base weights in `source`; None where it holds something else."""
    folder = source.is_dir() and ((source / "model_index.json").exists() or (source / "config.json").exists())
    if not folder and not source.is_file():
        return None
    try:
        base = open_base(source)
    except LoraforgeError:
        if folder:
            raise
        return None
    return None if base.kind == "sat" else base


def _of_adapter(
    source: Path, repo: str, base_model: str | None, stated: Stated, drop: Sequence[str], work: Path
) -> Published:
    # what is stated is compared with the file; --as-in only lets it pass where no scale is known
    keep = stated["as_loaded"] or stated["as_in"]
    plain: Stated = {**stated, "as_loaded": False, "as_in": None}
    found, adapter = diagnosed(source, None, None, plain, drop, fetch=True, named=base_model)
    as_loaded = bool(keep) and adapter is not None and adapter.scale.provenance in ("assumed", "ambiguous")
    if as_loaded and adapter and adapter.scale.provenance == "ambiguous":
        found, adapter = diagnosed(source, None, None, stated, drop, fetch=True, named=base_model)
    again = Try(command("loraforge", "convert", source, "--to", "diffusers"), "then push what it writes")
    if adapter is None or adapter.source is None:
        raise HubError(f"{source} cannot be published: {found.why}", *found.remedies)
    file, form = adapter.source.file, adapter.source.format
    if file.kind != "safetensors":
        raise HubError(f"{file.path} is a torch checkpoint, a pickle: what is published is a safetensors file.", again)
    if unshown := doubt(adapter):
        remedy = adding("--architecture", adapter.architecture, why="if it is one")
        released = [adding("--base-model", variant.repo) for variant in fits(adapter)]
        raise HubError(f"{source} cannot be published: {unshown}.", remedy, *released)
    known = adapter.scale.provenance in ("recorded", "given")  # then a program that reads the format is all that lacks
    right = (Kind.AS_TRAINED, *[Kind.NO_PROGRAM] * known, *(SCALE_UNKNOWN if as_loaded else ()))
    if found.judgement.kind not in right:
        raise _not_as_trained(source, found, adapter)
    arch = architecture(adapter.architecture)
    base, notes = _base(base_model, adapter, arch)
    files, said = of_adapter(file, form, base, work)
    variant = next((v for v in arch.variants if v.repo == base), None)
    facts = Facts(
        repo=repo, kind="adapter", as_trained=not as_loaded, format=form,
        architecture=arch, base_model=base, variant=variant, weights=files[0].name,
        rows=_rows(adapter, found), commands=tuple(step["command"] for step in reversed(history(adapter.metadata))),
        trigger=next(iter(trigger_words(cleaned(file.metadata)[0]).values()), None),
    )  # fmt: skip
    return Published(facts, tuple(files), (*found.notes, *notes, *said))


def _not_as_trained(source: Path, found: Diagnosis, adapter: Adapter) -> HubError:
    """The refusal, with lines that make a file which can be published; they publish nothing by themselves."""
    start, remedies = ("loraforge", "convert", source, "--to", "diffusers"), []
    for remedy in found.remedies:
        if remedy.verb == "doctor":  # what it would state, said to convert
            remedies.append(replace(remedy, of=start, why=f"{remedy.why}; then push what it writes"))
        elif remedy.verb == "convert":
            remedies.append(replace(remedy, why="then push what it writes"))
    if adapter.scale.provenance in ("ambiguous", "assumed"):
        remedies.append(adding("--as-loaded", why="publish what loaders make of it today"))
    text = f"{source}, by itself, is not what was trained: {found.verdict}: {found.why}. Nothing was sent."
    return HubError(text, *(remedies or found.remedies))


def _base(stated: str | None, adapter: Adapter, arch: Architecture) -> tuple[str, list[str]]:
    """The base model as a Hub id. Raises HubError where it is not known: without it no one finds the adapter."""
    right = [variant.repo for variant in fits(adapter) if variant.repo]
    if base := stated or adapter.base_model:
        return base, list(check_base(adapter, base))
    if len(right) == 1:
        return right[0], [f"the base model is {right[0]}: told by the shapes; --base-model changes it"]
    raise HubError(
        "which base model the adapter is for is not recorded, and the card must say it.",
        *(adding("--base-model", repo) for repo in right or [variant.repo for variant in arch.variants]),
    )


def _rows(adapter: Adapter, found: Diagnosis) -> tuple[tuple[str, str], ...]:
    deltas = adapter.modules.values()
    right = found.outlooks if adapter.scale.provenance in ("recorded", "given") else ()
    ranks = ", ".join(map(str, sorted({w.rank for delta in deltas for w in delta})))
    counts = Counter(path.removesuffix(".0").rpartition(".")[2] for path in adapter.modules)
    pairs = {
        "modules": f"{len(adapter.modules)}: {', '.join(f'{name} x{count}' for name, count in counts.items())}",
        "rank": ranks,
        "element type": ", ".join(sorted({w.A.dtype.name for delta in deltas for w in delta})),
        "scale in training": _trained(adapter),
        "acts as trained in": acting(right),
    }
    header = cleaned(adapter.metadata)[0]
    words = ("title", "author", "description", "date", "usage_hint")  # of the model specification
    return rows({**pairs, **{name: header.get(f"modelspec.{name}", "") for name in words}})


def _trained(adapter: Adapter) -> str:
    """The scale of training and who says it: of the first file of the chain, where there is one."""
    steps = history(adapter.metadata)
    if steps:
        first = steps[-1]["scale"]
        return f"{', '.join(map(fraction, first['scalings']))} ({first['provenance']}: {first['source']})"
    scalings = adapter.scalings
    return f"{', '.join(map(fraction, scalings))} ({adapter.scale.provenance}: {adapter.scale.portable})"


def _of_model(base: BaseModel, stated: str | None, *, as_loaded: bool) -> Published:
    said, adapters = own_entry(base.files[0].metadata), held(base)
    if not adapters:
        text = f"{base.path} is a base model without adapters in it, as far as its header says"
        fuse = command("loraforge", "fuse", base.path, "ADAPTER", "-o", "OUT")
        raise HubError(f"{text}: there is nothing of ours to publish.", fuse)
    guessed = [entry["path"] for entry in adapters if entry.get("provenance") not in ("recorded", "given")]
    if guessed and not as_loaded:
        text = f"{base.path} holds {guessed[0]} at a scale that was only assumed. Fuse it again with the scale stated."
        raise HubError(text, adding("--as-loaded", why="publish it as it is"))
    repos = [variant.repo for variant in base.variants if variant.repo]
    if stated is None and len(repos) != 1:
        text = "which base model it was is not told by its shapes, and the card must say it."
        raise HubError(text, *(adding("--base-model", repo) for repo in repos))
    repo = stated or repos[0]
    files, notes = of_model(base)
    variant = next((v for v in base.architecture.variants if v.repo == repo), None)
    facts = Facts(
        repo="", kind="merge", as_trained=not guessed, format=base.kind,
        architecture=base.architecture, base_model=repo, variant=variant, weights=base.files[0].path.name,
        rows=rows({f"adapter {n}": _held(entry) for n, entry in enumerate(adapters, 1)}),
        commands=(str(said.get("command", "")),), trigger=None,
    )  # fmt: skip
    return Published(facts, tuple(files), tuple(notes))


def _held(entry: Mapping[str, Any]) -> str:
    scalings = ", ".join(fraction(value) for value in entry["scalings"])
    known = f"{entry['provenance']}: {entry['said']}"
    return f"{entry['path']} at strength {entry['strength']:g}, trained at {scalings} ({known})"
