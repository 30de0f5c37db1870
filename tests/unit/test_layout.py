"""The load-time checks of an architecture, and templates."""

from __future__ import annotations

import copy
from importlib.resources import files

import pytest
import tomli

from loraforge.catalog import architecture
from loraforge.errors import ConversionError, LayoutError
from loraforge.graph import relayout
from loraforge.layout import Template, parse

TABLE = tomli.loads((files("loraforge") / "architectures/cogvideox.toml").read_text("utf-8"))


def changed(**layout) -> dict:
    data = copy.deepcopy(TABLE)
    for name, modules in layout.items():
        data["layouts"][name]["modules"] |= modules
    return data


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (changed(sat={"transformer.layers.{i}.extra": ["q"]}), "segment 'q' is in"),
        (changed(sat={"transformer.layers.{i}.attention.dense": ["o", "nonsense"]}), "unknown segment 'nonsense'"),
        (changed(sat={"transformer.layers.{i}.attention.dense": []}), "segment 'o' is in no module"),
        (changed(sat={"transformer.layers.{j}.attention.dense": []}), "can match the same module"),
        (
            changed(diffusers={"transformer_blocks.{i}.attn1.to_q": [], "blocks.{i}.{j}.q": ["q"]}),
            "indexed differently",
        ),
        (TABLE | {"rows": {"mlp": 4}}, "rows: unknown segment 'mlp'"),
        (TABLE | {"variants": {"X": {"repo": "a/b", "blocks": 1, "absent": ["qq"]}}}, "unknown segment 'qq'"),
        (TABLE | {"colour": "red"}, "unknown key 'colour'"),
        ({"architecture": "x"}, "'segments' is missing"),
    ],
)
def test_problems(data: dict, said: str) -> None:
    with pytest.raises(LayoutError, match=said):
        parse(data, "cogvideox.toml")


def test_all_problems_at_once() -> None:
    data = changed(sat={"a.{i}": ["q"], "transformer.layers.{i}.attention.dense": [], "b": ["nonsense"]}) | {
        "colour": "red"
    }
    with pytest.raises(LayoutError) as caught:
        parse(data, "cogvideox.toml")
    for said in ("'q' is in", "'o' is in no module", "'nonsense'", "'colour'"):
        assert said in caught.value.message


def test_absent_must_be_true() -> None:
    data = copy.deepcopy(TABLE)
    data["layouts"]["sat"]["absent"] = ["q"]
    with pytest.raises(LayoutError, match="both placed and absent"):
        parse(data, "cogvideox.toml")


@pytest.mark.parametrize(
    ("path", "sep", "index"),
    [
        ("transformer_blocks.3.attn1.to_q", ".", (("i", 3),)),
        ("transformer_blocks.41.attn1.to_q", ".", (("i", 41),)),
        ("transformer_blocks_41_attn1_to_q", "_", (("i", 41),)),
        ("transformer_blocks.03.attn1.to_q", ".", None),
        ("transformer_blocks.-3.attn1.to_q", ".", None),
        ("transformer_blocks.٣.attn1.to_q", ".", None),
        ("transformer_blocks.9999999.attn1.to_q", ".", None),
        ("transformer_blocks.x.attn1.to_q", ".", None),
        ("transformer_blocks.3.attn1.to_q.more", ".", None),
        ("x.transformer_blocks.3.attn1.to_q", ".", None),
    ],
)
def test_match(path: str, sep: str, index: tuple | None) -> None:
    assert Template("transformer_blocks.{i}.attn1.to_q").match(path, sep) == index


def test_every_shape_of_the_released_models_separates_what_it_can() -> None:
    """Formats.md 9: only 2B is told apart by attention shapes."""
    variants = architecture("cogvideox").variants
    allowed = {v.name for v in variants if not v.objection("q", (("i", 41),), (3072, 3072))}
    assert allowed == {v.name for v in variants} - {"CogVideoX-2B"}
    assert [v.name for v in variants if not v.objection("q", (("i", 29),), (1920, 1920))] == ["CogVideoX-2B"]
    assert len({v.shapes["patch"] for v in variants}) == 5


def test_unknown_modules_are_listed() -> None:
    with pytest.raises(ConversionError, match=r"nonsense\.0 is not a module of CogVideoX in layout sat"):
        relayout({"nonsense.0": ()}, architecture("cogvideox"), "sat", "diffusers")
