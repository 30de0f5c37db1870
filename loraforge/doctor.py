"""Say why an adapter has no effect, is too weak, too strong or garbled: one verdict, the numbers, one command."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraforge.adapter import Adapter, Source
from loraforge.drop import without
from loraforge.errors import (
    BaseError,
    ConversionError,
    FormatError,
    HubError,
    LoraforgeError,
    NamesError,
    NoAdapterError,
    ScaleError,
    Try,
    VariantError,
    as_commands,
    command,
    told,
)
from loraforge.formats import Choice, Format
from loraforge.fuse import fuse
from loraforge.hubaddress import address
from loraforge.kinds import known_titles, not_an_adapter
from loraforge.knownnames import by_names
from loraforge.measured import does
from loraforge.recorded import around
from loraforge.registry import locate
from loraforge.report import base_text, fraction, scale_text
from loraforge.retention import lines as retained
from loraforge.runfolders import as_typed
from loraforge.runtimes import Outlook, outlook, outlooks, runtime
from loraforge.scale import statement
from loraforge.settings import Finding, compare, parse
from loraforge.settings import settings as variant_settings
from loraforge.shards import Shards, group_of
from loraforge.shown import doubt, read_adapter
from loraforge.symptoms import find, language
from loraforge.tensorfile import TensorFile, megabytes
from loraforge.verdict import AS_TRAINED, judge, named, ranks, remedies, trained

if TYPE_CHECKING:
    from loraforge.checks import Numbers


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What is wrong, or that nothing is. Its JSON follows schemas/doctor.schema.json."""

    path: str
    verdict: str
    why: str
    facts: tuple[tuple[str, str], ...]
    """Label -> what was found."""
    outlooks: tuple[Outlook, ...]
    notes: tuple[str, ...]
    fix: tuple[str, ...]
    """Commands that mend it, the best first."""
    sizes: dict[str, float] = field(default_factory=dict)
    """Module -> |D|, the Frobenius norm of its update at the scale it was read at."""
    errors: tuple[dict[str, Any], ...] = ()
    """What the failure texts mean that the user pasted, the likeliest first: entries of schemas/explain.schema.json."""
    settings: tuple[Finding, ...] = ()
    """What the user runs it with, beside what the model, or a known program, runs with."""

    @property
    def healthy(self) -> bool:
        """Whether the adapter acts as trained, and no setting is wrong."""
        return self.verdict == AS_TRAINED and all(finding.severity != "wrong" for finding in self.settings)

    def to_dict(self) -> dict[str, Any]:
        """The JSON document. Its shape is a promise: see the schema."""
        return {"schema": "loraforge.doctor.v1", **asdict(self), "facts": dict(self.facts)}

    def lines(self) -> list[str]:
        """The verdict first, for a terminal; the table of runtimes is printed by the command."""
        rows = [*self.facts, *(("fix" if not n else "", line) for n, line in enumerate(self.fix))]
        for entry in self.errors:
            rows += [(entry["id"], f"{entry['title']}: {entry['cause']}"), ("", entry["fix"])]
            rows += [("", entry["fix_command"])] if entry["fix_command"] else []
        rows += [(f.severity, _beside(f)) for f in self.settings if f.severity != "fine"]
        fine = [f.key for f in self.settings if f.severity == "fine"]
        rows += [("fine", ", ".join(fine))] if fine else []
        but = ", but not with these settings" if self.verdict == AS_TRAINED and not self.healthy else ""
        return [f"{self.verdict}{but}: {self.why}", *(f"  {label:<9} {text}" for label, text in rows)]


