"""What the formats of one safetensors file share: reading its keys and its scale, and writing it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraforge.adapter import Adapter
from loraforge.errors import FormatError, command
from loraforge.formats import Choice, Header, Target
from loraforge.keys import KeyStyle, alphas, ranks
from loraforge.layout import Architecture
from loraforge.provenance import origin
from loraforge.recorded import from_alphas, from_configs, from_training
from loraforge.scale import resolve
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
) -> Adapter:
    """The adapter in a file of (A, B) keys. `configs`: the LoraConfigs that describe it, by where they stand.

    `writes` is the format's name in trainers.toml. Raises FormatError and ScaleError.
    """
    look = command("loraforge", "inspect", file.path)
    strange = [f"{key} ({name})" for key, name in file.opaque.items()]
    if strange:
        raise FormatError(f"{file.path} holds objects this tool does not build: {', '.join(strange[:5])}.", look)
    try:
        found = style.find(file.tensors, arch, layout)
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
    notes: tuple[str, ...] = ()
    if not choice.stated.override:
        more, notes = from_training(file, choice, sizes, search=not rules)
        rules += more
    rule, scale = resolve(rules, choice.stated, sizes, default=None, writes=writes)
    known = origin(file.metadata)
    if scale.provenance == "recorded" and known.scale is not None:
        # a scale we recorded ourselves is no better known than it was in the source
        scale = known.scale
    return Adapter(
        architecture=arch.name,
        layout=layout,
        modules=style.decode(file, found, rule.of),
        scale=scale,
        keys=tuple(sorted(file.tensors)),
        metadata=file.metadata,
        base_model=known.base_model or base_model,
        notes=notes,
    )


class LoraFileWriter:
    """The parts of a Writer that follow from its key style."""

    style: KeyStyle

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
