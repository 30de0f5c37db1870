"""Moves an adapter from one layout to another, by cutting its modules into segments and stacking these anew."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace

from loraforge.algebra.lora import Delta, fuse, rows, split, zero
from loraforge.errors import ConversionError, leaving_out
from loraforge.names.layout import Architecture, Index
from loraforge.text import listed

Place = tuple[str, Index]
"""A segment and its block numbers: the position of some rows in the base model, in any layout."""


def to_segments(modules: Mapping[str, Delta], arch: Architecture, layout: str) -> dict[Place, tuple[str, Delta]]:
    """Cut every module into its segments; returns each with the path of its module.

    Raises ConversionError that lists the paths the layout does not know and the modules that cannot be divided.
    """
    own, held, problems = arch.layouts[layout], dict[Place, tuple[str, Delta]](), list[str]()
    for path, delta in modules.items():
        located, segments = own.locate(path), own.stacked(path)
        if located is None:
            problems.append(f"{path} is not a module of {arch.title} in layout {layout}")
        elif (sizes := arch.sizes(segments, rows(delta))) is None:
            problems.append(f"{path}: {rows(delta)} rows cannot be divided among {', '.join(segments)}")
        else:
            parts = zip(segments, split(delta, sizes), strict=True)
            held |= {(s, located[1]): (path, _with_kernel(part, own.plain_kernel, path)) for s, part in parts}
    if problems:
        raise ConversionError("; ".join(problems[:20]))
    return held


def relayout(
    modules: Mapping[str, Delta], arch: Architecture, source: str, target: str
) -> dict[str, tuple[Delta, tuple[str, ...]]]:
    """Target module path -> its update, and the paths of its source modules. Moves rows and changes no number.

    Rows of a target module that the source does not adapt become a block of rank 0.
    Raises ConversionError if modules come from different base models, or if the target layout has no module for some.
    """
    held = to_segments(modules, arch, source)
    indices, out, uneven = defaultdict[str, list[Index]](list), dict[str, tuple[Delta, tuple[str, ...]]](), list[str]()
    for segment, index in held:
        indices[segment].append(index)
    for template, segments in arch.layouts[target].modules.items():
        for index in sorted({index for segment in segments for index in indices[segment]}):
            parts = {segment: held.pop((segment, index), None) for segment in segments}
            known, (_, like) = next((segment, part) for segment, part in parts.items() if part is not None)
            unit, width = rows(like) // arch.segments[known], like[0].A.shape[1]
            deltas = []
            for segment, part in parts.items():
                needed = unit * arch.segments[segment]
                source_path, delta = part or ("", zero(needed, like[0]))
                shape = rows(delta), delta[0].A.shape[1]
                if shape != (needed, width):
                    sizes = f"{shape[0]} x {shape[1]}, where its neighbours need {needed} x {width}"
                    uneven.append(f"{source_path} is for a weight of {sizes}")
                deltas.append(delta)
            path = template.fill(index)
            delta = _with_kernel(fuse(deltas), arch.layouts[target].kernel, path)
            out[path] = delta, tuple(dict.fromkeys(part[0] for part in parts.values() if part))
    if uneven:
        raise ConversionError(f"{listed(uneven)}: they are not of one base model.")
    if held:
        paths = sorted({path for path, _ in held.values()})
        raise ConversionError(f"layout {target} has no module for {listed(paths)}.", leaving_out(paths))
    return out


def _with_kernel(delta: Delta, shape: Callable[[str, tuple[int, ...]], tuple[int, ...]], path: str) -> Delta:
    """The same update; if it is a convolution's, with the kernel that `shape` gives for the layout."""
    if not any(w.kernel for w in delta):
        return delta
    return tuple(replace(w, kernel=shape(path, w.kernel)) for w in delta)
