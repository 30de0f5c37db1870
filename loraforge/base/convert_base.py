"""Converts base weights to another layout as a stream, with the configuration that its framework needs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from loraforge.algebra.dtypes import CHOICES, FACTORS
from loraforge.base.as_stored import FILE, rebuilt_tensors, safetensors_model, sat_model
from loraforge.base.config import diffusers_config, other_size, own_config, variant_of
from loraforge.base.job import write_model
from loraforge.base.model import BaseModel
from loraforge.base.opening import open_base
from loraforge.base.origin import entry
from loraforge.base.route import Piece, route
from loraforge.base.stream import Engine, NewTensor, Part, measure
from loraforge.document import Document, rows, title
from loraforge.errors import ConversionError, adding, names_in
from loraforge.files.resume import check_place
from loraforge.format.sat_names import SAT_PREFIX, components
from loraforge.fusion.choose import choose
from loraforge.hub.folder import base_folder
from loraforge.names.layout import COMPONENTS, LAST, Index, Variant, parameter_key
from loraforge.text import command, listed, options, recorded, told


@dataclass(frozen=True, slots=True)
class BaseReport(Document):
    """What became of a base model. Its JSON follows schemas/convert-base.schema.json."""

    schema = "convert-base"

    source: dict[str, Any]
    """path, kind, layout."""
    output: dict[str, Any]
    """path, files, layout, dtype, written."""
    variant: str
    """The released model it is, or resembles."""
    tensors: int
    cast: int
    """Tensors stored in another type."""
    dropped: dict[str, str]
    """Key of the source -> why nothing is lost without it."""
    rebuilt: dict[str, str]
    """Key of the result that the source lacks -> where its numbers come from."""
    left_out: dict[str, int]
    """Part of the source other than the transformer -> its number of tensors."""
    config: str
    """Source of the configuration's entries that do not follow from shapes."""
    notes: tuple[str, ...]
    load: str

    def lines(self) -> list[str]:
        done = f"{self.tensors} tensors, "
        done += f"{self.cast} cast to {self.output['dtype']}" if self.cast else "no bit changed"
        if self.left_out:
            done += "; left out: " + ", ".join(f"{count} tensors of {what}" for what, count in self.left_out.items())
        table = [("dropped", f"{key}: {why}") for key, why in self.dropped.items()]
        table += [("rebuilt", f"{key}: {why}") for key, why in self.rebuilt.items()]
        table += [("config", self.config)] if self.config else []
        table += [("base", self.variant), ("load", self.load)]
        return [title(self.source, self.output), f"  {done}", *rows(table)]


