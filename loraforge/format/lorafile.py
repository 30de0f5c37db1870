"""What formats with one safetensors file share: reading its keys and its scale, and writing it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from loraforge.adapter.adapter import Adapter
from loraforge.adapter.drop import COMPONENTS
from loraforge.algebra.lora import Array, Delta, prune
from loraforge.errors import FormatError, adding
from loraforge.files.safetensors import write_safetensors
from loraforge.files.tensorfile import KEY, TensorFile, TensorInfo
from loraforge.format.keys import KeyStyle, alphas, altered, ranks
from loraforge.format.protocol import Header, Target
from loraforge.hub.address import renamed
from loraforge.names.layout import Architecture
from loraforge.scale.origin import CHANGED, kept, origin, seal, unsealed
from loraforge.scale.recorded import Record, looked, search
from loraforge.scale.resolve import resolve
from loraforge.scale.rule import Choice
from loraforge.scale.split_qkv import Stacks
from loraforge.scale.writers import agreed, candidates, differ, writers
from loraforge.text import command


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
    _own(file, others)
    look = command("loraforge", "inspect", file.path)
    if strange := [f"{key} ({name})" for key, name in file.opaque.items()]:
        raise FormatError(f"{file.path} holds objects this tool does not build: {', '.join(strange[:5])}.", look)
    try:
        pairs = style.find(file.tensors, arch, layout)
        stored = alphas(pairs, file)
    except FormatError as error:
        raise type(error)(f"{file.path}: {error.message}", *(error.remedies or [look])) from error
    sizes = ranks(pairs, file.tensors)
    dora = any(keys.magnitude for each in pairs.values() for keys in each)
    known = origin(file.metadata, seal(file, tuple(file.whole), choice))

    def live() -> dict[str, int]:
        whole = {} if file.absent else style.decode(file, pairs, lambda *_: 1.0)
        return {path: prune(delta[0]).rank for path, delta in whole.items()}

    ups = {path: pairs[path][0].B for path in stored}
    heights = {
        path: arch.sizes(arch.layouts[layout].stacked(path), file.tensors[up].shape[0]) for path, up in ups.items()
    }
    stacks = Stacks({path: rows for path, rows in heights.items() if rows}, lambda path: file[ups[path]])
    record = search(Record(file, choice, sizes, stored, dora, known, peft=writes == "peft", live=live, stacks=stacks))
    trainers = writers(arch.name, writes, file.metadata)
    unknown = looked(file, differ(trainers, writes, arch.title), record.notes)
    if changed := known.tensors == "others":
        unknown, record.near = CHANGED, [*kept(known), *record.near]
    doubtful = record.near or record.notes or choice.program or changed
    default = None if doubtful else agreed(trainers, writes, arch.title, file.metadata)
    rule, scale = resolve(record.rules, choice.stated, sizes, default=default, unknown=unknown, bare=choice.program)
    return Adapter(
        architecture=arch.name,
        layout=layout,
        modules=style.decode(file, pairs, rule.of),
        scale=known.settle(scale, rule, choice.stated, sizes, str(file.path), record.configs.get(rule.file)),
        ranks_recorded=rule.has_rank,
        keys=tuple(sorted(file.tensors)),
        metadata={key: text for key, text in file.metadata.items() if not changed or key != KEY},
        base_model=renamed(base) if (base := known.base_model or base_model) else None,
        notes=(*altered(pairs, file.tensors), *record.notes, *unsealed(known, choice)),
        candidates=(*record.near, *candidates(sizes, trainers)) if scale.provenance == "ambiguous" else (),
        configs=record.configs,
    )


def _own(file: TensorFile, others: Mapping[str, str]) -> None:
    """Raises FormatError for tensors of other components: they are left out only if the user says so."""
    known = {**COMPONENTS, **others}
    foreign = {key: start for key in sorted(file.tensors) if (start := next(filter(key.startswith, known), ""))}
    if foreign:
        first, start = next(iter(foreign.items()))
        raise FormatError(
            f"{file.path}: {len(foreign)} of its tensors adapt the {known[start]} ({first}, ...), and what is "
            "converted is the transformer's. Say that they may be left out.",
            adding(*(word for start in sorted({*foreign.values()}) for word in ("--drop", f"{start}*"))),
        )


class LoraFileWriter:
    """The parts of a Writer that follow from its key style, for a safetensors file without other files."""

    style: KeyStyle
    governs: tuple[str, ...] = ()

    def encode(self, path: str, delta: Delta) -> Iterator[tuple[str, Array]]:
        return self.style.encode(path, delta)

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
