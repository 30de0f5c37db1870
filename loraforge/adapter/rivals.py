"""Whether it matters which of several models an adapter is for, as far as its names and shapes leave that open."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import NamedTuple

from loraforge.adapter.adapter import Adapter
from loraforge.errors import FormatError, adding
from loraforge.names.catalog import architectures


class Move(NamedTuple):
    """Rows of a module, and where a layout has them. Rows are counted in shares of the stack."""

    module: str
    rows: tuple[int, int, int]
    """First row, last + 1, and all of the rows of the module."""
    to: str
    place: tuple[int, int]
    """First row there, and all of the rows there."""


def moves(adapter: Adapter, target: str) -> set[Move]:
    """How the rows of the adapter's modules move to a layout of its architecture."""
    return set(_moves(adapter, target))


def _moves(adapter: Adapter, target: str) -> Iterator[Move]:
    arch, own = adapter.model, adapter.model.layouts[adapter.layout]
    homes = {s: (template, stack) for template, stack in arch.layouts[target].modules.items() for s in stack}
    for path in adapter.modules:
        if located := own.locate(path):
            starts = _starts(own.modules[located[0]], arch.segments)
            for segment, (start, stop, total) in starts.items():
                if segment in homes:
                    template, stack = homes[segment]
                    first, _, every = _starts(stack, arch.segments)[segment]
                    yield Move(path, (start, stop, total), template.fill(located[1]), (first, every))


def _starts(stack: tuple[str, ...], ratios: Mapping[str, int]) -> dict[str, tuple[int, int, int]]:
    """Segment of a stack -> its first row, its last + 1, and all of the rows."""
    ends = [*accumulate(ratios[segment] for segment in stack)]
    return {s: (end - ratios[s], end, ends[-1]) for s, end in zip(stack, ends, strict=True)}


def decided(adapter: Adapter, layouts: Mapping[str, str]) -> Adapter:
    """The adapter as of an architecture that the target can store, of those it may be of.

    `layouts`: those of the target. Raises FormatError that lists the architectures whose results differ.
    """
    every = {name: adapter.as_of(name) for name in (adapter.architecture, *adapter.rivals) if name in layouts}
    results = {name: moves(one, layouts[name]) for name, one in every.items()}
    if not results:
        return adapter
    first = next(iter(every))
    if all(result == results[first] for result in results.values()):
        return every[first]
    where, known = adapter.source.path if adapter.source else "the adapter", architectures().index.titles
    titles = ", ".join(known[name] for name in results)
    text = f"{where}: its modules are those of {titles}, and nothing says which it is of."
    raise FormatError(text, *(adding("--architecture", name, why=f"if it is {known[name]}") for name in results))