def doctor(
    source: str | Path,
    *,
    base: str | Path | None = None,
    runtime_: str | None = None,
    alpha: float | None = None,
    trained_scale: float | None = None,
    trained_by: str | None = None,
    training_config: str | Path | None = None,
    as_in: str | None = None,
    as_loaded: bool = False,
    override_scale: bool = False,
    architecture: str | None = None,
    error: str | None = None,
    settings: Sequence[str | Path] = (),
    like: str | None = None,
    variant: str | None = None,
    drop: Sequence[str] = (),
    fetch: bool = False,
) -> Diagnosis:
    """Diagnose the adapter in `source`, a path or an address on the Hub; the arguments are those of `loraforge doctor`.

    Of a file on the Hub the header alone is judged, unless `fetch`, or a `base` to try it in.

    Raises LoraforgeError only for what the user got wrong: a path that is not there, an unknown runtime.
    """
    given = parse(settings)
    if variant is not None:
        variant_settings(variant)
    stated: dict[str, Any] = {
        "alpha": alpha, "trained_scale": trained_scale, "trained_by": trained_by,
        "training_config": training_config, "as_in": as_in, "as_loaded": as_loaded, "override_scale": override_scale,
        "architecture": architecture,
    }  # fmt: skip
    if address(source) is None and not Path(source).exists() and group_of(Path(source)) is None:
        raise LoraforgeError(f"{source} does not exist.", command("ls", "-l", Path(source).parent))
    found, adapter = diagnosed(
        source, base, runtime(runtime_).name if runtime_ else None, stated, drop, fetch=fetch or base is not None
    )
    if adapter and adapter.source and isinstance(shards := adapter.source.file, Shards):
        found = _elsewhere_whole(found, source, "in parts", f"in {len(shards.files)} files, and loaders read one")
    elif adapter and adapter.source and adapter.source.file.within:
        why = "among the weights of a whole model, and loaders read noise from that"
        found = _elsewhere_whole(found, source, "in a model", why)
    if error is not None:
        entries = tuple(entry.to_dict(language(), source) for entry in find(error))
        unknown = () if entries else ("no failure text that is known stands in what --error was given",)
        if entries and found.healthy:
            unknown = (
                "nothing in this file explains that text: another file, or another program (--runtime), gave it",
            )
        found = replace(found, errors=entries, notes=(*found.notes, *unknown))
    if adapter and (given or like):
        rank = max(delta[0].rank for delta in adapter.modules.values())
        found = replace(found, settings=tuple(compare(given, _variant(adapter, variant), like=like, rank=rank)))
    return found


def diagnosed(
    path: str | Path, base: str | Path | None, wanted: str | None, stated: Mapping[str, Any],
    drop: Sequence[str] = (), *, fetch: bool, named: str | None = None,
) -> tuple[Diagnosis, Adapter | None]:  # fmt: skip
    """What is to be said of the file itself, and the adapter in it where there is one. `named`: the base it is for."""
    config = stated["training_config"]
    choice = Choice(
        training_config=Path(config) if config else None, stated=statement(**stated), drop=tuple(drop),
        architecture=stated.get("architecture"),
    )  # fmt: skip
    try:
        form, place, file = locate(path, None, choice, fetch=fetch)
    except HubError:
        raise
    except LoraforgeError as fault:
        return _hopeless(path, "broken file", fault), None
    try:
        if form is None:
            raise not_an_adapter(file)
        adapter, _ = without(read_adapter(form, file, choice, named=named), drop, file)
    except LoraforgeError as fault:
        if form and _reads(form, file):
            raise
        if isinstance(fault, BaseError):
            as_commands(fault, "loraforge", "convert", path, "--to", "diffusers")
            return _hopeless(path, "wrong base", fault), None
        verdict = "does nothing" if isinstance(fault, NoAdapterError) else "broken file"
        verdict = "cannot tell (it is more than A and B)" if isinstance(fault, VariantError) else verdict
        as_commands(fault, "loraforge", "convert", path, "--to", "diffusers")
        where = f"in {known_titles()}: " if isinstance(fault, NoAdapterError) else ""
        named_so = form is None or type(fault) in (FormatError, NamesError)
        hopeless = _hopeless(path, verdict, fault, where)
        return _by_names(hopeless, form, file, wanted) if named_so else hopeless, None
    adapter = replace(adapter, source=Source(Path(path), file, form.name, place.run))
    found = _judged(path, form, file, adapter, place.notes, base, wanted, {**stated, "drop": drop} if drop else stated)
    return replace(found, fix=tuple(_less(line, drop) for line in found.fix)), adapter


def _less(line: str, drop: Sequence[str]) -> str:
    """A line that converts, with the patterns of what is left out."""
    typed, mark, why = line.partition("   # ")
    more = "".join(f" {command('--drop', pattern)}" for pattern in drop)
    return f"{typed}{more}{mark}{why}" if typed.startswith("loraforge convert ") else line


def _elsewhere_whole(found: Diagnosis, source: str | Path, where: str, why: str) -> Diagnosis:
    """The same of an adapter that is no file by itself, so that no row of the table is of it."""
    if found.verdict not in (AS_TRAINED, "does nothing"):
        return replace(found, outlooks=())
    whole = f"it lies {why}; as one file it would {'be as trained' if found.verdict == AS_TRAINED else 'act'}"
    fix = (f"{command('loraforge', 'convert', source)} --to diffusers   # one file",)
    return replace(found, verdict=f"cannot tell (it lies {where})", why=whole, outlooks=(), fix=fix)


