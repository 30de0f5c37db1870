"""Writes an adapter in any format, reads the file back as its loader would, and proves that its update is the same."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from loraforge.adapter.adapter import Adapter
from loraforge.adapter.fits import fits
from loraforge.adapter.proof import Comparison, compare, pair_up
from loraforge.conversion.prepare import ElementType, Prepared, prepare, refusal
from loraforge.conversion.report import Report
from loraforge.conversion.store import Computed, Written, computed, source, store
from loraforge.errors import LoraforgeError, VerificationError, names_in
from loraforge.files.digest import changed
from loraforge.files.mapped import FileMap
from loraforge.files.opening import open_tensors
from loraforge.files.tensorfile import TensorFile, TensorInfo
from loraforge.format.protocol import Wanted
from loraforge.programs.outlook import Program, mixed_ranks, outlooks, programs
from loraforge.programs.table import named as named_paths
from loraforge.programs.table import not_with
from loraforge.scale.rule import Choice
from loraforge.text import command, listed, recorded


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
    dtype: ElementType = "keep",
    base_model: str | None = None,
    drop: Sequence[str] = (),
    dry_run: bool = False,
    force: bool = False,
    typed: str | None = None,
) -> Report:
    """Write what `read` gave, or an Adapter made in Python; the arguments are those of `loraforge convert`.

    `typed` is the command that the written file records as its origin. Returns the report. Raises a LoraforgeError,
    with nothing written, if the adapter does not fit the target or if the written file makes another update.
    """
    wanted = Wanted(scale_in, target_alpha, Path(base) if base else None, lora_only, pad_ranks)
    path = Path(out) if out else None
    prepared = prepare(
        adapter, to, path, wanted, dtype=dtype, base_model=base_model, drop=drop, force=force, dry_run=dry_run
    )
    if dry_run:  # every number is computed, and none is written
        with computed(prepared) as made:
            deque(made.tensors, maxlen=0)
            return _report(prepared, made, _foreseen(prepared))
    name = recorded(adapter.source.file.path) if adapter.source else "made-in-python"
    with store(prepared, typed or command("loraforge", "convert", name, "--to", to), force=force) as files:
        back, again, results = _prove(prepared, files)
        known = programs(outlooks(prepared.target, back, again), prepared.target.name)
    return _report(prepared, files.computed, known, results)


def _prove(prepared: Prepared, written: Written) -> tuple[TensorFile, Adapter, list[Comparison]]:
    """The written file, the adapter in it, and how each segment compares with the source's.

    Raises VerificationError if they differ; ConversionError if rounding took too much.
    """
    back, again = _read_back(prepared, written)
    results = _compared(prepared, written, back, again)
    _find(prepared, written)
    if lossy := {result.module: result.loss for result in results if not result.holds}:
        raise refusal(prepared, lossy)  # in one of several segments: the module as a whole could bear it
    return back, again, results


def _read_back(prepared: Prepared, written: Written) -> tuple[TensorFile, Adapter]:
    """The written file and the adapter in it. Raises VerificationError if its bytes or header have changed."""
    file = written.file
    try:
        back, _ = open_tensors(file)
    except LoraforgeError as error:
        text = error.message.replace(str(file), file.name)
        raise VerificationError(f"the written file is damaged: {text} Nothing was kept.") from error
    damaged = changed(back, written.sums)
    if back.kind == "safetensors" and back.metadata != written.metadata:
        damaged.append("its metadata")
    if damaged:
        text = f"the disk gave back other bytes than were written ({listed(damaged, 5)}). Nothing was kept."
        raise VerificationError(text)
    try:
        return back, prepared.target.read(back, Choice(architecture=prepared.adapter.architecture))
    except LoraforgeError as error:
        text = error.message.replace(str(file), file.name)
        raise VerificationError(f"the written file is not read as it was meant: {text} Nothing was kept.") from error


def _compared(prepared: Prepared, written: Written, back: TensorFile, again: Adapter) -> list[Comparison]:
    """The result for each segment; only rounding can make one fail to hold. Raises VerificationError otherwise."""
    rounded = {step.module for step in written.computed.steps if step.kind == "rounded"}
    pairs, alone = pair_up(prepared.adapter, again)
    if any(alone):
        names = listed([*alone[0], *alone[1]], 5)
        raise VerificationError(f"the written file adapts other modules than the source: {names}. Nothing was kept.")
    results = compare(pairs, rounded.__contains__, prepared.file, back)
    if wrong := sorted((result for result in results if not result.rounding), key=lambda result: -result.error):
        worst = listed([f"{result.module} (off by {result.error:.1e} of a row)" for result in wrong], 5)
        raise VerificationError(
            f"the written file does not do what the source does, in {len(wrong)} of {len(results)} segments: {worst}. "
            "Nothing was kept. This is a fault of loraforge: please report it with the skeleton of your file.",
            *([names_in(prepared.file.path)] if prepared.file else []),
        )
    return results


def _find(prepared: Prepared, written: Written) -> None:
    """Check that a reader who is given the folder finds the file. Raises VerificationError if not."""
    target, folder, names = prepared.target, written.folder, prepared.destination.names
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise VerificationError(f"{listed(missing)} was not written. Nothing was kept.")
    if len(names) == 1:
        return
    try:
        located = target.find(folder, Choice())
    except LoraforgeError as error:
        text = error.message.replace(str(folder), folder.name)
        raise VerificationError(f"the written folder is not one of {target.name}: {text} Nothing was kept.") from error
    if located is None or located.path != written.file:
        raise VerificationError(f"{written.file.name} is not what is found in the written folder. Nothing was kept.")


def _foreseen(prepared: Prepared) -> tuple[Program, ...]:
    """What programs would do with a file that is not written, as far as its header determines it."""
    if prepared.writer.stored == "config":
        return ()
    target, path = prepared.target, prepared.destination.file
    infos = {key: TensorInfo(*entry, place) for place, (key, entry) in enumerate(prepared.header.items())}
    file = TensorFile(path, "safetensors", 0, infos, prepared.metadata, maps=(FileMap(path, absent=1),))
    try:
        again = target.read(file, Choice(architecture=prepared.adapter.architecture))
        return programs(outlooks(target, file, again), target.name)
    except LoraforgeError:
        return ()


def _report(
    prepared: Prepared, made: Computed, known: tuple[Program, ...], results: Sequence[Comparison] = ()
) -> Report:
    """The report. `results`: those of the proof; none if nothing was written."""
    adapter, use, target = prepared.adapter, prepared.use, prepared.target.name
    file = prepared.destination.file
    return Report(
        source=source(adapter, made.digest),
        output={"path": str(file), "format": target, "written": bool(results)},
        architecture=adapter.architecture,
        evidence=adapter.shown or (None if prepared.file else "named in Python"),
        scale=adapter.scale,
        scalings=adapter.scalings,
        stored=prepared.writer.stored,
        steps=tuple(made.steps),
        unfetched=prepared.unfetched,
        worst_error=max((result.error for result in results), default=None),
        fits=tuple(variant.name for variant in fits(adapter)),
        base_model=prepared.result.base_model,
        others=dict(adapter.others),
        dropped_modules=prepared.dropped_modules,
        dropped_metadata=prepared.dropped_metadata,
        notes=(*prepared.notes, *use.notes, *named_paths(file), *_advice(prepared, made, results)),
        load=use.load,
        not_with=not_with(adapter.architecture, target) or use.not_with,
        provided=use.provided,
        programs=known,
        rivals=tuple(adapter.rivals),
    )


def _advice(prepared: Prepared, made: Computed, results: Sequence[Comparison]) -> Iterator[str]:
    """Notes on several ranks, an update of zero, scales that switch the adapter off, and avoidable rounding."""
    ranks = prepared.result.ranks
    if where := mixed_ranks(prepared.target.name, ranks):
        text = f"its modules have ranks {', '.join(map(str, sorted(set(ranks.values()))))}"
        yield f"{text}: {where} would apply them at a wrong scale, without a word. For these: --pad-ranks"
    if results and all(prepared.adapter.scalings) and all(math.isnan(result.strength) for result in results):
        yield "its update is zero: it was never trained, or the wrong tensors were saved"
    if prepared.unfetched:
        return
    dtype = prepared.dtype
    if not any(step.error for step in made.steps):
        return
    ways = [f"leave out --dtype {dtype}"] if dtype in ("fp16", "bf16") else []
    if dtype == "keep":
        if any(w.B.dtype.itemsize < 4 for delta in prepared.adapter.modules.values() for w in delta):
            ways.append("--dtype fp32 (a larger file)")
        if "scale_in" in prepared.target.options:
            ways.append("--scale-in metadata, where a loader reads the header")
    if ways:
        yield f"for less rounding, or none: {', or '.join(ways)}"