def convert_base(
    source: str | Path,
    to: str,
    out: str | Path,
    *,
    dtype: Literal["keep", "fp32", "bf16", "fp16"] = "keep",
    sample: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> BaseReport:
    """Write the base weights in `source` in the layout `to`; the arguments are those of the command.

    `progress` is called with (bytes written, all bytes). Raises a LoraforgeError, with nothing left behind, if a key
    is unknown, a part is missing, the released model cannot be identified, or a number does not fit its new type.
    """
    base = open_base(base_folder(source, only=COMPONENTS))
    _check(base, to)
    variant = variant_of(base)
    routed, dropped = _routed(base, to, variant)
    tensors = [_tensor(base, key, pieces, CHOICES.get(dtype), to) for key, pieces in routed.items()]
    config, config_source = diffusers_config(base, variant, sample) if to == "diffusers" else (own_config(base), "")
    rebuilt = rebuilt_tensors(base, config, variant, tensors) if to == "sat" else {}
    every = [*tensors, *(tensor for tensor, _ in rebuilt.values())]
    target = Path(out)
    typed = command("loraforge", "convert-base", recorded(base.path), *options({"to": to, "dtype": dtype}))
    origin = entry(typed, base, (), to)
    texts = {"config.json": config} if to == "diffusers" else {}
    model = sat_model(every, origin) if to == "sat" else safetensors_model(every, origin, texts)
    check_place(target, model.names, [base.path], force=force or dry_run)
    engine = Engine(*choose("numpy", "cpu"))
    if dry_run:
        measure(tensors, engine)  # whether every number fits
    else:
        write_model(target, model, engine, progress, [part for file in base.files for part in file.maps], new=not force)
    others = components(key for key in base.held if key not in base.parameters.values() and key not in base.lora)
    return BaseReport(
        source={"path": told(base.path), "kind": base.kind, "layout": base.layout},
        output={"path": str(target), "files": list(model.shards), "layout": to, "dtype": dtype, "written": not dry_run},
        variant=variant.name,
        tensors=len(every),
        cast=sum(tensor.is_cast for tensor in tensors),
        dropped=dropped,
        rebuilt={key: why for key, (_, why) in rebuilt.items()},
        left_out=others,
        config=config_source,
        notes=(*base.notes, *_advice(base), *(other_size(base, config) if to == "diffusers" else ())),
        load=_load(base, target, to, variant),
    )


def _check(base: BaseModel, to: str) -> None:
    if to not in base.architecture.layouts or base.layout == to:
        known = ", ".join(base.architecture.layouts)
        why = f"is in layout {to} already" if base.layout == to else f"can be in layout {known}, not {to}"
        if len(base.architecture.layouts) == 1:
            why = f"is {base.architecture.title}, of which no layout but {known} is known"
        names = (name for name in base.architecture.layouts if name != base.layout)
        raise ConversionError(f"{base.path} {why}.", *(adding("--to", name) for name in names if _holds(base, name)))


def _holds(base: BaseModel, layout: str) -> bool:
    """Whether a layout has a place for every parameter."""
    with suppress(ConversionError):
        route(_shapes(base), base.architecture, base.layout, layout, base.variants)
        return True
    return False


def _shapes(base: BaseModel) -> dict[str, tuple[int, ...]]:
    return {name: base.held[key].tensors[key].shape for name, key in base.parameters.items()}


def _routed(base: BaseModel, to: str, variant: Variant) -> tuple[dict[str, tuple[Piece, ...]], dict[str, str]]:
    """The result of `route` for this base. Raises ConversionError if the base lacks a parameter."""
    if gaps := list(_gaps(base, variant)):
        look = names_in(base.files[0].path)
        raise ConversionError(f"{base.path} is not whole: there is no {listed(gaps, 3)}.", look)
    try:
        return route(_shapes(base), base.architecture, base.layout, to, [variant])
    except ConversionError as error:
        raise ConversionError(f"{base.path}: {error.message}.", *error.remedies) from error


def _gaps(base: BaseModel, variant: Variant) -> Iterator[str]:
    """The parameters of this variant that the base lacks, in the blocks that the base has."""
    arch, layout = base.architecture, base.architecture.layouts[base.layout]
    kinds, blocks = arch.block_kinds(), defaultdict[str, set[Index]](set)
    for _, segment, index, _ in base.placed:
        if LAST not in dict(index):
            blocks[kinds.get(segment, "")].add(index)
    for template, segments in layout.modules.items():
        if variant.absent.issuperset(segments):
            continue
        both = zip(arch.named(segments), arch.named(segments, base.layout), strict=True)
        parameters = [here for usual, here in both if f"{segments[0]}.{usual}" not in variant.absent]
        kind = kinds.get(segments[0], "")
        count = max((index[0][1] + 1 for index in blocks[kind] if index), default=0)
        lacking = max((variant.depth(s) for s in kinds if kinds[s] == kind), default=0) - variant.depth(segments[0])
        having = [index for index in sorted(blocks[kind]) if not index or index[0][1] < count - lacking]
        having = [((LAST, count - 1),)] if template.for_last else having
        for index in having if template.holes else [()]:
            names = (parameter_key(template.fill(index), name) for name in parameters)
            yield from (name for name in names if name not in base.parameters)


def _tensor(base: BaseModel, name: str, pieces: Sequence[Piece], dtype: str | None, to: str) -> NewTensor:
    names = base.parameters
    parts = tuple(Part(base.held[names[p.key]], names[p.key], p.start, p.stop) for p in pieces)
    infos = [part.file.tensors[part.key] for part in parts]
    types = {info.dtype for info in infos}
    if len(types) > 1 and dtype is None:
        text = f"{name} is made of {listed(sorted(names[p.key] for p in pieces))}, of types {listed(sorted(types))}."
        raise ConversionError(text, adding("--dtype", "bf16", why="store all of it alike"))
    kind = dtype if dtype and types <= set(FACTORS) else infos[0].dtype
    rows = sum(part.stop - part.start for part in parts)
    key = f"{SAT_PREFIX}{name}" if to == "sat" else name
    return NewTensor(key, kind, (rows, *infos[0].shape[1:]), parts)


def _advice(base: BaseModel) -> Iterator[str]:
    if base.lora:
        counts = Counter(key.rpartition(".matrix_")[0] for key in base.lora)
        yield (
            f"the LoRA in {base.files[0].path.name} ({len(counts)} modules) is left out: what is written is the base "
            "it was trained on. `loraforge convert` takes the LoRA out, `loraforge fuse` puts it into the weights"
        )


def _load(base: BaseModel, out: Path, to: str, variant: Variant) -> str:
    if to == "sat":
        return f"in SAT's inference.yaml `load: {out}`"
    if to != "diffusers":
        return f"load_file({str(out / FILE)!r})  # where the model in the names of {to} was loaded"
    whole = f"as {base.architecture.component}= of the pipeline of {variant.repo}"
    return f"{base.architecture.transformer_of(variant)}.from_pretrained({str(out)!r})  # {whole}"
