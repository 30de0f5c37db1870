"""Writes an adapter in any format, and proves that the written file makes the same update."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loraforge.adapter import Adapter, Step
from loraforge.catalog import architecture
from loraforge.drop import without
from loraforge.dtypes import CHOICES, name_of
from loraforge.errors import (
    ConversionError,
    LoraforgeError,
    Try,
    VerificationError,
    command,
    listed,
    recorded,
    told,
)
from loraforge.formats import Choice, Format, Header, Target, Wanted, Writer
from loraforge.measured import mixed_ranks, programs
from loraforge.output import destination, replacing
from loraforge.provenance import carried_over, entry, history
from loraforge.registry import formats, named
from loraforge.report import Program, Report
from loraforge.runtimes import named as named_paths
from loraforge.runtimes import outlooks
from loraforge.source import open_tensors
from loraforge.tensorfile import KEY, RELEASE_EVERY, TensorFile, TensorInfo

if TYPE_CHECKING:
    from loraforge.lora import Array, Delta
    from loraforge.proof import Comparison


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
    import numpy as np  # --help must not wait for it

    from loraforge import fit, graph
    from loraforge.base import check_base, fits, repository
    from loraforge.scan import scan, scan_modules
    from loraforge.shown import alike, stated_by
    from loraforge.threads import in_order

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
        raise ConversionError(text, Try(f"--architecture {arch.name}", f"if it is {arch.title}"))
    base_notes = check_base(adapter, base_model or adapter.base_model)
    writer = _writer(target, Wanted(scale_in, target_alpha, Path(base) if base else None, lora_only, pad_ranks))
    adapter, dropped = without(adapter, drop)
    relaid = graph.relayout(adapter.modules, arch, adapter.layout, layout)
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
        ways = [(Try(f"--dtype {name}", why), replace(policy, dtype=CHOICES[name])) for name, why in _WIDER.items()]
        if "scale_in" in target.options and policy.scaling is not None:
            ways.append((Try("--scale-in metadata", "no number is changed"), replace(policy, scaling=None)))
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
            not_with=use.not_with,
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
    file = TensorFile(path, "safetensors", 0, tensors, metadata, absent=1)
    try:
        return programs(outlooks(target, file, target.read(file, Choice(architecture=architecture))), target.name)
    except LoraforgeError:
        return ()


def _odd_ranks(to: str, ranks: Mapping[str, int]) -> Iterator[str]:
    """What becomes of modules of several ranks in programs that take one rank for all."""
    if where := mixed_ranks(to, ranks):
        said = f"its modules have ranks {', '.join(map(str, sorted(set(ranks.values()))))}"
        yield f"{said}: {where} would apply them at a wrong scale, without a word. For these: --pad-ranks"


def _source(adapter: Adapter, digest: str | None) -> dict[str, Any]:
    """What the report and the provenance say of where the adapter came from."""
    if adapter.source is None:
        size = sum(f.nbytes for delta in adapter.modules.values() for w in delta for f in (w.A, w.B))
        return {"path": "made-in-python", "format": "python", "size": size, "digest": digest}
    file = adapter.source.file
    return {"path": told(file.path), "format": adapter.source.format, "size": file.size, "digest": digest}


def _check(scale_in: str, dtype: str, base_model: str | None) -> None:
    for option, value, known in (("scale_in", scale_in, ("tensors", "metadata")), ("dtype", dtype, ("keep", *CHOICES))):
        if value not in known:
            raise ConversionError(f"{option} is {value!r}; it can be {', '.join(known)}.")
    from loraforge.base import no_repository, repository

    if base_model is not None and repository(base_model) is None:
        raise no_repository(base_model)


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


def _writer(target: Format, wanted: Wanted) -> Writer:
    if target.writer is None:
        raise ConversionError(f"{target.name} is read, not written.", command("loraforge", "formats"))
    for option in fields(Wanted):
        if option.name in target.options or getattr(wanted, option.name) == option.default:
            continue
        if knowing := [name for name, form in formats().items() if option.name in form.options]:
            flag = "--" + option.name.replace("_", "-")
            raise ConversionError(f"{flag} goes with --to {' or '.join(knowing)}, not with --to {target.name}.")
    return target.writer(wanted)


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


def _header(writer: Writer, outlines: Mapping[str, Delta]) -> Header:
    """Key -> element type and shape of every tensor that will be written."""
    encoded = (pair for module, delta in outlines.items() for pair in writer.encode(module, delta))
    return {key: (name_of(tensor.dtype), tensor.shape) for key, tensor in encoded}


def _prove(
    adapter: Adapter,
    target: Format,
    written: Path,
    sums: Mapping[str, int],
    metadata: Mapping[str, str],
    steps: Sequence[Step],
    file: TensorFile | None,
) -> tuple[list[Comparison], TensorFile, Adapter]:
    """Read the written file as its loader would: its bytes, its header, then its update against the source's.

    Returns what was found of each segment, and what was read; a segment that does not hold lost too much to rounding,
    and to nothing else. Raises VerificationError.
    """
    from loraforge.proof import compare, pair_up
    from loraforge.scan import changed

    try:
        back, _ = open_tensors(written)
    except LoraforgeError as error:
        said = error.message.replace(str(written), written.name)
        raise VerificationError(f"the written file is damaged: {said} Nothing was kept.") from error
    damaged = changed(back, sums)
    if back.kind == "safetensors" and back.metadata != metadata:
        damaged.append("its metadata")
    if damaged:
        raise VerificationError(
            f"the disk gave back other bytes than were written ({listed(damaged, 5)}). Nothing was kept.",
            command("ls", "-l", written.parent.parent),
        )

    def release() -> None:
        if file:
            file.release()
        back.release()

    rounded = {step.module for step in steps if step.kind == "rounded"}
    try:
        again = target.read(back, Choice(architecture=adapter.architecture))
    except LoraforgeError as error:
        said = error.message.replace(str(written), written.name)
        raise VerificationError(f"the written file is not read as it was meant: {said} Nothing was kept.") from error
    pairs, alone = pair_up(adapter, again)
    if alone.first or alone.second:
        names = listed([*alone.first, *alone.second], 5)
        raise VerificationError(f"the written file adapts other modules than the source: {names}. Nothing was kept.")
    results = compare(pairs, rounded.__contains__, release)
    wrong = [result for result in results if not result.rounding]
    if wrong:
        wrong.sort(key=lambda result: -result.error)
        worst = listed([f"{result.module} (off by {result.error:.1e} of a row)" for result in wrong], 5)
        raise VerificationError(
            f"the written file does not do what the source does, in {len(wrong)} of {len(results)} segments: {worst}. "
            "Nothing was kept. This is a fault of loraforge: please report it with the skeleton of your file.",
            *([command("loraforge", "inspect", "--skeleton", file.path)] if file else []),
        )
    return results, back, again


def _prove_place(target: Format, folder: Path, names: Sequence[str], written: Path) -> None:
    """What was written is found where it lies, by whoever is given the folder. Raises VerificationError."""
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise VerificationError(f"{listed(missing)} was not written. Nothing was kept.")
    if len(names) == 1:
        return
    try:
        found = target.find(folder, Choice())
    except LoraforgeError as error:
        said = error.message.replace(str(folder), folder.name)
        raise VerificationError(f"the written folder is not one of {target.name}: {said} Nothing was kept.") from error
    if found is None or found.path != written:
        raise VerificationError(f"{written.name} is not what is found in the written folder. Nothing was kept.")
