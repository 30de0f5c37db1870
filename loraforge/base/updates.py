"""The rows of base weights that an adapter updates, and the check that it fits them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, pairwise

from loraforge.adapter import differences, relayout
from loraforge.adapter.adapter import Adapter
from loraforge.adapter.fits import fits
from loraforge.algebra.lora import Delta, LoraWeight, rows
from loraforge.base.model import BaseModel
from loraforge.errors import ConversionError
from loraforge.fusion.backend import Term
from loraforge.names.layout import parameter_key
from loraforge.text import command, listed

Runs = Mapping[tuple[int, int], tuple[Term, ...]]
"""Rows (first, last + 1) -> the updates they get."""


def updates(base: BaseModel, adapters: Sequence[tuple[Adapter, float]]) -> dict[str, Runs]:
    """Key of a parameter of the base -> the updates of its rows, by adapters at strengths.

    Raises ConversionError that lists the modules that the base lacks or has in another shape, and names the released
    base that the adapter fits.
    """
    deltas: dict[str, list[tuple[Delta, float]]] = {}
    for given, strength in adapters:
        adapter = given.as_of(base.architecture.name)
        look = command("loraforge", "inspect", name_of(adapter))
        if adapter.architecture != base.architecture.name:
            text = f"{base.path} is a {base.architecture.title}, and {name_of(adapter)} adapts {adapter.architecture}."
            raise ConversionError(text, look)
        modules = relayout.relayout(adapter.modules, base.architecture, adapter.layout, base.layout)
        relaid = {(path, "weight"): one for path, one in modules.items()} | differences.relaid(adapter, base.layout)
        problems = list[str]()
        for (path, name), (delta, _) in relaid.items():
            have = base.shape(parameter_key(path, name))
            said = path if path in modules and name == "weight" else parameter_key(path, name)
            problems += misfit(said, (*have, 1) if have and len(have) == 1 else have, delta)
        if problems:
            raise ConversionError(_other_base(base, adapter, problems), look)
        for where, (delta, _) in relaid.items():
            deltas.setdefault(base.parameters[parameter_key(*where)], []).append((delta, strength))
    return {key: dict(_runs(weighted)) for key, weighted in deltas.items()}


def name_of(adapter: Adapter) -> str:
    """What an adapter is called in a message."""
    return str(adapter.source.path) if adapter.source else "the adapter"


def misfit(path: str, have: tuple[int, ...] | None, delta: Delta) -> Iterator[str]:
    """A text, if the weight of a module has another shape than `delta`; `have` is None if there is no such module."""
    want = delta[0].base_shape(rows(delta))
    if have is None:
        yield f"there is no {path}"
    elif have != want:
        yield f"{path} is {list(have)}, not {list(want)}"


def _other_base(base: BaseModel, adapter: Adapter, problems: list[str]) -> str:
    right = adapter.base_model or " or ".join(variant.name for variant in fits(adapter))
    this = " or ".join(variant.name for variant in base.variants)
    return f"{name_of(adapter)} does not fit {base.path}{f' ({this})' if this else ''}: {listed(problems, 3)}. " + (
        f"It is for {right}." if right else "No released model has its shapes: use the base of its training."
    )


def _runs(deltas: Sequence[tuple[Delta, float]]) -> Iterator[tuple[tuple[int, int], tuple[Term, ...]]]:
    """The rows, cut where a block of an adapter begins or ends; rows without an update are left out."""
    placed = list[tuple[int, LoraWeight, float]]()
    for delta, strength in deltas:
        starts = accumulate((w.rows for w in delta), initial=0)
        placed += [(start, w, strength) for start, w in zip(starts, delta, strict=False)]
    edges = sorted({edge for start, w, _ in placed for edge in (start, start + w.rows)})
    for first, last in pairwise(edges):
        terms = tuple(
            Term(w.take(first - start, last - start), strength)
            for start, w, strength in placed
            if start <= first < start + w.rows and _acts(w, strength)
        )
        if terms:
            yield (first, last), terms


def _acts(w: LoraWeight, strength: float) -> bool:
    """Whether it changes anything. DoRA does even at strength 0, because it sets the norm of the rows."""
    return w.magnitude is not None or bool(w.rank and w.scaling * strength)