def _variant(adapter: Adapter, stated: str | None) -> str:
    """The model whose settings count: stated, recorded, or the only one with these shapes."""
    from loraforge.base import fits
    from loraforge.catalog import architecture

    if stated is not None:
        return stated
    known = [v for v in architecture(adapter.architecture).variants if v.repo == adapter.base_model] or fits(adapter)
    if len(known) == 1:
        return known[0].name
    every = known or architecture(adapter.architecture).variants
    raise LoraforgeError(
        "which model it is for is neither recorded nor told by its shapes, and the right settings depend on it.",
        *(Try(f"--variant {command(v.name)}") for v in every),
    )


def _beside(finding: Finding) -> str:
    given = "not given" if finding.given is None else finding.given
    other = "not" if finding.severity == "wrong" else "there"
    wanted = "" if finding.wanted is None else f", {other} {finding.wanted}"
    return f"{finding.key} {given}{wanted}: {finding.consequence}"


def _reads(form: Format, file: TensorFile) -> bool:
    """Whether the file can be read where the user states nothing: then what the user stated is at fault."""
    try:
        read_adapter(form, file, Choice())
    except LoraforgeError:
        return False
    return True


def _hopeless(path: str | Path, verdict: str, error: LoraforgeError, where: str = "") -> Diagnosis:
    fix = (r.behind(["loraforge", "doctor", path]) if r.instead else r.command for r in error.remedies)
    return Diagnosis(str(path), verdict, where + error.message, (), (), (), tuple(fix))


def _by_names(found: Diagnosis, form: Format | None, file: TensorFile, wanted: str | None) -> Diagnosis:
    """What is to be said of a file no format here reads, where a program applies modules of it all the same.

    With a table where it is no broken file of a format we know: of one, names do not tell what a program makes.
    """
    rows = tuple(row for row in by_names(file) if wanted in (None, row.runtime))
    if not any(row.applied for row in rows):
        return found
    best = max(rows, key=lambda row: row.applied / row.modules)
    why = f"{best.title} knows {best.applied} of its {best.modules} modules by their names; {found.why}"
    if form is not None:
        return replace(found, why=why)
    fact = ("file", f"{told(file.path)} (no format here reads it), {len(file.tensors)} tensors")
    return replace(found, verdict="cannot tell (at what scale)", why=why, facts=(fact,), outlooks=rows)


def _judged(
    path: str | Path, form: Format, file: TensorFile, adapter: Adapter, notes: Sequence[str],
    base: str | Path | None, wanted: str | None, stated: Mapping[str, Any],
) -> Diagnosis:  # fmt: skip
    from loraforge.base import fits, misnamed
    from loraforge.catalog import architecture
    from loraforge.checks import numbers

    found = None if file.absent else numbers(adapter, file)
    seen = (outlook(runtime(wanted), form, file, adapter),) if wanted else outlooks(form, file, adapter)
    own = next((o for o in seen if wanted or runtime(o.runtime).format == form.name), None)
    own = own or next((o for o in seen if o.applied), None)
    there = _InBase() if base is None else _in_base(path, base, stated)
    if there.fits and not adapter.shown:
        adapter = replace(adapter, shown=f"its modules are those of {told(Path(str(base)))}")
    unshown = doubt(adapter)
    misfit = there.misfit or (misnamed(adapter, adapter.base_model) if adapter.base_model else "")
    verdict, why = judge(adapter, found, own, misfit, unshown)
    unread = there.unread if verdict == AS_TRAINED else None
    if unread:
        verdict, why = "cannot tell (whether it fits the base)", unread.message
    kinds = sorted({w.A.dtype.name for delta in adapter.modules.values() for w in delta})
    of = f"{len(adapter.modules)} modules of rank {ranks(adapter)}, {', '.join(found.dtypes if found else kinds)}"
    facts = [
        ("file", f"{told(file.path)} ({form.name}), {of}"),
        ("model", unshown or f"{architecture(adapter.architecture).title}: {adapter.shown}"),
        ("scale", _scale(adapter)),
        ("size", _size(found) if found else f"needs the tensors ({megabytes(file.absent)}): --fetch gets them"),
        *there.facts,
        ("base", adapter.base_model or base_text([v.name for v in fits(adapter)], adapter.architecture)),
        *_elsewhere(path, seen, own if verdict == AS_TRAINED else None),
    ]
    subnormal = found.subnormal if found else ()
    few = f"in {named(subnormal)} a tenth of the numbers or more lie below float16's normal range: fewer bits"
    said = (*notes, *adapter.notes, *there.notes, *_contradicted(file, adapter), *((few,) if subnormal else ()))
    loaded = own is None or own.applied == len(adapter.modules)
    dead = found is not None and (len(found.dead) == len(adapter.modules) or (verdict == "acts in part" and loaded))
    mend = (
        (r.behind(["loraforge", "doctor", path, "--base", base or ""]) for r in unread.remedies)
        if unread
        else remedies(path, adapter, verdict, own, dead=dead)
    )
    stamp = _whole_entry(file, seen, verdict)
    fix = stamp if stamp and own and own.raises.startswith("KeyError") else (*stamp, *mend)
    sizes = {module: size for module, size in found.sizes.items() if math.isfinite(size)} if found else {}
    return Diagnosis(str(path), verdict, why, tuple(facts), seen, said, fix, sizes)


