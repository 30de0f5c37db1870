"""What formats with one safetensors file share: reading its keys and its scale, and writing it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from loraforge.adapter.adapter import Adapter
from loraforge.adapter.differences import suffixes
from loraforge.adapter.differences import whole as difference
from loraforge.adapter.drop import COMPONENTS
from loraforge.algebra.dtypes import FLOATS, widened
from loraforge.algebra.lora import Array, Delta, is_zero, prune
from loraforge.errors import FormatError, adding, names_in
from loraforge.files.safetensors import write_safetensors
from loraforge.files.tensorfile import KEY, TensorFile, TensorInfo
from loraforge.format.keys import Keys, KeyStyle, alphas, altered, ranks
from loraforge.format.protocol import Header, Target
from loraforge.format.sorting import ending
from loraforge.hub.address import renamed
from loraforge.names.layout import WEIGHT_AND_BIAS, Architecture, parameter_key
from loraforge.scale.origin import CHANGED, kept, origin, seal, unsealed
from loraforge.scale.recorded import Record, looked, search
from loraforge.scale.resolve import resolve
from loraforge.scale.rule import Choice
from loraforge.scale.split_qkv import Stacks
from loraforge.scale.writers import agreed, candidates, differ, writers
from loraforge.text import listed


def read_lora_file(
    file: TensorFile,
    choice: Choice,
    style: KeyStyle,
    arch: Architecture,
    layout: str,
    *,
    writes: str,
    base_model: str | None = None,
    others: Mapping[str, str] = MappingProxyType({}),
) -> Adapter:
    """The adapter in a file of (A, B) keys, at the scale that the file or its neighbours record.

    `writes`: the name of the format in trainers.toml. `others`: prefix of the keys of another component -> its name.
    Raises FormatError if the keys are wrong, ScaleError if the scale is unknown or contradictory.
    """
    _own(file, others, arch.component)
    look = names_in(file.path)
    if strange := [f"{key} ({name})" for key, name in file.opaque.items()]:
        raise FormatError(f"{file.path} holds objects this tool does not build: {', '.join(strange[:5])}.", look)
    try:
        whole = _whole(file, style, arch, layout)
        factors = {key: info for key, info in file.tensors.items() if key not in whole} if whole else file.tensors
        pairs = style.find(factors, arch, layout, file.kinds)
        stored = alphas(pairs, file)
        _check(whole, file, pairs)
    except FormatError as error:
        raise type(error)(f"{file.path}: {error.message}", *(error.remedies or [look])) from error
    sizes = ranks(pairs)
    dora = any(keys.magnitude for each in pairs.values() for keys in each)
    known = origin(file.metadata, seal(file, tuple(file.whole), choice))

    def live() -> dict[str, int]:
        whole = {} if file.absent else style.decode(file, pairs, lambda *_: 1.0)
        return {path: prune(delta[0]).rank for path, delta in whole.items()}

    stacked = {path: pairs[path][0] for path in stored if len(pairs[path][0].like.stack) > 1}
    heights = {path: arch.sizes(keys.like.stack, keys.like.B.shape[0]) for path, keys in stacked.items()}
    stacks = Stacks({path: rows for path, rows in heights.items() if rows}, lambda path: file[stacked[path].B])
    record = search(Record(file, choice, sizes, stored, dora, known, peft=writes == "peft", live=live, stacks=stacks))
    if _as_diffsynth(file, pairs) and "diffsynth" not in arch.layouts and writers(arch.name, "diffsynth", {}):
        writes = "diffsynth"
    trainers = writers(arch.name, writes, file.metadata)
    unknown = looked(file, differ(trainers, writes, arch.title), record.notes)
    if changed := known.tensors == "others":
        unknown, record.near = CHANGED, [*kept(known), *record.near]
    doubtful = record.near or record.notes or choice.program or changed
    default = None if doubtful else agreed(trainers, writes, arch.title, file.metadata)
    rule, scale = resolve(record.rules, choice.stated, sizes, default=default, unknown=unknown, bare=choice.program)
    added = {
        key: difference(
            widened(file[key]),
            rule.of(one.path, sizes[one.path]) if one.of_lora else 1.0,
            file.tensors[key].shape[2:] if one.kernel else (),
        )
        for key, one in whole.items()
    }
    matrices = {one.path: added[key] for key, one in whole.items() if one.matrix}
    acting = {k: d for k, d in added.items() if not whole[k].matrix and (file.absent or not is_zero(d))}
    notes, modules = list(altered(pairs)), style.decode(file, pairs, rule.of)
    if idle := len(whole) - len(matrices) - len(acting):
        notes.append(f"{idle} whole differences are zero, and change nothing")
    if matrices:
        notes.append(f"{len(matrices)} whole differences of matrices are read as updates of full rank, which is exact")
    return Adapter(
        architecture=arch.name,
        layout=layout,
        modules={**modules, **matrices} if matrices else modules,
        differences={parameter_key(whole[key].path, whole[key].parameter): delta for key, delta in acting.items()},
        scale=known.settle(scale, rule, choice.stated, sizes, str(file.path), record.configs.get(rule.file)),
        ranks_recorded=rule.has_rank,
        keys=tuple(sorted(file.tensors)),
        metadata={key: text for key, text in file.metadata.items() if not changed or key != KEY},
        base_model=renamed(base) if (base := known.base_model or base_model) else None,
        notes=(*notes, *record.notes, *unsealed(known, choice)),
        candidates=(*record.near, *candidates(sizes, trainers)) if scale.provenance == "ambiguous" else (),
        configs=record.configs,
    )


class _Whole(NamedTuple):
    """Where a whole difference is added."""

    path: str
    parameter: str
    of_lora: bool
    """Whether it is scaled as its module is."""
    matrix: bool
    """Whether a LoRA can make it too, so that it is read as one of full rank."""
    kernel: bool
    """Whether dimensions after the first two are its own; else a linear module is stored as a 1x1 convolution."""


def _whole(file: TensorFile, style: KeyStyle, arch: Architecture, layout: str) -> dict[str, _Whole]:
    """The key of each whole difference -> where it is added. A key of which that is not known is left out."""
    found, own = dict[str, _Whole](), arch.layouts[layout]
    words = {end.rpartition(".")[2] for end in suffixes()}
    kinds = [keys.values() for keys in file.kinds.values() if next(iter(keys.values())).rpartition(".")[2] in words]
    some = {key for keys in kinds for key in keys}
    for key in (key for key in file.tensors if key in some) if some else ():
        match, end = next(((m, end) for end in suffixes() if (m := ending(end).fullmatch(key))), (None, ""))
        stem = match["path"] if match else ""
        inner, _, last = stem.rpartition(".")
        for path, parameter in ((stem, suffixes().get(end, "")), *([(inner, last)] if end == ".diff" else [])):
            hits = style.parse(f"{path}{style.spellings[0].A}") if match else ()
            located = own.locate(hits[0].path, hits[0].sep) if len(hits) == 1 else None
            stack, of_lora = own.modules[located[0]] if located else (), end.startswith(".lora_B")
            if located and (of_lora or parameter in arch.named(stack, layout)):
                matrix = parameter == "weight" and not arch.unadapted.keys() & set(stack)
                kernel = not (matrix and arch.variants) or bool(arch.kernel_sizes(stack))
                found[key] = _Whole(located[0].fill(located[1]), parameter, of_lora, matrix, kernel)
                break
    return found


def _check(whole: Mapping[str, _Whole], file: TensorFile, pairs: Mapping[str, list[Keys]]) -> None:
    """Raises FormatError, which lists the faults of whole differences."""
    faults, seen = dict[str, str](), dict[tuple[str, str], str]()
    for key, one in whole.items():
        info, beside = file.tensors[key], pairs.get(one.path)
        other = seen.setdefault((one.path, one.parameter), key)
        dimensions = (2, 4, 5) if one.matrix else (1,) if one.parameter in WEIGHT_AND_BIAS else (1, 2, 3)
        if other != key:
            faults[key] = f"{other} and {key} both change {one.parameter} of {one.path}"
        elif info.dtype not in FLOATS or info.repeats or len(info.shape) not in dimensions or 0 in info.shape:
            faults[key] = f"{key} is {info.dtype} {list(info.shape)}: no difference of that parameter"
        elif one.matrix and beside:
            faults[key] = f"{key} is beside a LoRA of {one.path}, which ComfyUI leaves out for it, and LightX2V adds"
        elif one.of_lora and (not beside or key != beside[0].B.removesuffix("weight") + "bias"):
            faults[key] = f"{key} is a lora_bias without the LoRA that it is of"
        elif one.of_lora and beside and beside[0].magnitude:
            faults[key] = f"{key} is a lora_bias beside DoRA, which PEFT refuses"
        elif beside and file.tensors[beside[0].B].shape[0] != info.shape[0]:
            faults[key] = f"{key} has {info.shape[0]} rows, and the LoRA {file.tensors[beside[0].B].shape[0]}"
    if faults:
        leave = adding(*(word for key in faults for word in ("--drop", key)), why="convert the rest without them")
        raise FormatError(listed(list(faults.values())), leave)


def _as_diffsynth(file: TensorFile, pairs: Mapping[str, list[Keys]]) -> bool:
    """Whether a file has PEFT's layers as they are in a model, and nothing else: what DiffSynth-Studio exports.

    Source: diffsynth/diffusion/training_module.py export_trainable_state_dict, diffusion/logger.py save_model.
    """
    exported = file.kind == "safetensors" and not file.within and len(file.tensors) == 2 * len(pairs)
    return exported and all(f"{path}.lora_A.default.weight" == keys[0].A for path, keys in pairs.items())


def _own(file: TensorFile, others: Mapping[str, str], component: str) -> None:
    """Raises FormatError for tensors of other components: they are left out only if the user says so."""
    known = {**COMPONENTS, **others}
    near = [keys for (at, _), keys in file.kinds.items() if any(at.startswith(k) or k.startswith(at) for k in known)]
    theirs = sorted(key for keys in near for key in keys.values() if key.startswith((*known,)))
    foreign = {key: next(filter(key.startswith, known)) for key in theirs}
    if foreign:
        first, start = next(iter(foreign.items()))
        raise FormatError(
            f"{file.path}: {len(foreign)} of its tensors adapt the {known[start]} ({first}, ...), and what is "
            f"converted is the {component}'s. Say that they may be left out.",
            adding(*(word for start in sorted({*foreign.values()}) for word in ("--drop", f"{start}*"))),
        )


class LoraFileWriter:
    """The parts of a Writer that follow from its key style, for a safetensors file without other files."""

    style: KeyStyle
    governs: tuple[str, ...] = ()

    def encode(self, path: str, delta: Delta) -> Iterator[tuple[str, Array]]:
        return self.style.encode(path, delta)

    def difference(self, path: str, suffix: str) -> str:
        """The key of a whole difference in a module."""
        return f"{self.style.prefixes[0]}{path.replace('.', self.style.sep)}{suffix}"

    def size(self, header: Header) -> int:
        return sum(TensorInfo(*entry, 0).nbytes for entry in header.values())

    def write(
        self, path: Path, header: Header, tensors: Iterable[tuple[str, Array]], metadata: Mapping[str, str]
    ) -> dict[str, int]:
        return write_safetensors(path, header, tensors, metadata)

    def header(self, _: Target) -> dict[str, str]:
        return {"format": "pt"}

    def beside(self, _: Target) -> dict[str, str]:
        return {}
