"""Adds adapters to base weights permanently, shard by shard, and measures what survives the rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Unpack

from loraforge.adapter.adapter import Adapter
from loraforge.adapter.differences import counted, described
from loraforge.adapter.drop import without
from loraforge.algebra.dtypes import CHOICES, FACTORS, LARGEST
from loraforge.base.folder import beside, index_text, shards
from loraforge.base.job import Model, write_model
from loraforge.base.model import BaseModel
from loraforge.base.opening import missing_parts, open_base
from loraforge.base.origin import Fused, entry, fused, refuse_twice
from loraforge.base.retention import LOUD, WARN, Retention, lines, summary
from loraforge.base.stream import Engine, NewTensor, Part, Shard, measure
from loraforge.base.updates import Runs, updates
from loraforge.conversion.read import read
from loraforge.document import Document, rows, title
from loraforge.errors import ConversionError, LoraforgeError, adding, as_commands
from loraforge.files.mapped import steady
from loraforge.files.resume import check_place
from loraforge.files.tensorfile import KEY, TensorFile
from loraforge.fusion.choose import choose
from loraforge.hub.folder import base_folder
from loraforge.names.layout import COMPONENTS
from loraforge.scale.resolve import STATES
from loraforge.scale.stated import Stated, takes_stated
from loraforge.text import command, fraction, options, recorded, told


@dataclass(frozen=True, slots=True)
class FuseReport(Document):
    """What a fuse did. Its JSON follows schemas/fuse.schema.json."""

    schema = "fuse"

    base: dict[str, Any]
    """path, kind, layout, variants."""
    adapters: tuple[Fused, ...]
    output: dict[str, Any]
    """path, files, dtype, written."""
    backend: str
    """Name and device."""
    copied: int
    """Number of tensors that equal the base's byte for byte."""
    cast: int
    """Number of tensors that were only converted to another type."""
    dropped_modules: tuple[str, ...]
    """Modules of the adapters that `--drop` left out."""
    total: Retention
    modules: tuple[Retention, ...]
    notes: tuple[str, ...]
    load: str

    def lines(self) -> list[str]:
        done = f"{len(self.modules)} weights changed, {self.copied} tensors copied as they are"
        done += f", {self.cast} stored as {self.output['dtype']}" if self.cast else ""
        lost, size = lines(self.total, self.modules)
        table = [("adapter", _described(adapter)) for adapter in self.adapters]
        table += [("dropped", module) for module in self.dropped_modules]
        table += [("rounding", lost), ("size", size), ("load", self.load)]
        return [title(self.base, self.output), f"  {done} ({self.backend})", *rows(table)]


def _described(adapter: Fused) -> str:
    scale = ", ".join(map(fraction, adapter.scalings))
    at = "trained at" if adapter.provenance in ("recorded", "given") else "at scale"
    return f"{adapter.path} at strength {adapter.strength:g}, {at} {scale} ({adapter.provenance}: {adapter.said})"