def _whole_entry(file: TensorFile, seen: Sequence[Outlook], verdict: str) -> tuple[str, ...]:
    """The command that completes a header entry at which some versions stop for what it lacks."""
    titles = [o.title for o in seen if o.raises.startswith("KeyError")]
    if not titles or file.absent or verdict in ("broken file", "wrong base"):
        return ()
    line = command("loraforge", "stamp", file.path, "--in-place")
    return (f"{line}   # completes the header entry, for {', '.join(titles)}",)


def _elsewhere(path: str | Path, outlooks: Sequence[Outlook], own: Outlook | None) -> list[tuple[str, str]]:
    """Where a file that is right in one program is not right in others, and how to make one that is."""
    found: dict[str, list[str]] = {}
    for other in outlooks if own else ():
        what = "does nothing" if other.raises or not other.applied else does(other)
        if what and own and other.runtime != own.runtime:
            found.setdefault(what, []).append(other.runtime)
    if not found:
        return []
    said = "; ".join(f"{what} in {', '.join(names)}" for what, names in found.items())
    return [("elsewhere", f"{said}. For another program: {command('loraforge', 'convert', path)} --for NAME")]


def _contradicted(file: TensorFile, adapter: Adapter) -> tuple[str, ...]:
    """A note where the file records a scale, and a training configuration beside it another for the same rank.

    No verdict: what lies beside a file, or above it, may be of another run. Nor where we wrote the file: its scale is
    another on purpose.
    """
    from loraforge.provenance import origin

    scalings = {w.scaling for delta in adapter.modules.values() for w in delta}
    if adapter.scale.provenance != "recorded" or len(scalings) != 1 or origin(file.metadata).folded:
        return ()
    whose, _ = around(file.path, {path: delta[0].rank for path, delta in adapter.modules.items()}, siblings=False)
    (mine,) = scalings
    if whose is None or math.isclose(other := whose[1].scaling(int(whose[1].rank or 1)), mine):
        return ()
    where = as_typed(whose[0], file.path)
    return (f"{whose[1].said} in {where} says the scale {fraction(other)}; the file's own record counts",)


@dataclass(frozen=True, slots=True)
class _InBase:
    """What becomes of the adapter in a base model."""

    misfit: str = ""
    """Why it does not fit."""
    facts: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()
    unread: LoraforgeError | None = None
    """Why the base cannot be read."""
    fits: bool = False
    """Whether every module has its weight there, of its shape."""


def _in_base(path: str | Path, base: str | Path, stated: Mapping[str, Any]) -> _InBase:
    """What of it would survive being fused there. Raises LoraforgeError where there is no base of that name."""
    unknown = not any(value for key, value in stated.items() if key not in ("drop", "architecture"))
    for options in (stated, {**stated, "trained_scale": 1.0}) if unknown else (stated,):
        try:
            report = fuse(base, [path], "unused", dry_run=True, **options)
        except ScaleError:
            continue
        except ConversionError as error:
            return _InBase(misfit=error.message)
        except LoraforgeError as error:
            if address(base) is None and not Path(base).exists():
                raise
            return _InBase(facts=(("fused", error.message),), unread=error)
        lost, size = retained(report.total, report.modules)
        of_base = tuple(note for note in report.notes if "shapes of" in note)
        return _InBase(facts=(("fused", lost), ("", size)), notes=of_base, fits=True)
    return _InBase()


def _scale(adapter: Adapter) -> str:
    if adapter.scale.provenance == "ambiguous":
        return f"unknown: {adapter.scale.source}"
    scalings = tuple(sorted({w.scaling for delta in adapter.modules.values() for w in delta}))
    return f"{trained(adapter)} ({scale_text(adapter.scale, scalings)})"


def _size(found: Numbers) -> str:
    sizes = sorted(found.sizes.items(), key=lambda item: item[1])
    (least, low), (most, high) = sizes[0], sizes[-1]
    return f"|D| {low:.3g} ({least}) to {high:.3g} ({most}) per module"
