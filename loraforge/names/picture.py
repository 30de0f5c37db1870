"""Pictures of an architecture: its layouts side by side as a table, and as a Mermaid diagram. No numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loraforge.names.layout import Architecture, Layout


def table(arch: Architecture) -> list[list[str]]:
    """A header, then a row per segment: its name, its module in every layout, the variants that have it.

    If the module stacks several segments, its position among them follows: `module [2/3]`.
    """
    layouts = list(arch.layouts.values())
    rows = [["segment", *(layout.name for layout in layouts), "variants"]]
    return rows + [[s, *(_module(layout, s) for layout in layouts), _owners(arch, s) or "all"] for s in arch.segments]


def dropped(arch: Architecture) -> list[list[str]]:
    """A header, then a row per key that only one layout has: the layout, the key, why nothing is lost without it."""
    rows = [["layout", "key", "dropped because"]]
    return rows + [[used.name, key.text, why] for used in arch.layouts.values() for key, why in used.dropped.items()]


def mermaid(arch: Architecture) -> str:
    """A Mermaid flowchart: the first layout's modules point at the segments, the segments at those of the others."""
    boxes, arrows, in_blocks = list[str](), list[str](), arch.in_blocks
    named = {segment: f"segment_{segment}" for segment in arch.segments}
    for n, layout in enumerate(arch.layouts.values()):
        nodes = {template: f"module_{n}_{m}" for m, template in enumerate(layout.modules)}
        boxes += _boxes(f"layout_{n}", layout.name, [(bool(t.holes), node, t.text) for t, node in nodes.items()])
        lost = [(f"dropped_{n}_{m}", f"{key.text}: {why}") for m, (key, why) in enumerate(layout.dropped.items())]
        boxes += _box(f"dropped_{n}", f"only in {layout.name}, dropped", lost) if lost else []
        for template, segment in ((template, s) for template, stack in layout.modules.items() for s in stack):
            start, end = (named[segment], nodes[template]) if n else (nodes[template], named[segment])
            nth = _position(layout.modules[template], segment)
            arrows.append(f"  {start} -->{f'|{nth}|' if nth else ''} {end}")
        if n == 0:
            labels = {s: f"{s} (only {owners})" if (owners := _owners(arch, s)) else s for s in arch.segments}
            boxes += _boxes("segments", "segments", [(s in in_blocks, named[s], labels[s]) for s in arch.segments])
    return "\n".join(["flowchart LR", *boxes, *arrows]) + "\n"


def _boxes(prefix: str, title: str, nodes: Sequence[tuple[bool, str, str]]) -> Iterator[str]:
    """A box of the nodes that are in every block, and one of the others. A node: whether it is, identifier, label."""
    for repeated, where in ((True, "every block"), (False, "once")):
        if inside := [(node, label) for in_block, node, label in nodes if in_block == repeated]:
            yield from _box(f"{prefix}_{where[:1]}", f"{title}, {where}", inside)


def _box(identifier: str, title: str, nodes: Sequence[tuple[str, str]]) -> list[str]:
    """A box with a title around nodes: the identifier and the label of each."""
    inside = [f"    {node}[{_quoted(label)}]" for node, label in nodes]
    return [f"  subgraph {identifier}[{_quoted(title)}]", *inside, "  end"]


def _position(stack: Sequence[str], segment: str) -> str:
    return f"{stack.index(segment) + 1}/{len(stack)}" if len(stack) > 1 else ""


def _module(layout: Layout, segment: str) -> str:
    homes = ((t.text, _position(stack, segment)) for t, stack in layout.modules.items() if segment in stack)
    return next((f"{text} [{nth}]" if nth else text for text, nth in homes), "-")


def _owners(arch: Architecture, segment: str) -> str:
    """The variants that have the segment; empty if all have it."""
    owners = [variant.name for variant in arch.variants if segment not in variant.absent]
    return "" if len(owners) == len(arch.variants) else ", ".join(owners) or "none"


def _quoted(text: str) -> str:
    return '"' + text.replace('"', "#quot;") + '"'
