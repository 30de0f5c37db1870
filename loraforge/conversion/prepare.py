"""Decides how an adapter will be stored in a format: names, shapes, header and destination. Computes no number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np

from loraforge.adapter import fit, relayout
from loraforge.adapter.adapter import Adapter
from loraforge.adapter.differences import LORA_BIAS, Whole, fitted
from loraforge.adapter.drop import without
from loraforge.adapter.fits import check_base, no_repository, repository
from loraforge.adapter.rivals import decided, moves
from loraforge.algebra.dtypes import CHOICES, name_of
from loraforge.conversion.evidence import alike, stated_by
from loraforge.errors import ConversionError, adding
from loraforge.files.destination import Destination, destination
from loraforge.files.tensorfile import TensorFile
from loraforge.format.protocol import Format, Header, Target, Use, Wanted, Writer
from loraforge.format.registry import formats, named
from loraforge.names.layout import Architecture
from loraforge.scale.origin import carried_over
from loraforge.text import command, listed

ElementType = Literal["keep", "fp32", "bf16", "fp16"]

_WIDER = {"fp32": "", "bf16": "as small as fp16, with a wider range and fewer digits"}
"""What --dtype can be if fp16 is too narrow, in the order in which it is proposed."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Everything about the written file but its numbers."""

    dtype: ElementType
    adapter: Adapter
    """Without the modules that are dropped."""
    target: Format
    writer: Writer
    plan: Callable[..., list[fit.Plan]]
    """Called with `policy`: the plans of all modules under that policy."""
    policy: fit.Policy
    plans: list[fit.Plan]
    whole: list[Whole]
    """The differences of parameters that no pair of factors makes."""
    result: Target
    """Its modules' final shapes, types and scalings."""
    metadata: Mapping[str, str]
    """Of the tensor file, without our own entry."""
    destination: Destination
    use: Use
    dropped_modules: tuple[str, ...]
    dropped_metadata: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def file(self) -> TensorFile | None:
        """The source; None for an adapter made in Python."""
        return self.adapter.source.file if self.adapter.source else None

    @property
    def unfetched(self) -> int:
        """Bytes of the source's tensors that were not fetched from the Hub."""
        return self.file.absent if self.file else 0

    @property
    def header(self) -> Header:
        """Key -> element type and shape of every tensor that will be written."""
        encoded = (pair for path, delta in self.result.outlines.items() for pair in self.writer.encode(path, delta))
        whole = ((self.writer.difference(one.path, one.suffix), one.outline(self.policy.dtype)) for one in self.whole)
        return {key: (name_of(tensor.dtype), tensor.shape) for key, tensor in chain(encoded, whole)}


def prepare(
    adapter: Adapter, to: str, out: Path | None, wanted: Wanted, *,
    dtype: ElementType, base_model: str | None, drop: Sequence[str], force: bool, dry_run: bool,
) -> Prepared:  # fmt: skip
    """Make the adapter fit the format `to`. Raises a LoraforgeError if it cannot, or if the destination is taken.

    `out`: a folder or a file; None names it after the run, in the current folder.
    """
    _check(wanted, dtype, base_model)
    base_model = repository(base_model)
    adapter = stated_by(adapter, base_model)
    target = named(to)
    adapter = decided(adapter, target.layouts)
    arch = adapter.model
    layout = _layout(adapter, target, arch)
    base_model = base_model or adapter.base_model
    notes = [*check_base(adapter, base_model), *_same_files(target, arch.name)]
    writer = _writer(target, wanted, arch.component)
    adapter, dropped = without(adapter, drop)
    relaid = relayout.relayout(adapter.modules, arch, adapter.layout, layout)
    ranks = {path: max(w.rank for w in delta) for path, delta in adapter.modules.items()}
    rank = max(w.rank for delta, _ in relaid.values() for w in delta) if target.storage.one_rank else None
    policy = fit.Policy(writer.scaling(rank or 1), CHOICES.get(dtype), rank)
    stacked = arch.layouts[layout].stacked
    plan = partial(fit.plan, relaid, target.storage, segments=stacked, to=target.name, ranks=ranks)
    plans = fit.padded(plan(policy=policy)) if wanted.pad_ranks else plan(policy=policy)
    source, base = adapter.source, wanted.base
    output = destination(
        out,
        f"{source.run if source else adapter.architecture}-{target.name}",
        writer.files,
        [path for path in (source.path if source else None, base) if path],
        force=force or dry_run,
        to=target.name,
        governs=() if dry_run else writer.governs,
    )
    kept, lost = carried_over(adapter.metadata)
    outlines = {one.path: one.outline() for one in plans}
    whole = fitted(adapter, layout, target.storage, outlines, target.name)
    result = Target(outlines, kept, base_model, bias=any(one.suffix == LORA_BIAS for one in whole))
    return Prepared(
        dtype=dtype,
        adapter=adapter,
        target=target,
        writer=writer,
        plan=plan,
        policy=policy,
        plans=plans,
        whole=whole,
        result=result,
        metadata=kept | writer.header(result),
        destination=output,
        use=writer.use(output.file, result),
        dropped_modules=dropped,
        dropped_metadata=lost,
        notes=(*adapter.notes, *notes),
    )


