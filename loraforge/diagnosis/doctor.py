"""Say why an adapter has no effect, is too weak, too strong or garbled: one verdict, the numbers, one command."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Unpack

from loraforge import errors
from loraforge.adapter.adapter import Adapter, Source
from loraforge.adapter.differences import counted, described
from loraforge.adapter.drop import without
from loraforge.adapter.fits import fits, misnamed
from loraforge.base.fuse import fuse, other_base
from loraforge.base.retention import lines as retained
from loraforge.conversion.evidence import doubt, read_adapter
from loraforge.conversion.report import base_text, scale_text
from loraforge.diagnosis.factors import Numbers, numbers
from loraforge.diagnosis.verdict import Diagnosis, Kind, Verdict, judge, listed_scales, named, remedies
from loraforge.errors import LoraforgeError, Try, absent, adding, as_commands
from loraforge.facts.given_settings import parse
from loraforge.facts.logs import Log
from loraforge.facts.setting_rules import compare
from loraforge.facts.symptoms import find
from loraforge.facts.variants import settings as variant_settings
from loraforge.files.mapped import steady
from loraforge.files.shards import group_of
from loraforge.files.tensorfile import TensorFile
from loraforge.format.locate import locate
from loraforge.format.not_an_adapter import not_an_adapter
from loraforge.format.protocol import Format
from loraforge.hub.address import address, perhaps
from loraforge.programs.outlook import Outlook, by_names, does, outlook, outlooks
from loraforge.programs.table import runtime, runtimes
from loraforge.scale.origin import origin
from loraforge.scale.recorded import around
from loraforge.scale.resolve import STATES
from loraforge.scale.rule import Choice
from loraforge.scale.run_folders import as_typed
from loraforge.scale.stated import Stated, choice_of, takes_stated
from loraforge.text import command, fraction, megabytes, options, told


@takes_stated
def doctor(
    source: str | Path,
    *,
    base: str | Path | None = None,
    runtime_: str | None = None,
    error: str | Log | None = None,
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
        raise absent(source, *perhaps(source))
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
        entries = tuple(entry.to_dict("en", source) for entry in find(error))
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


def diagnosed(
    path: str | Path, base: str | Path | None, program: str | None, stated: Stated,
    drop: Sequence[str] = (), *, fetch: bool, named: str | None = None,
) -> tuple[Diagnosis, Adapter | None]:  # fmt: skip
    """The diagnosis of the file, and the adapter in it or None. `named`: the base model that the user states."""
    choice = choice_of(stated, drop=drop)
    try:
        form, located, file = locate(path, None, choice, fetch=fetch)
    except (errors.HubError, errors.FolderError):
        raise
    except LoraforgeError as fault:
        return _hopeless(path, Verdict(Kind.BROKEN, fault.message), fault), None
    try:
        if form is None:
            raise not_an_adapter(file)
        adapter, _ = without(read_adapter(form, file, choice, named=named), drop, file)
    except LoraforgeError as fault:
        if form and _reads(form, file, choice.architecture if isinstance(fault, errors.BaseError) else None):
            raise
        asked = options({"architecture": choice.architecture})
        as_commands(fault, "loraforge", "convert", path, "--to", "diffusers", *asked)
        unknown_names = form is None or type(fault) in (errors.FormatError, errors.NamesError)
        hopeless = _hopeless(path, _unread(fault), fault)
        return _by_names(hopeless, form, file, program) if unknown_names else hopeless, None
    adapter = replace(adapter, source=Source(Path(path), file, form.name, located.run))
    return _judged(path, form, file, adapter, located.notes, base, program, stated, drop), adapter


def _reads(form: Format, file: TensorFile, architecture: str | None) -> bool:
    """Whether the file can be read if the user states no more than this: then the statement is at fault."""
    with suppress(LoraforgeError):
        read_adapter(form, file, Choice(architecture=architecture))
        return True
    return False


_REFUSED = {
    errors.BaseError: Kind.WRONG_BASE,
    errors.NoAdapterError: Kind.NOTHING,
    errors.VariantError: Kind.MORE_THAN_FACTORS,
    errors.ReadingsError: Kind.TWO_READINGS,
}


def _unread(fault: LoraforgeError) -> Verdict:
    """The verdict on a file that cannot be read as an adapter, by the kind of the refusal."""
    kind = next((kind for error, kind in _REFUSED.items() if isinstance(fault, error)), Kind.BROKEN)
    return Verdict(kind, f"in the models that are known: {fault.message}" if kind is Kind.NOTHING else fault.message)


def _hopeless(path: str | Path, verdict: Verdict, error: LoraforgeError) -> Diagnosis:
    again = ("loraforge", "doctor", path)
    readings = isinstance(error, errors.ReadingsError)  # only the reasons tell the lines apart
    lines = (r.added_to(*again) if r.instead else r for r in error.remedies)
    mend = (line if readings else replace(line, why="") for line in lines)
    return Diagnosis(str(path), verdict, (), (), (), tuple(mend))


def _by_names(diagnosis: Diagnosis, form: Format | None, file: TensorFile, program: str | None) -> Diagnosis:
    """The diagnosis of a file that no format here can read, extended if some program applies modules of it."""
    rows = tuple(row for row in by_names(file) if program in (None, row.runtime))
    if not any(row.applied for row in rows):
        return diagnosis
    best = max(rows, key=lambda row: row.applied / row.modules)
    why = f"{best.title} knows {best.applied} of its {best.modules} modules by their names; {diagnosis.why}"
    if form is not None:  # in a broken file of a known format, names say little
        return replace(diagnosis, judgement=replace(diagnosis.judgement, why=why))
    fact = ("file", f"{told(file.path)} (no format here reads it), {len(file.tensors)} tensors")
    return replace(diagnosis, judgement=Verdict(Kind.FOREIGN_FORMAT, why), facts=(fact,), outlooks=rows)


def _judged(
    path: str | Path, form: Format, file: TensorFile, adapter: Adapter, notes: Sequence[str],
    base: str | Path | None, program: str | None, stated: Stated, drop: Sequence[str],
) -> Diagnosis:  # fmt: skip

    with steady(*file.maps):
        measured = None if file.absent else numbers(adapter, file)
    rows = (outlook(runtime(program), form, file, adapter),) if program else outlooks(form, file, adapter)
    mixed = form.writer is None and adapter.layout != "diffusers"  # a mixture of spellings is no program's own
    formats = (form.name, None if mixed else getattr(form, "like", None))
    own = next((o for o in rows if program or runtime(o.runtime).format in formats), None)
    if own is None:  # one of another model that multiplies by a number of its own says little of this adapter
        theirs = [p.name for p in runtimes().values() if p.architecture != adapter.architecture and p.times != 1.0]
        own = min((o for o in rows if o.applied), key=lambda o: o.runtime in theirs, default=None)
    in_base = _InBase() if base is None else _in_base(path, base, stated, drop)
    if in_base.fits and not adapter.shown:
        adapter = replace(adapter, shown=f"its modules are those of {told(Path(str(base)))}")
    unshown = doubt(adapter)
    misfit = in_base.misfit or (misnamed(adapter, adapter.base_model) if adapter.base_model else "")
    verdict = judge(adapter, measured, own, misfit, unshown)
    unread = in_base.unread if verdict.kind is Kind.AS_TRAINED else None
    if unread:
        verdict = Verdict(Kind.BASE_UNREAD, unread.message)
    weights = [w for delta in adapter.modules.values() for w in delta]
    ranks = ", ".join(map(str, sorted({w.rank for w in weights})))
    dtypes = measured.dtypes if measured else sorted({w.A.dtype.name for w in weights})
    others = [described(counted(adapter.differences))] if adapter.differences else []
    modules = ", ".join([f"{len(adapter.modules)} modules of rank {ranks}", *dtypes, *others])
    scale = f"{listed_scales(adapter.scalings)} ({scale_text(adapter.scale, adapter.scalings)})"
    if adapter.scale.provenance == "ambiguous":
        scale = f"unknown: {adapter.scale.source}"
    facts = [
        ("file", f"{told(file.path)} ({form.name}), {modules}"),
        ("model", unshown or f"{adapter.model.title}: {adapter.shown}"),
        ("scale", scale),
        ("size", _size(measured) if measured else f"needs the tensors ({megabytes(file.absent)}): --fetch gets them"),
        *in_base.facts,
        (
            "base",
            adapter.base_model
            or base_text([v.name for v in fits(adapter)], adapter.architecture, tuple(adapter.rivals)),
        ),
        *_elsewhere(path, rows, own if verdict.kind is Kind.AS_TRAINED else None),
    ]
    more = [other] if (other := other_base(adapter, in_base.variants)) else []
    more += _contradicted(file, adapter)
    if measured and (low := measured.subnormal):
        more.append(f"in {named(low)} a tenth of the numbers or more lie below float16's normal range: fewer bits")
    loaded = own is None or own.applied == len(adapter.modules)
    all_dead = measured is not None and len(measured.dead) == len(adapter.modules)
    dead = all_dead or (measured is not None and verdict.kind is Kind.IN_PART and loaded)
    mend = [*remedies(path, adapter, verdict, own, choice_of(stated).stated, dead=dead)]
    more += [text for text in mend if isinstance(text, str)]
    lines = [remedy for remedy in mend if isinstance(remedy, Try)]
    if unread:
        again = ("loraforge", "doctor", path, "--base", base or "")
        lines = [replace(remedy.added_to(*again), why="") for remedy in unread.remedies]
    typed = [word for pattern in drop for word in ("--drop", pattern)]
    typed += options({"architecture": stated.get("architecture")})
    asked = options({"runtime": program, "base": None if unread or base is None else str(base)})
    config = stated.get("training_config")
    settled = [*choice_of(stated).stated.options, *options({"training_config": config and str(config)})]

    def whole(remedy: Try) -> Try:
        """The remedy with what was typed, as far as it goes with it."""
        more = [*asked, *(() if remedy.names & STATES else settled)] if remedy.verb == "doctor" else []
        return replace(remedy, of=(*remedy.of, *typed, *more)) if remedy.of else remedy

    stamp = _whole_entry(file, rows, verdict)
    fix = stamp if stamp and own and own.lacks else (*stamp, *map(whole, lines))
    sizes = {module: size for module, size in measured.sizes.items() if math.isfinite(size)} if measured else {}
    every_note = (*notes, *adapter.notes, *more)
    return Diagnosis(str(path), verdict, tuple(facts), rows, every_note, fix, sizes)


def _whole_entry(file: TensorFile, rows: Sequence[Outlook], verdict: Verdict) -> tuple[Try, ...]:
    """The command that completes a header entry at which some versions stop for what it lacks."""
    titles = [o.title for o in rows if o.lacks]
    if not titles or file.absent or verdict.kind in (Kind.BROKEN, Kind.WRONG_BASE):
        return ()
    why = f"completes the header entry, for {', '.join(titles)}"
    return (adding("--in-place", why=why).added_to("loraforge", "stamp", file.path),)


def _elsewhere(path: str | Path, outlooks: Sequence[Outlook], own: Outlook | None) -> list[tuple[str, str]]:
    """The programs in which a file that is right in its own one is wrong, and how to make a file for them."""
    programs: dict[str, list[str]] = {}
    for other in outlooks if own else ():
        what = "does nothing" if other.raises or not other.applied else does(other)
        if what and own and other.runtime != own.runtime:
            programs.setdefault(what, []).append(other.runtime)
    if not programs:
        return []
    text = "; ".join(f"{what} in {', '.join(names)}" for what, names in programs.items())
    return [("elsewhere", f"{text}. For another program: {command('loraforge', 'convert', path)} --for NAME")]


def _contradicted(file: TensorFile, adapter: Adapter) -> tuple[str, ...]:
    """A note, and no verdict, if a configuration near the file, perhaps of another run, states another scale.

    No note if loraforge folded the scale in: then the scales differ on purpose.
    """
    if adapter.scale.provenance != "recorded" or len(adapter.scalings) != 1 or origin(file.metadata).folded:
        return ()
    whose, _ = around(file.path, {path: delta[0].rank for path, delta in adapter.modules.items()}, siblings=False)
    (mine,) = adapter.scalings
    if whose is None or math.isclose(other := whose[1].scaling(int(whose[1].rank or 1)), mine):
        return ()
    where = as_typed(whose[0], file.path)
    return (f"{whose[1].said} in {where} says the scale {fraction(other)}; the file's own record counts",)


class _InBase(NamedTuple):
    """The result of fusing the adapter into a base model, as a dry run."""

    misfit: str = ""
    facts: tuple[tuple[str, str], ...] = ()
    variants: tuple[str, ...] = ()
    """Names of the released models whose shapes the base has."""
    unread: LoraforgeError | None = None
    fits: bool = False
    """Whether the base has a weight of the right shape for every module."""


def _in_base(path: str | Path, base: str | Path, stated: Stated, drop: Sequence[str]) -> _InBase:
    """Fuse it in a dry run and say how much would survive. Raises LoraforgeError if the base does not exist."""
    tries: list[Stated] = [stated]
    if not any(value for key, value in stated.items() if key != "architecture"):
        tries.append({**stated, "trained_scale": 1.0})
    for said in tries:
        try:
            report = fuse(base, [path], "unused", dry_run=True, drop=drop, **said)
        except errors.ScaleError:
            continue
        except errors.ConversionError as error:
            return _InBase(misfit=error.message)
        except LoraforgeError as error:
            if address(base) is None and not Path(base).exists():
                raise
            return _InBase(facts=(("fused", error.message),), unread=error)
        lost, size = retained(report.total, report.modules)
        return _InBase(facts=(("fused", lost), ("", size)), variants=tuple(report.base["variants"]), fits=True)
    return _InBase()


def _size(measured: Numbers) -> str:
    sizes = sorted(measured.sizes.items(), key=lambda item: item[1])
    (least, low), (most, high) = sizes[0], sizes[-1]
    return f"|D| {low:.3g} ({least}) to {high:.3g} ({most}) per module"
