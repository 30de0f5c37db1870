"""Whether it matters which of several models an adapter is for, as far as its names and shapes leave that open."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

from loraforge.adapter.adapter import Adapter
from loraforge.errors import FormatError, adding
from loraforge.names.catalog import architectures

Rows = tuple[int, int, int]
"""First row, last + 1, and all of the rows of a module, in shares of the stack."""
_WHOLE = (0, 1, 1)


def moves(adapter: Adapter, target: str) -> set[tuple[str, Rows, str, Rows]]:
    """How rows move to a layout of the architecture: a module of the adapter and rows of it, and both there."""
    arch, own = adapter.model, adapter.model.layouts[adapter.layout]
    stacks = [(t, stack, _rows(stack, arch.segments)) for t, stack in arch.layouts[target].modules.items()]
    homes = {segment: one for one in stacks for segment in one[1]}
    every = set[tuple[str, Rows, str, Rows]]()
    for path, (template, index) in ((path, one) for path in adapter.modules if (one := own.locate(path))):
        stack = own.modules[template]
        for segment, rows in _rows(stack, arch.segments).items():
            if segment in homes:
                there, whole, places = homes[segment]
                here, moved = (_WHOLE, _WHOLE) if whole == stack else (rows, places[segment])
                every.add((path, here, there.fill(index), moved))
    return every


def _rows(stack: tuple[str, ...], ratios: Mapping[str, int]) -> dict[str, Rows]:
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
