"""Where a fault can be put into what is written: between the numbers, the names, the header, the files and the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from loraforge.adapter import fit
from loraforge.algebra.lora import LoraWeight
from loraforge.conversion import prepare

Pairs = list[tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Fault:
    """What goes wrong, at one seam. Each is given what is right and gives back what is written in its place."""

    numbers: Callable[[LoraWeight], LoraWeight] | None = None
    """Of the first module (in the order of their paths)."""
    every: Callable[[LoraWeight], LoraWeight] | None = None
    """Of all modules."""
    names: Callable[[str, Pairs], Pairs] | None = None
    """The keys and tensors of a module."""
    header: Callable[[dict[str, str]], dict[str, str]] | None = None
    """The metadata of the tensor file."""
    beside: Callable[[dict[str, str]], dict[str, str]] | None = None
    """The other files' texts."""
    disk: Callable[[Path], None] | None = None
    """What becomes of the file once it is written."""
    base: Callable[[str, dict[str, np.ndarray]], np.ndarray] | None = None
    """A base tensor that is copied along (SAT), by its key, out of all."""


class Faulty:
    """A writer as it should be, but for one fault."""

    def __init__(self, writer: Any, fault: Fault) -> None:
        self.right, self.fault = writer, fault

    def __getattr__(self, name: str) -> Any:
        return getattr(self.right, name)

    def encode(self, path: str, delta: Any) -> Iterator[tuple[str, np.ndarray]]:
        pairs = list(self.right.encode(path, delta))
        return iter(self.fault.names(path, pairs) if self.fault.names else pairs)

    def header(self, target: Any) -> dict[str, str]:
        said = self.right.header(target)
        return self.fault.header(said) if self.fault.header else said

    def beside(self, target: Any) -> dict[str, str]:
        texts = self.right.beside(target)
        return self.fault.beside(texts) if self.fault.beside else texts

    def write(self, path: Path, header: Any, tensors: Iterable[Any], metadata: Any) -> dict[str, int]:
        if self.fault.header:  # of our own entry, which the core puts in
            metadata = self.fault.header(dict(metadata))
        sums = self.right.write(path, header, tensors, metadata)
        if self.fault.disk:
            self.fault.disk(path)
        return sums


@contextmanager
def put_in(fault: Fault) -> Iterator[None]:
    """Conversions have the fault inside this block."""
    carried, firsts = fit.carry_out, []

    def carry_out(plan: fit.Plan) -> Any:
        delta, step = carried(plan)
        first = fault.numbers and plan.path == firsts[0]
        change = fault.numbers if first else fault.every
        return (tuple(change(w) for w in delta) if change else delta), step

    def planned(*args: Any, **options: Any) -> list[fit.Plan]:
        plans = right_plan(*args, **options)
        firsts[:] = [min(plan.path for plan in plans)]
        return plans

    from loraforge.format import sat_write

    right_plan, right_writer, right_copy = fit.plan, prepare._writer, sat_write.copy_chunks

    def copied(file: Any, key: str) -> Iterator[Any]:
        if fault.base is None:
            return right_copy(file, key)
        every = {name: file[name] for name, info in file.tensors.items() if info.dtype == "F32"}
        return iter([fault.base(key, every).tobytes()]) if key in every else right_copy(file, key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fit, "carry_out", carry_out)
        patch.setattr(fit, "plan", planned)
        patch.setattr(sat_write, "copy_chunks", copied)
        patch.setattr(prepare, "_writer", lambda *args: Faulty(right_writer(*args), fault))
        yield
