"""What travels between the stages: an adapter, where its scale comes from, and what was done to each module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from loraforge.errors import Try
from loraforge.files.tensorfile import TensorFile

if TYPE_CHECKING:
    from loraforge.algebra.lora import Delta
    from loraforge.scale.rule import Scale

Kind = Literal["exact", "rounded", "rank"]


@dataclass(frozen=True, slots=True)
class Storage:
    """What a format can hold. The core makes an adapter fit before the format writes it."""

    parts: bool = False
    """Several (A, B) per stacked module, as SAT keeps q, k and v."""
    one_rank: bool = False
    """All modules of a file have the same rank."""
    magnitude: bool = True
    """DoRA's row lengths."""
    segments: frozenset[str] | None = None
    """The only segments its LoRA adapts; None where any can be."""

    def text(self) -> str:
        """The same in a few words."""
        ranks = "one rank" if self.one_rank else "any ranks"
        what = ", ".join(sorted(self.segments)) if self.segments else "any module"
        return f"{what}; {ranks}; {'DoRA' if self.magnitude else 'no DoRA'}"


@dataclass(frozen=True, slots=True)
class Source:
    """Where an adapter was read from."""

    path: Path
    """What the user gave."""
    file: TensorFile
    format: str
    run: str
    """What to call a result by default: `lora-disney-1000`."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter as read: module path (in `layout`) -> update."""

    architecture: str
    layout: str
    modules: Mapping[str, Delta]
    scale: Scale
    keys: tuple[str, ...] = ()
    """The keys of the file's adapter tensors, sorted."""
    evidence: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Segment -> shape of a base weight that lay in the same file."""
    others: Mapping[str, int] = field(default_factory=dict)
    """Component -> tensors of the file that are not the adapter's (base transformer, T5, VAE)."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    base_model: str | None = None
    notes: tuple[str, ...] = ()
    candidates: tuple[Try, ...] = ()
    """One addition to the command for each scale it may have been trained at; empty where that is known."""
    source: Source | None = None
    """None for an adapter made in Python."""
    configs: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The LoraConfigs that came with it, by where they stand."""
    shown: str = ""
    """What shows that it is of its architecture; empty where only the names fit, which other models share."""
    ranks_recorded: bool = False
    """Whether what records the scale recorded the rank too, which its reader has compared with the tensors'."""


@dataclass(frozen=True, slots=True)
class Step:
    """What one target module went through."""

    module: str
    sources: tuple[str, ...]
    kind: Kind
    rank: tuple[int, int]
    error: float = 0.0
    """Relative error of the update in the Frobenius norm; 0.0 unless rounded."""