@takes_stated
def fuse(
    base: str | Path,
    adapters: Sequence[str | Path],
    out: str | Path,
    *,
    strength: Sequence[float] = (),
    dtype: Literal["keep", "fp32", "bf16", "fp16"] = "keep",
    transformer_only: bool = False,
    backend: str = "auto",
    device: str = "auto",
    drop: Sequence[str] = (),
    dry_run: bool = False,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    **stated: Unpack[Stated],
) -> FuseReport:
    """Add `adapters` to the weights of `base` and write the model `out`; the arguments are those of `loraforge fuse`.

    A stated scale counts for every adapter. `progress` is called with (bytes written, all bytes). Raises a
    LoraforgeError, with nothing left behind, if the base is quantised, holds one of the adapters already or has other
    shapes than they need, or if a value is NaN or does not fit the type of the weights.
    """
    engine = Engine(*choose(backend, device))
    model = open_base(base_folder(base, only=COMPONENTS if transformer_only else ()))
    opened, dropped = _read(adapters, {**stated, "drop": drop})
    weighted = list(zip(opened, _strengths(strength, opened), strict=True))
    runs = updates(model, weighted)
    described = tuple(fused(adapter, number) for adapter, number in weighted)
    refuse_twice(model, described)
    words = options({"strength": [float(adapter.strength) for adapter in described], "dtype": dtype})
    typed = command("loraforge", "fuse", recorded(model.path), *(adapter.path for adapter in described), *words)
    origin = entry(typed, model, described, model.layout)
    target = Path(out)
    plan = _model(model, runs, target, CHOICES.get(dtype), origin, alone=transformer_only)
    check_place(target, plan.names, [model.path, *map(Path, adapters)], force=force or dry_run)
    read = [*model.files, *(adapter.source.file for adapter in opened if adapter.source)]
    maps = [part for file in read for part in file.maps]
    with steady(*maps):
        new = not force
        measured = (
            measure(plan.tensors, engine) if dry_run else write_model(target, plan, engine, progress, maps, new=new)
        )
    changed = [tensor.key for tensor in plan.tensors if tensor.terms]
    total, modules = summary({key.removeprefix(model.prefix): measured[key] for key in changed})
    untouched = [tensor for tensor in plan.tensors if not tensor.terms]
    same = sum(not tensor.is_cast for tensor in untouched)
    variants = [variant.name for variant in model.variants]
    return FuseReport(
        base={"path": told(model.path), "kind": model.kind, "layout": model.layout, "variants": variants},
        adapters=tuple(replace(f, said=a.scale.source) for f, (a, _) in zip(described, weighted, strict=True)),
        output={"path": str(target), "files": list(plan.shards), "dtype": dtype, "written": not dry_run},
        backend=f"{engine.backend.name} on {engine.device}",
        copied=same,
        cast=len(untouched) - same,
        dropped_modules=dropped,
        total=total,
        modules=modules,
        notes=(*model.notes, *(note for a in opened for note in a.notes), *_advice(model, opened, total, dtype)),
        load=_load(model, target, alone=transformer_only),
    )


_OPTIONS = STATES | {"--drop", "--architecture"}
"""The options that remedies add and that `fuse` has too."""


def _read(paths: Sequence[str | Path], options: Mapping[str, Any]) -> tuple[list[Adapter], tuple[str, ...]]:
    """The adapters, and what `--drop` leaves out of them."""
    opened, dropped = list[Adapter](), list[str]()
    for path in paths:
        try:
            adapter, gone = without(read(path, **options), options["drop"])
        except LoraforgeError as error:
            if not all(remedy.gives_only(_OPTIONS) for remedy in error.remedies):
                raise as_commands(error, "loraforge", "inspect", path) from error
            raise
        opened.append(adapter)
        dropped += gone
    return opened, tuple(dropped)


def _strengths(given: Sequence[float], adapters: Sequence[Adapter]) -> list[float]:
    if not given:
        return [1.0] * len(adapters)
    as_trained = adding(*["--strength", "1"] * len(adapters), why="as trained, each")
    if len(given) != len(adapters):
        many = f"{len(adapters)} adapter{'s' * (len(adapters) > 1)}"
        text = f"{len(given)} strengths for {many}: give --strength once per adapter, in their order."
        completed = [*given, *[1.0] * len(adapters)][: len(adapters)]
        words = (word for number in completed for word in ("--strength", f"{number:g}"))
        raise ConversionError(text, adding(*words), as_trained)
    if strange := [number for number in given if not abs(number) <= LARGEST]:
        raise ConversionError(f"--strength {strange[0]:g} is no number to multiply an update with.", as_trained)
    return list(given)


