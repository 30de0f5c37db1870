"""Places: one template for a list of paths, and one segment for each of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tomli

from loraforge.errors import LayoutError
from loraforge.names.bijection import built, parse
from loraforge.names.layout import Template
from loraforge.names.places import expanded

TOY: dict[str, Any] = tomli.loads("""
architecture = "toy"
title = "Toy"
segments = ["conv", "q", "out", "norm"]
rows = { q = 2 }
parameters = { q = ["weight"] }
unadapted = { "norm" = ["norm"] }
kernels = { conv = 2 }
dimensions = { conv = ["{o}", "9 {i}"], q = ["2 {w}", "x"], out = ["e", "4"] }
variants.One = { repo = "me/one", blocks = { q = [2, 3] }, absent = ["conv", "q.weight"] }
[places.res]
a = ["in.1.0", "in.2.0", "mid.0"]
b = ["down.0", "down.1", "mid"]
i = ["c0", "c1", ""]
o = ["c0", "2 c1", "c1"]
[places.att]
a = ["in.2.1", "mid.1"]
b = ["down.1.att", "mid.att"]
w = ["c1", "c2"]
[layouts.a.modules]
"{res}.layers.2" = ["conv"]
"{res}.norm" = ["norm"]
"{att}.blocks.{i}.q" = ["q"]
"out.2" = ["out"]
[layouts.b.modules]
"{res}.conv" = ["conv"]
"{res}.norm" = ["norm"]
"{att}.blocks.{i}.to_q" = ["q"]
"out" = ["out"]
""")


def test_a_module_and_a_segment_for_each_path() -> None:
    arch = parse(TOY, "toy.toml")
    a, b = arch.layouts["a"], arch.layouts["b"]
    for mine, theirs, segment in (
        ("in.2.0.layers.2", "down.1.conv", "conv_1"), ("mid.0.norm", "mid.norm", "norm_2"),
        ("mid.1.blocks.7.q", "mid.att.blocks.7.to_q", "q_1"), ("out.2", "out", "out"),
    ):  # fmt: skip
        assert a.stacked(mine) == b.stacked(theirs) == (segment,)
        assert a.locate(mine.replace(".", "_"), "_") is not None
    assert a.locate("in.1.1.blocks.0.q") is None
    assert a.locate("mid.1.blocks.7.q") == (Template("mid.1.blocks.{i}.q"), (("i", 7),))
    assert [arch.segments[f"q_{n}"] for n in (0, 1)] == [2, 2]
    assert arch.named(("q_1",)) == ("weight",) and arch.named(("conv_1",)) == ("weight", "bias")
    assert arch.unadapted == {f"norm_{n}": "norm" for n in range(3)}
    assert arch.kernel_sizes(("conv_2",)) == {2}


def test_sizes_and_depths_of_each_place() -> None:
    arch = built(TOY)
    assert arch.dimensions["conv_1"] == ((2, "c1"), (9, "c1"))
    assert "conv_2" not in arch.dimensions, "nothing is known of its inputs"
    assert arch.dimensions["q_1"] == ((2, "c2"), (1, "x"))
    (variant,) = arch.variants
    assert [variant.depth(f"q_{n}") for n in (0, 1)] == [2, 3]
    assert variant.absent == {"conv_0", "conv_1", "conv_2", "q_0.weight", "q_1.weight"}


def test_tables_without_places_are_as_they_were() -> None:
    plain = {key: value for key, value in TOY.items() if key != "places"}
    assert expanded(plain) == plain
    assert expanded(expanded(TOY)) == expanded(TOY)


def _uneven(data: dict[str, Any]) -> None:
    data["places"]["res"]["b"].pop()


def _twice(data: dict[str, Any]) -> None:
    data["places"]["res"]["b"][0] = "mid"


def _none(data: dict[str, Any]) -> None:
    del data["places"]["att"]["b"]


def _two(data: dict[str, Any]) -> None:
    data["layouts"]["a"]["modules"]["{res}.{att}"] = ["more"]


def _mixed(data: dict[str, Any]) -> None:
    data["layouts"]["b"]["modules"]["{att}.conv"] = data["layouts"]["b"]["modules"].pop("{res}.conv")


def _unknown(data: dict[str, Any]) -> None:
    data["dimensions"]["q"] = ["2 {z}", "x"]


def _twofold(data: dict[str, Any]) -> None:
    data["dimensions"]["conv"] = ["3 {o}", "{i}"]


FAULTS = {
    "not of one length": _uneven, "a path twice": _twice, "no paths of layout b": _none, "more than one place": _two,
    "in places res": _mixed, "'2 .z.' is no size": _unknown, "'3 2 c1' is no size": _twofold,
}  # fmt: skip


@pytest.mark.parametrize("said", FAULTS)
def test_a_fault_of_places_is_named(said: str) -> None:
    data = copy.deepcopy(TOY)
    FAULTS[said](data)
    with pytest.raises(LayoutError, match=said.replace(" of layout b", ".*b")):
        parse(data, "toy.toml")
