"""What the formats of one safetensors file share: reading its keys and its scale, and writing it."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from loraforge.adapter import Adapter
from loraforge.errors import FormatError, command
from loraforge.formats import Choice, Header, Target
from loraforge.hubaddress import renamed
from loraforge.keys import KeyStyle, alphas, ranks
from loraforge.layout import Architecture
from loraforge.provenance import origin
from loraforge.recorded import from_alphas, from_configs, from_training
from loraforge.scale import Rule, resolve
from loraforge.tensorfile import TensorInfo, write_safetensors

if TYPE_CHECKING:
    from loraforge.lora import Array, Delta
    from loraforge.tensorfile import TensorFile


def read_lora_file(
    file: TensorFile,
    choice: Choice,
    style: KeyStyle,
    arch: Architecture,
    layout: str,
    configs: Mapping[str, Mapping[str, Any]],
    *,
    writes: str,
    base_model: str | None = None,
    others: Mapping[str, str] = MappingProxyType({}),
) -> Adapter:
    """The adapter in a file of (A, B) keys. `configs`: the LoraConfigs that describe it, by where they stand.

    `writes` is the format's name in trainers.toml, `others` what begins the keys of adapters of other components.
    Raises FormatError and ScaleError.
    """
    tensors, notes = _without(file, choice.drop, others, arch.title)
    look = command("loraforge", "inspect", file.path)
    strange = [f"{key} ({name})" for key, name in file.opaque.items()]
    if strange:
        raise FormatError(f"{file.path} holds objects this tool does not build: {', '.join(strange[:5])}.", look)
    try:
        found = style.find(tensors, arch, layout)
    except FormatError as error:
        raise FormatError(f"{file.path}: {error.message}", look) from error
    sizes = ranks(found, file.tensors)
    try:
        said = alphas(found, file)
    except FormatError as error:
        raise FormatError(f"{file.path}: {error.message}", look) from error
    dora = any(keys.magnitude for pairs in found.values() for keys in pairs)
    rules = from_configs(file, configs, sizes, dora=dora, believed=not choice.stated.override)
    if said and not choice.stated.override:
        rules.append(from_alphas(file, said, sizes))
    known = origin(file.metadata)
    if not rules and known.folded and not choice.stated.override:
        rules.append(Rule("folded in by loraforge", scaling=1.0))
    if not choice.stated.override:
        more, told = from_training(file, choice, sizes, search=not rules)
        rules, notes = rules + more, notes + told
    rule, scale = resolve(rules, choice.stated, sizes, default=None, writes=writes)
    return Adapter(
        architecture=arch.name,
        layout=layout,
        modules=style.decode(file, found, rule.of),
        scale=known.settle(scale, rule, choice.stated, sizes, str(file.path)),
        keys=tuple(sorted(tensors)),
        metadata=file.metadata,
        base_model=renamed(base) if (base := known.base_model or base_model) else None,
        notes=notes,
        written_as=writes,
        configs=configs,
    )


def _without(
    file: TensorFile, patterns: Sequence[str], others: Mapping[str, str], title: str
) -> tuple[Mapping[str, TensorInfo], tuple[str, ...]]:
    """The tensors less those of other components that a pattern of `--drop` names, and a note that says so.

    Raises FormatError when there are any that no pattern names: nothing of an adapter is left out unasked.
    """
    foreign = {key: what for key in file.tensors for start, what in others.items() if key.startswith(start)}
    named = {key for pattern in patterns for key in fnmatch.filter(foreign, pattern)}
    if left := sorted(foreign.keys() - named):
        starts = sorted({start for key in left for start in others if key.startswith(start)})
        raise FormatError(
            f"{file.path}: {len(left)} of its tensors adapt the {foreign[left[0]]} ({left[0]}, ...), which this format "
            f"can carry and {title} pipelines do not load. Say that they may be left out.",
            " ".join(f"--drop '{start}*'" for start in starts),
        )
    if not named:
        return file.tensors, ()
    count = Counter(foreign[key] for key in named)
    note = ", ".join(f"{n} tensors of the {what}" for what, n in count.items())
    return {key: info for key, info in file.tensors.items() if key not in named}, (f"left out, as --drop says: {note}",)


class LoraFileWriter:
    """The parts of a Writer that follow from its key style."""

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

    def beside(self, target: Target) -> dict[str, str]:
        """No other files."""
        del target
        return {}
