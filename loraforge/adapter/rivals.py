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
            stack, whole = own.modules[located[0]], homes.get(own.modules[located[0]][0])
            if whole and whole[1] == stack:  # of no matter which rows
                yield Move(path, (0, 1, 1), whole[0].fill(located[1]), (0, 1))
                continue
            for segment, (start, stop, total) in _starts(stack, arch.segments).items():
                if segment in homes:
                    template, there = homes[segment]
                    first, _, every = _starts(there, arch.segments)[segment]
                    yield Move(path, (start, stop, total), template.fill(located[1]), (first, every))


def _starts(stack: tuple[str, ...], ratios: Mapping[str, int]) -> dict[str, tuple[int, int, int]]:
    """Segment of a stack -> its first row, its last + 1, and all of the rows."""
    ends = [*accumulate(ratios[segment] for segment in stack)]
    return {s: (end - ratios[s], end, ends[-1]) for s, end in zip(stack, ends, strict=True)}


def decided(adapter: Adapter, layouts: Mapping[str, str]) -> Adapter:
    """The adapter as of one of the architectures that it may be of, if the result is the same as of the others.

    `layouts`: those of the target; if it is for one architecture alone, the adapter is taken to be of that.
    Raises FormatError that lists the architectures whose results differ.
    """
    every = {name: adapter.as_of(name) for name in (adapter.architecture, *adapter.rivals)}
    if len(layouts) == 1:
        every = {name: one for name, one in every.items() if name in layouts} or every
    results = {name: moves(one, layouts[name]) if name in layouts else None for name, one in every.items()}
    first = next(iter(every))
    if all(result == results[first] for result in results.values()):
        return every[first]
    where, known = adapter.source.path if adapter.source else "the adapter", architectures().index.titles
    titles = ", ".join(known[name] for name in results)
    text = f"{where}: its modules are those of {titles}, and nothing says which it is of."
    raise FormatError(text, *(adding("--architecture", name, why=f"if it is {known[name]}") for name in results))