def _model(
    base: BaseModel, runs: Mapping[str, Runs], out: Path, dtype: str | None, origin: str, *, alone: bool
) -> Model:
    """The files of the result: the base's own, except for the weights that change."""
    names, written = shards(base, out, alone=alone), dict[str, Shard]()
    kind: Literal["safetensors", "torch"] = "torch" if base.kind == "sat" else "safetensors"
    for name, file in names.items():
        metadata = file.metadata if file.kind == kind else {"format": "pt"}
        written[name] = Shard(kind, tuple(_tensors(base, file, runs, dtype)), {**metadata, KEY: origin})
    copied, texts = beside(base, names, alone=alone)
    total = sum(shard.nbytes for shard in written.values())
    return Model(written, copied, texts | index_text(base, names, total))


def _tensors(base: BaseModel, file: TensorFile, runs: Mapping[str, Runs], dtype: str | None) -> Iterator[NewTensor]:
    """Every tensor of a shard, without SAT's LoRA tensors and its `.original.` in names."""
    for key, info in file.tensors.items():
        if key in base.lora:
            continue
        kind = dtype if dtype and info.dtype in FACTORS else info.dtype
        rows = info.shape[0] if info.shape else 1
        name = key.replace(".original.", ".") if key.startswith(base.prefix) else key
        yield NewTensor(name, kind, info.shape, (Part(file, key, 0, rows),), runs.get(key, {}))


def _advice(base: BaseModel, adapters: Sequence[Adapter], total: Retention, dtype: str) -> Iterator[str]:
    """Notes on what a user might not expect of the result."""
    if base.lora:
        yield (
            f"the LoRA that lies in {base.files[0].path.name} itself ({len(base.lora)} tensors) is left out: "
            "the result holds what you named, under the names of a base model"
        )
    names = [variant.name for variant in base.variants]
    yield from filter(None, (other_base(adapter, names) for adapter in adapters))
    whole = [key for adapter in adapters for key in adapter.differences]
    yield from [f"{described(counted(whole))} are added as they are, times the strength"] if whole else []
    if not total.relative_size:
        yield "nothing is added: every strength is 0, or the updates cancel"
    if total.relative_size > LOUD:
        yield f"the updates are {total.relative_size:.3g} times as large as the weights they change, which they drown"
    if len({str(a.source.path.resolve()) for a in adapters if a.source}) < len(adapters):
        yield "the same adapter is given more than once: its updates add up"
    if total.relative_error > WARN and total.relative_size:
        kept = "keep the adapter separate (loraforge convert)"
        ways = f"--dtype fp32 keeps it, in a larger file; or {kept}" if dtype != "fp32" else kept
        yield (
            f"rounding changed the update by {total.relative_error:.0%} of its size "
            f"({total.unchanged:.0%} of the entries did not move): {ways}"
        )


def other_base(adapter: Adapter, variants: Sequence[str]) -> str:
    """A note if the adapter is recorded for a base model that is none of these variants; else empty."""
    repos = [v.repo for v in adapter.model.variants if v.name in variants]
    if not adapter.base_model or not repos or adapter.base_model in repos:
        return ""
    return f"the adapter is for {adapter.base_model}, and the base has the shapes of {' or '.join(repos)}"


def _load(base: BaseModel, out: Path, *, alone: bool) -> str:
    path = repr(str(out))
    if base.kind == "sat":
        return f"in SAT's inference.yaml `load: {out}`, and no lora_config in the model's YAML"
    if base.kind == "file":
        return f"load_file({path})  # where the base's own file was loaded"
    without = "without any load_lora_weights"
    if base.kind == "pipeline" and not alone:
        given = "".join(f", {part}=None" for part in missing_parts(base))
        more = ", with what the base lacks as it is loaded today" if given else ""
        return f"DiffusionPipeline.from_pretrained({path}{given})  # {without}{more}"
    kind = base.architecture.transformer_of(next(iter(base.variants), None))
    return f"{kind or 'AutoModel'}.from_pretrained({path})  # {without}"
