"""Writes an adapter in any format, and proves that the written file makes the same update."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from loraforge.adapter import fit, relayout
from loraforge.adapter.adapter import Adapter, Step
from loraforge.adapter.drop import without
from loraforge.adapter.fits import check_base, fits, repository
from loraforge.algebra.dtypes import CHOICES
from loraforge.conversion.evidence import alike, stated_by
from loraforge.conversion.prepare import _check, _header, _source, _writer
from loraforge.conversion.prove import _prove, _prove_place
from loraforge.conversion.report import Report
from loraforge.errors import ConversionError, LoraforgeError, adding
from loraforge.files.destination import destination, replacing
from loraforge.files.digest import scan, scan_modules
from loraforge.files.tensorfile import KEY, RELEASE_EVERY, FileMap, TensorFile, TensorInfo
from loraforge.format.protocol import Format, Header, Target, Wanted
from loraforge.format.registry import named
from loraforge.names.catalog import architecture
from loraforge.programs.measured import Program, mixed_ranks, programs
from loraforge.programs.outlook import outlooks
from loraforge.programs.table import named as named_paths
from loraforge.programs.table import not_with
from loraforge.scale.origin import carried_over, entry, history
from loraforge.scale.rule import Choice
from loraforge.text import command, listed, recorded
from loraforge.threads import in_order

if TYPE_CHECKING:
    from loraforge.algebra.lora import Array

_WIDER = {"fp32": "", "bf16": "as small as fp16, with a wider range and fewer digits"}
"""What --dtype can be where fp16 is too narrow, in the order in which it is proposed."""


def write(
    adapter: Adapter,
    to: str,
    out: str | Path | None = None,
    *,
    scale_in: Literal["tensors", "metadata"] = "tensors",
    target_alpha: float | None = None,
    base: str | Path | None = None,
    lora_only: bool = False,
    pad_ranks: bool = False,
    dtype: Literal["keep", "fp32", "bf16", "fp16"] = "keep",
    base_model: str | None = None,
    drop: Sequence[str] = (),
    dry_run: bool = False,
    force: bool = False,
    typed: str | None = None,
) -> Report:
    """Write what `read` gave, or an Adapter made in Python; the arguments are those of `loraforge convert`.

    `typed` is the command that the written file records of its origin. Returns the report. Raises a
    LoraforgeError, with nothing written, when the adapter does not fit the target or the written file
    does not do what the adapter does.
    """
    file = adapter.source.file if adapter.source else None
    _check(scale_in, dtype, base_model)
    base_model = repository(base_model)
    adapter = stated_by(adapter, base_model)
    target = named(to, "--to")
    arch = architecture(adapter.architecture)
    layout = target.layouts.get(arch.name)
    if layout is None:
        raise ConversionError(f"{to} has no names for {arch.title}.", command("loraforge", "formats"))
    unshown = bool(file and not adapter.shown)
    if unshown and layout != adapter.layout and (others := alike(adapter, layout)):
        text = f"the modules are called as those of {listed([arch.title, *others])}: nothing shows which it is of."
        raise ConversionError(text, adding("--architecture", arch.name, why=f"if it is {arch.title}"))
    base_notes = check_base(adapter, base_model or adapter.base_model)
    writer = _writer(target, Wanted(scale_in, target_alpha, Path(base) if base else None, lora_only, pad_ranks))
    adapter, dropped = without(adapter, drop)
    relaid = relayout.relayout(adapter.modules, arch, adapter.layout, layout)
    ranks = {path: max(w.rank for w in delta) for path, delta in adapter.modules.items()}
    rank = max(w.rank for delta, _ in relaid.values() for w in delta) if target.storage.one_rank else None
    policy = fit.Policy(writer.scaling(rank or 1), CHOICES.get(dtype), rank)
    stacked = arch.layouts[layout].stacked
    plans = fit.plan(relaid, target.storage, policy, stacked, to, ranks)
    plans = fit.padded(plans) if pad_ranks else plans

    def refuse(lossy: Mapping[str, float]) -> ConversionError:
        """With each way to store these modules that was tried and holds them."""

        def holds(changed: fit.Policy) -> bool:
            again = fit.plan(relaid, target.storage, changed, stacked, to, ranks)
            return not fit.too_lossy([fit.carry_out(plan)[1] for plan in again if plan.path in lossy])

        there = [plan.types(w) for plan in plans if plan.path in lossy for w in plan.delta]
        kinds = sorted({np.dtype(kind).name for pair in there for kind in pair})
        ways = [
            (adding("--dtype", name, why=why), replace(policy, dtype=CHOICES[name])) for name, why in _WIDER.items()
        ]
        if "scale_in" in target.options and policy.scaling is not None:
            ways.append((adding("--scale-in", "metadata", why="no number is changed"), replace(policy, scaling=None)))
        tries = [way for way, changed in ways if changed != policy and holds(changed)]
        return fit.refusal(lossy, len(plans), " and ".join(kinds), *tries)

    place = Path(out) if out else None
    run = adapter.source.run if adapter.source else arch.name
    sources = [path for path in (adapter.source.path if adapter.source else None, Path(base) if base else None) if path]
    default = f"{run}-{to}"
    goes = destination(
        place, default, writer.files, sources, force=force or dry_run, to=to, governs=() if dry_run else writer.governs
    )
    kept, lost = carried_over(adapter.metadata)
    fitting = Target({plan.path: plan.outline() for plan in plans}, kept, base_model or adapter.base_model)
    metadata = kept | writer.header(fitting)
    use = writer.use(goes.file, fitting)
    absent = file.absent if file else 0
    with in_order(fit.carry_out, [] if absent else plans) as fitted:  # begins while the tensors are scanned
        digest = None if absent else scan(file, adapter.keys) if file else scan_modules(adapter.modules)
        report = Report(
            source=_source(adapter, digest),
            output={"path": str(goes.file), "format": to, "written": not dry_run},
            architecture=arch.name,
            evidence=None if unshown else adapter.shown or "named in Python",
            scale=adapter.scale,
            scalings=tuple(sorted({w.scaling for delta in adapter.modules.values() for w in delta})),
            stored=writer.stored,
            steps=(),
            unfetched=absent,
            worst_error=None,
            fits=tuple(variant.name for variant in fits(adapter)),
            base_model=base_model or adapter.base_model,
            others=dict(adapter.others),
            dropped_modules=dropped,
            dropped_metadata=lost,
            notes=(*adapter.notes, *base_notes, *use.notes, *named_paths(goes.file), *_odd_ranks(to, fitting.ranks)),
            load=use.load,
            not_with=not_with(arch.name, to) or use.not_with,
            provided=use.provided,
        )
        steps: list[Step] = []

        def tensors() -> Iterator[tuple[str, Array]]:
            for delta, step in fitted:
                steps.append(step)
                yield from writer.encode(step.module, delta)
                if file and len(steps) % RELEASE_EVERY == 0:
                    file.release()
            if lossy := fit.too_lossy(steps):
                raise refuse(lossy)

        worst, seen, idle = None, report.programs, False
        if dry_run:
            deque(tensors(), maxlen=0)
            seen = (
                _foreseen(target, goes.file, _header(writer, fitting.outlines), metadata, arch.name)
                if writer.stored != "config"
                else ()
            )
        else:
            name = recorded(file.path) if file else report.source["path"]
            applied = sorted(set(fitting.scalings.values()))
            typed = typed or command("loraforge", "convert", name, "--to", to)
            said = _entry(report, {**report.source, "path": name}, typed, applied, history(adapter.metadata))
            header = _header(writer, fitting.outlines)
            with replacing(goes, writer.size(header), force=force) as folder:
                written = folder / goes.names[0]
                written.parent.mkdir(exist_ok=True)
                sums = writer.write(written, header, tensors(), metadata | {KEY: said})
                for name, text in writer.beside(replace(fitting, metadata=kept | {KEY: said})).items():
                    (folder / name).write_text(text, "utf-8")
                results, back, again = _prove(adapter, target, written, sums, metadata | {KEY: said}, steps, file)
                _prove_place(target, folder, goes.names, written)
                if lossy := {result.module: result.loss for result in results if not result.holds}:
                    raise refuse(lossy)  # of one of several segments, which the module as a whole could bear
                worst = max(result.error for result in results)
                idle = all(math.isnan(result.strength) for result in results)
                seen = programs(outlooks(target, back, again), to)
    advice = [] if absent else _advice(steps, dtype, adapter, target)
    notes = (*report.notes, *([_IDLE] if idle else []), *advice)
    return replace(report, steps=tuple(steps), worst_error=worst, notes=notes, programs=seen)


_IDLE = "its update is zero: it was never trained, or the wrong tensors were saved"


def _foreseen(
    target: Format, path: Path, header: Header, metadata: Mapping[str, str], architecture: str
) -> tuple[Program, ...]:
    """What programs would do with a file that is not written, as far as its header tells it."""
    tensors = {key: TensorInfo(*entry, place) for place, (key, entry) in enumerate(header.items())}
    file = TensorFile(path, "safetensors", 0, tensors, metadata, maps=(FileMap(path, absent=1),))
    try:
        return programs(outlooks(target, file, target.read(file, Choice(architecture=architecture))), target.name)
    except LoraforgeError:
        return ()


def _odd_ranks(to: str, ranks: Mapping[str, int]) -> Iterator[str]:
    """What becomes of modules of several ranks in programs that take one rank for all."""
    if where := mixed_ranks(to, ranks):
        said = f"its modules have ranks {', '.join(map(str, sorted(set(ranks.values()))))}"
        yield f"{said}: {where} would apply them at a wrong scale, without a word. For these: --pad-ranks"


def _entry(
    report: Report,
    source: Mapping[str, Any],
    typed: str,
    applied: Sequence[float],
    earlier: Sequence[Mapping[str, Any]],
) -> str:
    return entry(
        typed,
        source,
        report.scale,
        report.scalings,
        applied,
        report.stored,
        report.base_model,
        report.fits,
        earlier,
        report.architecture if report.evidence else None,
    )


def _advice(steps: Sequence[Step], dtype: str, adapter: Adapter, target: Format) -> Iterator[str]:
    """What a user should know of scales that switch off, and how to avoid a rounding that can be avoided."""
    scalings = {w.scaling for delta in adapter.modules.values() for w in delta}
    if min(scalings) <= 0:
        yield f"a scale of {min(scalings):g}, as you stated it, switches the adapter off or inverts it"
    if not any(step.error for step in steps):
        return
    narrow = any(w.B.dtype.itemsize < 4 for delta in adapter.modules.values() for w in delta)
    ways = [f"leave out --dtype {dtype}"] if dtype in ("fp16", "bf16") else []
    ways += ["--dtype fp32 (a larger file)"] if narrow and dtype == "keep" else []
    ways += (
        ["--scale-in metadata, where a loader reads the header"]
        if "scale_in" in target.options and dtype == "keep"
        else []
    )
    if ways:
        yield f"for less rounding, or none: {', or '.join(ways)}"
