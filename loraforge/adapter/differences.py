"""Whole differences of parameters: numbers that are added to a bias, a norm or a table as they are.

Each is a Delta, as an update is: it is cut, joined, scaled, compared and fused like the rows of a module.

Sources: ComfyUI comfy/lora.py load_lora (`.diff` and `.diff_b` are added at the strength, whatever alpha says); PEFT
tuners/lora/layer.py (the bias of lora_B is added at the scale of its module; LoraConfig refuses it beside DoRA).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from loraforge.adapter.adapter import Adapter, Step, Storage
from loraforge.adapter.relayout import Place, relayout, to_segments
from loraforge.algebra.dtypes import numpy_type
from loraforge.algebra.half import rounded, widen
from loraforge.algebra.lora import Array, Delta, LoraWeight, rows
from loraforge.errors import ConversionError, adding, leaving_out
from loraforge.names.layout import WEIGHT_AND_BIAS, parameter_key
from loraforge.tables import package_table
from loraforge.text import listed

LORA_BIAS = ".lora_B.bias"
"""The bias of a LoRA's own B, which is scaled as its module is."""


def suffixes() -> Mapping[str, str]:
    """What ends the key of a difference -> the parameter that it is added to; the longest first."""
    table: dict[str, str] = package_table("format/spellings")["differences"]
    return dict(sorted(table.items(), key=lambda entry: -len(entry[0])))


def whole(numbers: Array, scaling: float = 1.0, kernel: tuple[int, ...] = ()) -> Delta:
    """The difference [rows, ...] of one parameter. Exact, as one of its factors is an identity."""
    flat = numbers.reshape(len(numbers), -1)
    identity = np.eye(min(flat.shape)).astype(flat.dtype)
    A, B = (flat, identity) if flat.shape[0] < flat.shape[1] else (identity, flat)
    return (LoraWeight(A, B, scaling, kernel=kernel),)


def has_lora_bias(adapter: Adapter) -> bool:
    """Whether the biases in its file are those of PEFT's lora_bias."""
    return any(".lora_B." in key and key.endswith(".bias") for key in adapter.keys)


class Whole(NamedTuple):
    """One difference as a format stores it."""

    path: str
    suffix: str
    key: str
    """The parameter, in the target's names."""
    sources: tuple[str, ...]
    """The same in the source's names."""
    delta: Delta
    scaling: float = 1.0
    """What its readers multiply the stored numbers with."""

    def outline(self, dtype: str | None) -> Array:
        """Zeros of the stored shape and type, without memory."""
        shape = self.delta[0].base_shape(rows(self.delta))
        kind = numpy_type(dtype) if dtype else np.result_type(*(w.B.dtype for w in self.delta))
        return np.broadcast_to(np.zeros((), kind), shape[:1] if shape[1:] == (1,) else shape)

    def stored(self, dtype: str | None) -> tuple[Array, Step]:
        """The numbers as they are stored, and how they were made; the ranks of the step are 0."""
        exact = np.concatenate([w.scaling / self.scaling * (widen(w.B) @ widen(w.A)) for w in self.delta])
        out = self.outline(dtype)
        with np.errstate(over="ignore", invalid="ignore"):  # an overflow gives an infinite error
            numbers = rounded(exact, out.dtype.type).astype(out.dtype)
            lost, size = (float(np.linalg.norm(x)) for x in (widen(numbers) - exact, exact))
        error = lost / size if size else 0.0
        step = Step(self.key, self.sources, "rounded" if error else "exact", (0, 0), error)
        return numbers.reshape(out.shape), step


def _by_parameter(adapter: Adapter) -> Mapping[str, Mapping[str, Delta]]:
    """The architecture's name of a parameter -> module path -> its difference."""
    groups, own = defaultdict[str, dict[str, Delta]](dict), adapter.model.layouts[adapter.layout]
    for key, delta in adapter.differences.items():
        path, _, name = key.rpartition(".")
        groups[_called(adapter, own.stacked(path), name, adapter.layout, "")][path] = delta
    return groups


