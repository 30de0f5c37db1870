"""The data that the stages hand on: an adapter, where it was read, and what was done to each module."""

from __future__ import annotations

from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from loraforge.algebra.lora import Delta
from loraforge.errors import Try
from loraforge.files.tensorfile import TensorFile
from loraforge.names.catalog import architecture
from loraforge.names.layout import Architecture
from loraforge.scale.rule import Scale

Kind = Literal["exact", "rounded", "rank"]


@dataclass(frozen=True, slots=True)
class Storage:
    """What a format can hold. The core makes an adapter fit before the format writes it."""

    parts: bool = False
    """Whether a stacked module can have several (A, B), as SAT stores q, k and v."""
    one_rank: bool = False
    """Whether all modules of a file must have the same rank."""
    magnitude: bool = True
    """Whether it can hold DoRA's row norms."""
    segments: frozenset[str] | None = None
    """The only segments that its LoRA can adapt; None if it can adapt any."""
    differences: Mapping[str, str] = field(default_factory=dict)
    """Parameter -> what ends the key of its whole difference; `*`: any but weight and bias, whose `{name}` it is."""

    def text(self) -> str:
        """The same as one line of text."""
        ranks = "one rank" if self.one_rank else "any ranks"
        what = ", ".join(sorted(self.segments)) if self.segments else "any module"
        whole = f"; {', '.join(self.differences.values())}" if self.differences else ""
        return f"{what}; {ranks}; {'DoRA' if self.magnitude else 'no DoRA'}{whole}"


class Views(Mapping[str, Delta]):
    """The updates of a file, by module path, which are read when the first is asked for."""

    def __init__(
        self, paths: Iterable[str], groups: Sequence[Sequence[str]], read: Callable[[Iterable[str]], dict[str, Delta]]
    ) -> None:
        """`groups`: the same paths, of modules that differ in a number alone and have one scaling, type and shape."""
        self._paths, self._groups, self._read = dict.fromkeys(paths), groups, read

    @cached_property
    def _every(self) -> dict[str, Delta]:
        return self._read(self._paths)

    @cached_property
    def alike(self) -> list[tuple[Delta, Sequence[str]]]:
        """The first update of each group, and the paths of all."""
        return [*zip(self._read([group[0] for group in self._groups]).values(), self._groups, strict=True)]

    def __getitem__(self, path: str) -> Delta:
        return self._every[path]

    def __contains__(self, path: object) -> bool:
        return path in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def items(self) -> ItemsView[str, Delta]:
        return self._every.items()

    def values(self) -> ValuesView[Delta]:
        return self._every.values()


def alike(modules: Mapping[str, Delta]) -> Iterable[tuple[Delta, Sequence[str]]]:
    """An update, and the paths of the modules whose updates have its shapes, types and scaling, as far as is known."""
    return modules.alike if isinstance(modules, Views) else ((delta, (path,)) for path, delta in modules.items())


@dataclass(frozen=True, slots=True)
class Source:
    """Where an adapter was read from."""

    path: Path
    """The path that the user gave."""
    file: TensorFile
    format: str
    run: str
    """The default name of a result: `lora-disney-1000`."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter as it was read. `modules` has the update of each module path of `layout`."""

    architecture: str
    layout: str
    modules: Mapping[str, Delta]
    scale: Scale
    differences: Mapping[str, Delta] = field(default_factory=dict)
    """Parameter of `layout` (`blocks.0.norm3.bias`) -> what is added to it as a whole; not to matrices, whose whole
    differences are updates of full rank in `modules`."""
    keys: tuple[str, ...] = ()
    """The keys of the adapter's tensors in the file, sorted."""
    evidence: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Segment -> shape of a base weight in the same file."""
    others: Mapping[str, int] = field(default_factory=dict)
    """Component (base transformer, T5, VAE) -> number of its tensors in the same file."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    base_model: str | None = None
    notes: tuple[str, ...] = ()
    candidates: tuple[Try, ...] = ()
    """One addition to the command for each scale it may have been trained at; empty if the scale is known."""
    source: Source | None = None
    """None for an adapter made in Python."""
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Place -> a LoraConfig that was stored with the adapter there."""
    shown: str = ""
    """What proves its architecture; empty if only the module names fit, which other models have too."""
    ranks_recorded: bool = False
    """Whether the rank was recorded along with the scale, and agreed with the tensors when the adapter was read."""
    last: int | None = None
    """The number of the last block of its model, where that block is built differently and the adapter shows it."""

    rivals: Mapping[str, str] = field(default_factory=dict)
    """Architecture -> layout: the other models that it may be for, as nothing tells which."""

    def as_of(self, name: str) -> Adapter:
        """The adapter, decided to be of this architecture if it may be of it; otherwise unchanged."""
        if name not in self.rivals:
            return self
        layout = architecture(name).layouts[self.rivals[name]]
        modules = {layout.called(path): delta for path, delta in self.modules.items()}
        whole = {
            ".".join((layout.called(key.rpartition(".")[0]), key.rpartition(".")[2])): d
            for key, d in self.differences.items()
        }
        return replace(self, architecture=name, layout=layout.name, modules=modules, differences=whole, rivals={})

    @property
    def updates(self) -> dict[str, Delta]:
        """Of each module and of each parameter that is changed as a whole."""
        return {**dict(self.modules.items()), **self.differences}

    @property
    def model(self) -> Architecture:
        """Its architecture, with the last block that it shows."""
        return architecture(self.architecture).ending(self.last)

    @property
    def scalings(self) -> tuple[float, ...]:
        """The distinct scalings of its modules, sorted."""
        return tuple(sorted({w.scaling for delta, _ in alike(self.modules) for w in delta}))

    @property
    def dora(self) -> bool:
        """Whether it has magnitudes (DoRA)."""
        return any(w.magnitude is not None for delta, _ in alike(self.modules) for w in delta)


@dataclass(frozen=True, slots=True)
class Step:
    """How one target module was made, from which source modules."""

    module: str
    sources: tuple[str, ...]
    kind: Kind
    rank: tuple[int, int]
    error: float = 0.0
    """Relative error of the update in the Frobenius norm; 0.0 unless `kind` is "rounded"."""