def refusal(prepared: Prepared, lossy: Mapping[str, float]) -> ConversionError:
    """The error for modules that lose too much to rounding, with each other way to store them that holds."""

    def holds(changed: fit.Policy) -> bool:
        again = prepared.plan(policy=changed)
        return not fit.too_lossy([fit.carry_out(plan)[1] for plan in again if plan.path in lossy])

    policy, plans = prepared.policy, prepared.plans
    pairs = [plan.types(w) for plan in plans if plan.path in lossy for w in plan.delta]
    kinds = sorted({np.dtype(kind).name for pair in pairs for kind in pair})
    ways = [(adding("--dtype", name, why=why), replace(policy, dtype=CHOICES[name])) for name, why in _WIDER.items()]
    if "scale_in" in prepared.target.options and policy.scaling is not None:
        ways.append((adding("--scale-in", "metadata", why="no number is changed"), replace(policy, scaling=None)))
    tries = [way for way, changed in ways if changed != policy and holds(changed)]
    return fit.refusal(lossy, len(plans), " and ".join(kinds), *tries)


def _check(wanted: Wanted, dtype: str, base_model: str | None) -> None:
    values = {"scale_in": (wanted.scale_in, ("tensors", "metadata")), "dtype": (dtype, ("keep", *CHOICES))}
    for option, (value, known) in values.items():
        if value not in known:
            raise ConversionError(f"{option} is {value!r}; it can be {', '.join(known)}.")
    if base_model is not None and repository(base_model) is None:
        raise no_repository(base_model)


def _layout(adapter: Adapter, target: Format, arch: Architecture) -> str:
    """The layout that the format has for this architecture. Raises ConversionError if it has none."""
    layout = target.layouts.get(arch.name)
    if layout is None:
        having = [name for name, form in formats().items() if form.writer and arch.name in form.layouts]
        text = f"{target.name} has no names for {arch.title}; there are {', '.join(having)}."
        raise ConversionError(text, *(adding("--to", name) for name in having[:3]))
    unshown = adapter.source is not None and not adapter.shown and len(target.layouts) > 1
    kept = all(path == there and rows == place for path, rows, there, place in moves(adapter, layout))
    if unshown and (others := [t for t, kinds in alike(adapter).items() if not (kept and _names(target) in kinds)]):
        text = f"the modules are called as those of {listed([arch.title, *others])}: nothing shows which it is of."
        raise ConversionError(text, adding("--architecture", arch.name, why=f"if it is {arch.title}"))
    return layout


def _names(target: Format) -> str:
    """Whose names the format has for most models, of the kinds in the table of other models."""
    uses = Counter(target.layouts.values())
    return "diffusers" if uses.most_common(1)[0][0] == "diffusers" else "comfyui" if "comfyui" in uses else "original"


def _same_files(target: Format, architecture: str) -> list[str]:
    """A note if another format writes the same file for this architecture."""
    same = formats().get(getattr(target, "like", None) or "")
    if same is None or same.layouts.get(architecture) != target.layouts[architecture]:
        return []
    return [f"{target.name} has {same.name}'s files for this model: --to {same.name} writes the same tensors"]


def _writer(target: Format, wanted: Wanted, component: str) -> Writer:
    if target.writer is None:
        raise ConversionError(f"{target.name} is read, not written.", command("loraforge", "formats"))
    for option in fields(Wanted):
        if option.name in target.options or getattr(wanted, option.name) == option.default:
            continue
        if knowing := [name for name, form in formats().items() if option.name in form.options]:
            flag = "--" + option.name.replace("_", "-")
            raise ConversionError(f"{flag} goes with --to {' or '.join(knowing)}, not with --to {target.name}.")
    return target.writer(replace(wanted, component=component))
