"""What is published of a file or folder: its files, and the facts for the card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from loraforge.adapter.adapter import Adapter
from loraforge.adapter.fits import check_base, fits, variant_of_repo
from loraforge.base.model import BaseModel
from loraforge.base.opening import open_base
from loraforge.base.origin import held
from loraforge.conversion.evidence import doubt, read_adapter
from loraforge.diagnosis.doctor import diagnosed
from loraforge.diagnosis.inspect import trigger_words
from loraforge.diagnosis.verdict import SCALE_UNKNOWN, Diagnosis, Kind
from loraforge.errors import HubError, LoraforgeError, Try, adding
from loraforge.files.tensorfile import KEY, TensorFile
from loraforge.format.registry import formats
from loraforge.names.layout import Architecture
from loraforge.programs.outlook import acting
from loraforge.publishing.allowed import Allowed, has_form
from loraforge.publishing.card import Facts
from loraforge.publishing.outgoing import Outgoing, of_adapter, of_model
from loraforge.scale.origin import CHANGED, WITHHELD, history, is_command, own_entry
from loraforge.scale.rule import Choice
from loraforge.scale.stated import Stated
from loraforge.text import command, fraction

Published = tuple[Facts, list[Outgoing], list[str]]
"""The facts for the card, the files to send, and notes."""


def published(
    source: Path, repo: str, base_model: str | None, stated: Stated, drop: Sequence[str], work: Path
) -> Published:
    """What is published of `source`. `base_model` comes from the user or from the card in the repository.

    Raises HubError if the file by itself would not act as trained, or if its base model is not known.
    """
    if model := _model(source):
        if drop:
            text = f"{source} is a model with adapters in it: --drop takes nothing out of it."
            raise HubError(text, command("loraforge", "fuse", "--help"))
        return _of_model(model, base_model, work, as_loaded=stated["as_loaded"])
    # a stated scale is compared with the file; --as-in counts only if no scale is known
    keep = stated["as_loaded"] or stated["as_in"]
    plain: Stated = {**stated, "as_loaded": False, "as_in": None}
    diagnosis, adapter = diagnosed(source, None, None, plain, drop, fetch=True, named=base_model)
    as_loaded = bool(keep) and adapter is not None and adapter.scale.provenance in ("assumed", "ambiguous")
    if as_loaded and adapter and adapter.scale.provenance == "ambiguous":
        diagnosis, adapter = diagnosed(source, None, None, stated, drop, fetch=True, named=base_model)
    again = Try(command("loraforge", "convert", source, "--to", "diffusers"), "then push what it writes")
    if adapter is None or adapter.source is None:
        raise HubError(f"{source} cannot be published: {diagnosis.why}", *diagnosis.remedies)
    file, form = adapter.source.file, adapter.source.format
    if file.kind != "safetensors":
        raise HubError(f"{file.path} is a torch checkpoint, a pickle: what is published is a safetensors file.", again)
    if unshown := doubt(adapter):
        remedy = adding("--architecture", adapter.architecture, why="if it is one")
        released = [adding("--base-model", variant.repo) for variant in fits(adapter)]
        raise HubError(f"{source} cannot be published: {unshown}.", remedy, *released)
    known = adapter.scale.provenance in ("recorded", "given")  # then only a program is missing
    right = (Kind.AS_TRAINED, *[Kind.NO_PROGRAM] * known, *(SCALE_UNKNOWN if as_loaded else ()))
    if diagnosis.judgement.kind not in right:
        raise _not_as_trained(source, diagnosis, adapter)
    if KEY in file.metadata and KEY not in adapter.metadata:  # whoever reads the header alone would believe our entry
        raise HubError(f"{source} cannot be published as it is: {CHANGED}.", again)
    arch = adapter.model
    base, notes = _base(base_model, adapter, arch)
    files, changes = of_adapter(file, form, base, work)
    header = Allowed(file.tensors, base).header(file.metadata)
    if _reading(form, file) != _reading(form, replace(file, metadata=header)):
        text = f"{file.path} would be read at another scale without what stays at home of its header. Nothing was sent."
        raise HubError(text, again)
    variant = next((v for v in arch.variants if v.repo == base), None)
    facts = Facts(
        repo=repo, kind="adapter", as_trained=not as_loaded, format=form,
        architecture=arch, base_model=base, variant=variant, weights=files[0].name,
        rows=_rows(adapter, diagnosis, header), commands=_commands(reversed(history(header))),
        trigger=next(iter(trigger_words(header).values()), None),
    )  # fmt: skip
    return facts, files, [*diagnosis.notes, *notes, *changes]


def _reading(form: str, file: TensorFile) -> tuple[object, ...]:
    """The scale that is read of a file, and how well it is known; empty if it cannot be read without a statement."""
    with suppress(LoraforgeError):
        adapter = read_adapter(formats()[form], file, Choice())
        return adapter.scalings, adapter.scale.provenance
    return ()


def _model(source: Path) -> BaseModel | None:
    """The base weights in `source`; None if it holds something else."""
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


def _not_as_trained(source: Path, diagnosis: Diagnosis, adapter: Adapter) -> HubError:
    """The refusal; its remedies write a file that can be published, and publish nothing themselves."""
    start, remedies = ("loraforge", "convert", source, "--to", "diffusers"), []
    for remedy in diagnosis.remedies:
        if remedy.verb == "doctor":  # its options belong to convert
            remedies.append(replace(remedy, of=start, why=f"{remedy.why}; then push what it writes"))
        elif remedy.verb == "convert":
            remedies.append(replace(remedy, why="then push what it writes"))
    if adapter.scale.provenance in ("ambiguous", "assumed"):
        remedies.append(adding("--as-loaded", why="publish what loaders make of it today"))
    text = f"{source}, by itself, is not what was trained: {diagnosis.verdict}: {diagnosis.why}. Nothing was sent."
    return HubError(text, *(remedies or diagnosis.remedies))


def _base(stated: str | None, adapter: Adapter, arch: Architecture) -> tuple[str, list[str]]:
    """The base model as a Hub id, and notes. Raises HubError if it is unknown: nobody would find the adapter."""
    right = [variant.repo for variant in fits(adapter) if variant.repo]
    known = variant_of_repo(adapter.base_model) if adapter.base_model and not stated else None
    if base := stated or (known and known[1].repo):
        return base, list(check_base(adapter, base))
    if adapter.base_model:  # a name that a stranger or a trainer wrote: is it to be published?
        text = f"it says that its base model is {adapter.base_model}, which is no released model that is known here."
        raise HubError(text, *(adding("--base-model", repo) for repo in [adapter.base_model, *right]))
    if len(right) == 1:
        return right[0], [f"the base model is {right[0]}: told by the shapes; --base-model changes it"]
    raise HubError(
        "which base model the adapter is for is not recorded, and the card must say it.",
        *(adding("--base-model", repo) for repo in right or [variant.repo for variant in arch.variants]),
    )


def _rows(adapter: Adapter, diagnosis: Diagnosis, header: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    factors = [w for delta in adapter.modules.values() for w in delta]
    right = diagnosis.outlooks if adapter.scale.provenance in ("recorded", "given") else ()
    counts = Counter(path.removesuffix(".0").rpartition(".")[2] for path in adapter.modules)
    pairs = {
        "modules": f"{len(adapter.modules)}: {', '.join(f'{name} x{count}' for name, count in counts.items())}",
        "rank": ", ".join(map(str, sorted({w.rank for w in factors}))),
        "element type": ", ".join(sorted({w.A.dtype.name for w in factors})),
        "scale in training": _trained(adapter, header),
        "acts as trained in": acting(right),
    }
    words = ("title", "author", "description", "date", "usage_hint")  # of the model specification
    texts = {**pairs, **{name: header.get(f"modelspec.{name}", "") for name in words}}
    return tuple((label, text) for label, text in texts.items() if text)


def _commands(steps: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """The commands that a card shows, the oldest first."""
    return tuple(step["command"] for step in steps if is_command(step.get("command")))


def _trained(adapter: Adapter, header: Mapping[str, str]) -> str:
    """The scale of training and its source, from the first file of the history if there is one."""
    said = adapter.scale.portable if has_form("said", adapter.scale.portable) else WITHHELD
    own = {"scalings": adapter.scalings, "provenance": adapter.scale.provenance, "source": said}
    first = next((step["scale"] for step in reversed(history(header))), own)
    return f"{', '.join(map(fraction, first['scalings']))} ({first['provenance']}: {first['source']})"


def _of_model(base: BaseModel, stated: str | None, work: Path, *, as_loaded: bool) -> Published:
    adapters = held(base)
    if not adapters:
        text = f"{base.path} is a base model without adapters in it, as far as its header says"
        raise HubError(f"{text}: there is nothing of ours to publish.")
    guessed = [each["path"] for each in adapters if each.get("provenance") not in ("recorded", "given")]
    if guessed and not as_loaded:
        text = f"{base.path} holds {guessed[0]} at a scale that was only assumed. Fuse it again with the scale stated."
        raise HubError(text, adding("--as-loaded", why="publish it as it is"))
    repos = [variant.repo for variant in base.variants if variant.repo]
    if stated is None and len(repos) != 1:
        text = "which base model it was is not told by its shapes, and the card must say it."
        raise HubError(text, *(adding("--base-model", repo) for repo in repos))
    repo = stated or repos[0]
    files, notes = of_model(base, repo, work)
    header = Allowed((), repo).header(base.files[0].metadata)
    shown = replace(base, files=(replace(base.files[0], metadata=header), *base.files[1:]))
    variant = next((v for v in base.architecture.variants if v.repo == repo), None)
    facts = Facts(
        repo="", kind="merge", as_trained=not guessed, format=base.kind,
        architecture=base.architecture, base_model=repo, variant=variant, weights=base.files[0].path.name,
        rows=tuple((f"adapter {n}", _held(each)) for n, each in enumerate(held(shown), 1)),
        commands=_commands([own_entry(header)]), trigger=None,
    )  # fmt: skip
    return facts, files, notes


def _held(entry: Mapping[str, Any]) -> str:
    scalings = ", ".join(fraction(value) for value in entry["scalings"])
    known = f"{entry['provenance']}: {entry['said']}"
    return f"{entry['path']} at strength {entry['strength']:g}, trained at {scalings} ({known})"
