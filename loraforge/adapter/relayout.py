"""Names and numbers together: an adapter moves between layouts through the segments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from loraforge.algebra.lora import Delta, fuse, rows, split, zero
from loraforge.errors import ConversionError, leaving_out
from loraforge.names.layout import Architecture, Index
from loraforge.text import listed

Place = tuple[str, Index]
"""A segment and its block numbers: where in the base model a run of rows sits, whatever its name."""


def to_segments(modules: Mapping[str, Delta], arch: Architecture, layout: str) -> dict[Place, tuple[str, Delta]]:
    """Cut every module into its segments; each comes with the module path it was in.

    Raises ConversionError that lists every path the layout does not know and every module that does not divide.
    """
    held: dict[Place, tuple[str, Delta]] = {}
    problems = []
    for path, delta in modules.items():
        found = arch.layouts[layout].locate(path)
        if found is None:
            problems.append(f"{path} is not a module of {arch.title} in layout {layout}")
            continue
        template, index = found
        segments = arch.layouts[layout].modules[template]
        sizes = arch.sizes(segments, rows(delta))
        if sizes is None:
            problems.append(f"{path}: {rows(delta)} rows cannot be shared by {', '.join(segments)}")
            continue
        for segment, part in zip(segments, split(delta, sizes), strict=True):
            held[segment, index] = path, _with_kernel(part, arch.layouts[layout].plain_kernel, path)
    if problems:
        raise ConversionError("; ".join(problems[:20]))
    return held


def relayout(
    modules: Mapping[str, Delta], arch: Architecture, source: str, target: str
) -> dict[str, tuple[Delta, tuple[str, ...]]]:
    """Target module path -> its update, and the source modules it came from. Moves rows, changes no number.

    Rows of a target module that the source does not adapt become a rank-0 block.
    Raises ConversionError that names every segment the target layout has no module for.
    """
    held = to_segments(modules, arch, source)
    indices: dict[str, list[Index]] = {}
    for segment, index in held:
        indices.setdefault(segment, []).append(index)
    out: dict[str, tuple[Delta, tuple[str, ...]]] = {}
    uneven: list[str] = []
    for template, segments in arch.layouts[target].modules.items():
        for index in sorted({index for segment in segments for index in indices.get(segment, ())}):
            parts = {segment: held.pop((segment, index), None) for segment in segments}
            known, (_, like) = next((segment, part) for segment, part in parts.items() if part is not None)
            unit = rows(like) // arch.segments[known]
            uneven += _uneven({segment: part for segment, part in parts.items() if part}, unit, like, arch)
            deltas = [
                part[1] if part else zero(unit * arch.segments[segment], like[0]) for segment, part in parts.items()
            ]
            path = template.fill(index)
            delta = _with_kernel(fuse(deltas), arch.layouts[target].kernel, path)
            out[path] = delta, tuple(dict.fromkeys(part[0] for part in parts.values() if part))
    if uneven:
        raise ConversionError(f"{listed(uneven)}: they are not of one base model.")
    if held:
        paths = sorted({path for path, _ in held.values()})
        raise ConversionError(f"layout {target} has no module for {listed(paths)}.", leaving_out(paths))
    return out


def _uneven(parts: Mapping[str, tuple[str, Delta]], unit: int, like: Delta, arch: Architecture) -> Iterator[str]:
    """The parts of one module that cannot be stacked: another height, or other inputs, than the first."""
    for segment, (path, delta) in parts.items():
        shape, want = (rows(delta), delta[0].A.shape[1]), (unit * arch.segments[segment], like[0].A.shape[1])
        if shape != want:
            yield f"{path} is for a weight of {shape[0]} x {shape[1]}, where its neighbours need {want[0]} x {want[1]}"


def _with_kernel(delta: Delta, shape: Callable[[str, tuple[int, ...]], tuple[int, ...]], path: str) -> Delta:
    """The same numbers, a convolution's kernel as a layout has it."""
    if not any(w.kernel for w in delta):
        return delta
    return tuple(replace(w, kernel=shape(path, w.kernel)) for w in delta)
