"""Say why an adapter has no effect, is too weak, too strong or garbled: one verdict, the numbers, one command."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraforge.adapter import Adapter
from loraforge.errors import (
    ConversionError,
    LoraforgeError,
    NoAdapterError,
    ScaleError,
    VariantError,
    as_commands,
    command,
    listed,
)
from loraforge.formats import Choice, Format
from loraforge.fuse import fuse
from loraforge.kinds import not_an_adapter
from loraforge.registry import locate
from loraforge.report import base_text, fraction
from loraforge.retention import lines as retained
from loraforge.runtimes import Outlook, outlook, runtime, runtimes
from loraforge.scale import Statement, candidates
from loraforge.trainingconfig import beside, read_training_config

if TYPE_CHECKING:
    from loraforge.checks import Numbers
    from loraforge.tensorfile import TensorFile

AS_TRAINED = "acts as trained"


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

    @property
    def healthy(self) -> bool:
        return self.verdict == AS_TRAINED

    def to_dict(self) -> dict[str, Any]:
        """The JSON document. Its shape is a promise: see the schema."""
        return {"schema": "loraforge.doctor.v1", **asdict(self), "facts": dict(self.facts)}

    def lines(self) -> list[str]:
        """The verdict first, for a terminal; the table of runtimes is printed by the command."""
        rows = [*self.facts, *(("fix" if not n else "", line) for n, line in enumerate(self.fix))]
        return [f"{self.verdict}: {self.why}", *(f"  {label:<9} {text}" for label, text in rows)]


def doctor(
    source: str | Path,
    *,
    base: str | Path | None = None,
    runtime_: str | None = None,
    alpha: float | None = None,
    trained_scale: float | None = None,
    trained_by: str | None = None,
    training_config: str | Path | None = None,
    as_loaded: bool = False,
    override_scale: bool = False,
) -> Diagnosis:
    """Diagnose the adapter in `source`; the arguments are those of `loraforge doctor`.

    Raises LoraforgeError only for what the user got wrong: a path that is not there, an unknown runtime.
    """
    path = Path(source)
    program = runtime(runtime_) if runtime_ else None
    stated = Statement(alpha, trained_scale, trained_by, as_loaded, override_scale)
    options = {
        "alpha": alpha, "trained_scale": trained_scale, "trained_by": trained_by,
        "training_config": training_config, "as_loaded": as_loaded, "override_scale": override_scale,
    }  # fmt: skip
    choice = Choice(training_config=Path(training_config) if training_config else None, stated=stated)
    if not path.exists():
        raise LoraforgeError(f"{path} does not exist.", command("ls", "-l", path.parent))
    try:
        form, place, file = locate(path, None, choice)
    except LoraforgeError as error:
        return _hopeless(path, "broken file", error)
    try:
        if form is None:
            raise not_an_adapter(file)
        adapter = form.read(file, choice)
    except LoraforgeError as error:
        if form and _reads(form, file):
            raise
        verdict = "does nothing" if isinstance(error, NoAdapterError) else "broken file"
        verdict = "cannot tell (it is more than A and B)" if isinstance(error, VariantError) else verdict
        return _hopeless(path, verdict, as_commands(error, "loraforge", "convert", path, "--to", "diffusers"))
    return _judged(path, form, file, adapter, place.notes, base, program.name if program else None, options)


def _reads(form: Format, file: TensorFile) -> bool:
    """Whether the file can be read where the user states nothing: then what the user stated is at fault."""
    try:
        form.read(file, Choice())
    except LoraforgeError:
        return False
    return True


def _hopeless(path: Path, verdict: str, error: LoraforgeError) -> Diagnosis:
    return Diagnosis(str(path), verdict, error.message, (), (), (), tuple(r.command for r in error.remedies))


def _judged(
    path: Path, form: Format, file: TensorFile, adapter: Adapter, notes: Sequence[str],
    base: str | Path | None, wanted: str | None, stated: Mapping[str, Any],
) -> Diagnosis:  # fmt: skip
    from loraforge.base import fits
    from loraforge.checks import numbers

    found = numbers(adapter)
    programs = [runtime(wanted)] if wanted else list(runtimes().values())
    outlooks = tuple(outlook(program, form, file, adapter) for program in programs)
    own = next((o for o, p in zip(outlooks, programs, strict=True) if wanted or p.format == form.name), None)
    try:
        (other, survives), unread = _in_base(path, base, stated), None
    except LoraforgeError as error:
        if base is None or not Path(base).exists():
            raise
        other, survives, unread = "", [("fused", error.message)], error
    verdict, why = _verdict(adapter, found, own, other)
    if unread and verdict == AS_TRAINED:
        verdict, why = "cannot tell (whether it fits the base)", unread.message
    of = f"{len(adapter.modules)} modules of rank {_ranks(adapter)}, {', '.join(found.dtypes)}"
    facts = [
        ("file", f"{file.path} ({form.name}), {of}"),
        ("scale", _scale(adapter)),
        ("size", _size(found)),
        *survives,
        ("base", adapter.base_model or base_text([v.name for v in fits(adapter)], adapter.architecture)),
    ]
    few = f"in {_named(found.subnormal)} a tenth of the numbers or more lie below float16's normal range: fewer bits"
    said = (*notes, *adapter.notes, *_contradicted(file, adapter), *((few,) if found.subnormal else ()))
    loaded = own is None or own.applied == len(adapter.modules)
    dead = len(found.dead) == len(adapter.modules) or (verdict == "acts in part" and loaded)
    fix = tuple(_fix(path, adapter, verdict, own, dead=dead))
    if unread and why == unread.message:
        fix = tuple(remedy.command for remedy in unread.remedies)
    return Diagnosis(str(path), verdict, why, tuple(facts), outlooks, said, fix)


def _verdict(adapter: Adapter, found: Numbers, own: Outlook | None, other: str) -> tuple[str, str]:
    total = len(adapter.modules)
    if found.broken:
        why = "the training diverged, or a conversion to float16 overflowed"
        return "broken file", f"NaN or infinity in {_named(found.broken)}: {why}"
    if other:
        return "wrong base", other
    if len(found.dead) == total:
        return "does nothing", "A or B of every module is zero: it was never trained, or the wrong tensors were saved"
    if own and own.raises:
        return "does nothing", f"{own.title} stops at {own.raises}"
    if own and not own.applied:
        passed = f" ({listed(list(own.lost), 3)} are passed over)" if own.lost else ""
        return "does nothing", f"{own.title} finds none of the {total} modules{passed}"
    applies = f"; {own.title} applies {_listed(own.scalings)}" if own else ""
    if adapter.scale.provenance == "ambiguous":
        ranks = {path: delta[0].rank for path, delta in adapter.modules.items()}
        known = candidates(ranks, adapter.written_as)[:-1]
        scales = dict.fromkeys(remedy.why.rpartition("scale ")[2] for remedy in known)
        return f"cannot tell ({' or '.join(scales)})", f"{adapter.scale.source}{applies}"
    if adapter.scale.provenance == "assumed":
        return f"cannot tell ({_trained(adapter)})", f"the scale is assumed: {adapter.scale.source}{applies}"
    if own and (strength := _strength(own)):
        return strength, f"{own.title} applies {_listed(own.scalings)}, and training used {_trained(adapter)}"
    if own and own.applied < total:
        return (
            "acts in part",
            f"{own.title} applies {own.applied} of {total} modules ({listed(list(own.lost), 3)} are passed over)",
        )
    if found.dead:
        return "acts in part", f"A or B of {_named(found.dead)} is zero"
    if own is None:
        return "cannot tell", "no program is known that loads this format as it is"
    return AS_TRAINED, f"{own.title} applies all {total} modules at the scale of training"


def _contradicted(file: TensorFile, adapter: Adapter) -> tuple[str, ...]:
    """A note where the file records a scale, and a training configuration beside it another for the same rank.

    No verdict: what lies beside a file, or above it, may be of another run. Nor where we wrote the file: its scale is
    another on purpose.
    """
    from loraforge.provenance import origin

    scalings = {w.scaling for delta in adapter.modules.values() for w in delta}
    near = beside(file.path) if adapter.scale.provenance == "recorded" and len(scalings) == 1 else None
    if near is None or origin(file.metadata).folded:
        return ()
    said = read_training_config(near)
    if said.rank is None or _ranks(adapter) != f"{said.rank:g}" or said.rslora:
        return ()
    (mine,) = scalings
    if math.isclose(said.alpha / said.rank, mine):
        return ()
    return (f"{said.said}, beside it, says the scale {fraction(said.alpha / said.rank)}; the file's own record counts",)


def _strength(own: Outlook) -> str:
    """`64x too weak`, where one factor says it; empty where it is 1."""
    if own.ratios in ((), (1.0,)):
        return ""
    low, high = own.ratios[0], own.ratios[-1]
    if low < 0:
        return "cannot tell (the two scales differ in sign)"
    if high <= 1:
        return f"{1 / low:.3g}x too weak" if low == high else f"{1 / high:.3g}x to {1 / low:.3g}x too weak"
    return f"{high:.3g}x too strong" if low == high else f"{low:.3g}x to {high:.3g}x too strong"


def _in_base(path: Path, base: str | Path | None, stated: Mapping[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """Why it does not fit the base, or what of it would survive being fused there."""
    if base is None:
        return "", []
    unknown = not any(value for value in stated.values())
    for options in (stated, {"as_loaded": True}) if unknown else (stated,):
        try:
            report = fuse(base, [path], "unused", dry_run=True, **options)
        except ScaleError:
            continue
        except ConversionError as error:
            return error.message, []
        return "", [
            ("fused", retained(report.total, report.modules)[0]),
            ("", retained(report.total, report.modules)[1]),
        ]
    return "", []


def _fix(path: Path, adapter: Adapter, verdict: str, own: Outlook | None, *, dead: bool) -> Iterator[str]:
    """The command, and what to change in the program where no file can be right in it."""
    if verdict == AS_TRAINED:
        return
    if verdict in ("broken file", "wrong base") or dead:  # no conversion mends what was never trained
        yield command("loraforge", "inspect", path)
        return
    if verdict.startswith("cannot tell") and adapter.scale.provenance == "ambiguous":
        ranks = {name: delta[0].rank for name, delta in adapter.modules.items()}
        for remedy in candidates(ranks, adapter.written_as):
            yield f"{command('loraforge', 'doctor', path)} {remedy.command}   # {remedy.why}"
        return
    if verdict.startswith("cannot tell") and adapter.scale.provenance == "assumed":
        scaling = adapter.modules[next(iter(adapter.modules))][0].scaling
        again = " --override-scale" if adapter.scale.source.startswith("--") else ""
        yield f"{command('loraforge', 'doctor', path)} --trained-scale {scaling:.12g}{again}   # if training used that"
        return
    to = runtime(own.runtime).format if own else "diffusers"
    stated = _typed(adapter)
    yield f"{command('loraforge', 'convert', path, '--to', to)}{stated}"
    if own and own.instead and own.ratios not in ((), (1.0,)):
        yield f"# then: {own.instead}"


def _typed(adapter: Adapter) -> str:
    """What the user stated of the scale, to be said again."""
    said = adapter.scale.source.partition(":")[0]
    return f" {said}" if adapter.scale.provenance == "given" and said.startswith("--") else ""


def _ranks(adapter: Adapter) -> str:
    return ", ".join(map(str, sorted({w.rank for delta in adapter.modules.values() for w in delta})))


def _scale(adapter: Adapter) -> str:
    if adapter.scale.provenance == "ambiguous":
        return f"unknown: {adapter.scale.source}"
    return f"{_trained(adapter)} ({adapter.scale.provenance}: {adapter.scale.source})"


def _trained(adapter: Adapter) -> str:
    return _listed(tuple(sorted({w.scaling for delta in adapter.modules.values() for w in delta})))


def _listed(scalings: Sequence[float]) -> str:
    return ", ".join(map(fraction, scalings)) or "nothing"


def _named(modules: Sequence[str]) -> str:
    return f"{len(modules)} modules ({listed(list(modules), 3)})" if len(modules) > 1 else "".join(modules)


def _size(found: Numbers) -> str:
    sizes = sorted(found.sizes.items(), key=lambda item: item[1])
    (least, low), (most, high) = sizes[0], sizes[-1]
    return f"|D| {low:.3g} ({least}) to {high:.3g} ({most}) per module"