def _called(adapter: Adapter, stack: tuple[str, ...], name: str, source: str, target: str) -> str:
    """A parameter's name in another layout. A LoRA can have a bias where its module has none."""
    named = adapter.model.named
    return dict(zip(named(stack, source), named(stack, target), strict=True)).get(name, name)


def segments(adapter: Adapter) -> dict[tuple[str, Place], tuple[str, Delta]]:
    """Everything that an adapter changes, by parameter, segment and block; each with the name of its module."""
    held = {("", place): part for place, part in to_segments(adapter.modules, adapter.model, adapter.layout).items()}
    own = adapter.model.layouts[adapter.layout]
    for name, group in _by_parameter(adapter).items():
        for place, (path, part) in to_segments(group, adapter.model, adapter.layout).items():
            here = _called(adapter, own.stacked(path), name, "", adapter.layout)
            held[name, place] = parameter_key(path, here), part
    return held


def relaid(adapter: Adapter, layout: str) -> dict[tuple[str, str], tuple[Delta, tuple[str, ...]]]:
    """Module path and parameter in another layout -> its difference, and the parameters that it comes from.

    Raises ConversionError if the layout has no place for one of them.
    """
    own, there, out = adapter.model.layouts[adapter.layout], adapter.model.layouts[layout], {}
    for name, group in _by_parameter(adapter).items():
        for path, (delta, sources) in relayout(group, adapter.model, adapter.layout, layout).items():
            here = (_called(adapter, own.stacked(source), name, "", adapter.layout) for source in sources)
            keys = tuple(map(parameter_key, sources, here))
            out[path, _called(adapter, there.stacked(path), name, "", layout)] = delta, keys
    return out


def fitted(adapter: Adapter, layout: str, storage: Storage, outlines: Mapping[str, Delta], to: str) -> list[Whole]:
    """The differences as the format `to` stores them, beside modules of these outlines.

    Raises ConversionError that lists those that it has no place for.
    """
    held, own, lost, out = storage.differences, adapter.model.layouts[layout], list[str](), list[Whole]()
    of_lora = held.get("bias") == LORA_BIAS
    for (path, name), (delta, sources) in relaid(adapter, layout).items():
        suffix = held.get(name) or ("" if name in WEIGHT_AND_BIAS else held.get("*", "").format(name=name))
        scaling = outlines[path][0].scaling if of_lora and path in outlines and not adapter.dora else not of_lora
        if not suffix or not scaling or (not of_lora and name not in adapter.model.named(own.stacked(path), layout)):
            lost += sources
        else:
            out.append(Whole(path, suffix, parameter_key(path, name), sources, delta, float(scaling)))
    if lost:
        what = "only biases of modules with a LoRA, none beside DoRA" if of_lora else "others" if held else "none"
        text = f"{to} has no place for the whole differences of {listed(lost)}: it holds {what}."
        ends = [end for end in suffixes() if any(key.endswith(end) for key in adapter.keys)]
        every = adding(*(word for end in ends for word in ("--drop", f"*{end}")), why="convert the rest without them")
        raise ConversionError(text, every if ends and not out else leaving_out(lost))
    if of_lora and out:  # PEFT has a bias in each LoRA of a model or in none, and warns of those that it misses
        for path, delta in ((path, outlines[path]) for path in outlines.keys() - {one.path for one in out}):
            zeros = whole(np.zeros(rows(delta), delta[0].B.dtype))
            out.append(Whole(path, LORA_BIAS, f"{path}.bias", (), zeros))
    return out


def counted(parameters: Iterable[str]) -> dict[str, int]:
    """Name of a parameter -> how many of these have it."""
    return dict(sorted(Counter(key.rpartition(".")[2] for key in parameters).items()))


def described(counts: Mapping[str, int]) -> str:
    """`3 whole differences (bias 2, weight 1)`; empty if there are none."""
    each = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"{sum(counts.values())} whole differences ({each})" if counts else ""
