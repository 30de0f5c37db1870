"""The load-time checks of an architecture, and templates."""

from __future__ import annotations

import copy
from importlib.resources import files
from pathlib import Path

import pytest
import tomli

from loraforge.adapter.relayout import relayout
from loraforge.errors import ConversionError, LayoutError
from loraforge.learning.layout_file import as_toml
from loraforge.names import layout as layouts
from loraforge.names.bijection import parse
from loraforge.names.catalog import architecture
from loraforge.names.check import check
from loraforge.names.layout import Template

TABLE = tomli.loads((files("loraforge") / "names" / "architectures/cogvideox.toml").read_text("utf-8"))


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
        (TABLE | {"variants": {"X": {"repo": "a/b", "blocks": 1, "absent": ["qq.bias"]}}}, "unknown segment 'qq'"),
        (
            TABLE | {"variants": {"X": {"repo": "a/b", "blocks": 1, "absent": ["q.scale"]}}},
            "'q' has no parameter 'scale'",
        ),
    ],
)
def test_problems(data: dict, said: str) -> None:
    with pytest.raises(LayoutError, match=said):
        parse(data, "cogvideox.toml")


def test_parameters_of_segments_without_an_entry() -> None:
    data = copy.deepcopy(TABLE)
    assert parse(data, "x.toml").named(("q", "k")) == ("weight", "bias")
    data["parameters"] |= {"*": ["weight"], "o": ["weight", "bias"]}
    arch = parse(data, "x.toml")
    assert [arch.named((segment,), "sat") for segment in ("q", "o", "pos")] == [
        ("weight",),
        ("weight", "bias"),
        ("pos_embedding",),
    ]


def test_all_problems_at_once() -> None:
    data = changed(sat={"a.{i}": ["q"], "transformer.layers.{i}.attention.dense": [], "b": ["nonsense"]})
    with pytest.raises(LayoutError) as caught:
        parse(data, "cogvideox.toml")
    for said in ("'q' is in", "'o' is in no module", "'nonsense'"):
        assert said in caught.value.message


def test_everything_an_author_can_get_wrong_is_said_in_one_message() -> None:
    data = copy.deepcopy(TABLE) | {"told_by": "text2", "rows": {"mlp": 4}}
    data["parameters"] |= {"posn": ["x"]}
    data["unadapted"]["bias"] = ["norm_q", "nrm"]
    data["variants"]["CogVideoX-2B"] |= {"absent": ["qq", "q"]}
    sat, diffusers = data["layouts"]["sat"], data["layouts"]["diffusers"]
    del sat["modules"]["transformer.layers.{i}.mlp.dense_h_to_4h"]  # forgotten
    sat["modules"]["a.{i}.b"] = ["q"]  # used twice
    sat["modules"]["transformer.layers.{n}.attention.dense"] = ["norm_q"]  # ambiguous, and of another index
    sat["modules"] |= {"twice.{i}.{i}": ["o"], "half{i}": ["text"], "mixed": ["patch", "norm_out"]}
    sat["dropped"] |= {"time_embed.0.weight": "x", "mixins.pos_embed.{n}": "x", "mixins.pos_embed.3": "x"}
    diffusers["absent"] = ["qqq"]
    with pytest.raises(LayoutError) as caught:
        parse(data, "cogvideox.toml")
    for said in (
        "told_by: unknown segment 'text2'",
        "variant CogVideoX-2B: no shape of 'text2', by which variants are told",
        "rows: unknown segment 'mlp'",
        "parameters: unknown segment 'posn'",
        "unadapted 'bias': unknown segment 'nrm'",
        "unadapted: segment 'norm_q' is listed 2 times",
        "variant CogVideoX-2B: unknown segment 'qq'",
        "variant CogVideoX-2B: segment 'q' is absent, and has a shape",
        "layout sat: segment 'ff_in' is in no module",
        "segment 'q' is in 'transformer.layers.{i}.attention.query_key_value' and in 'a.{i}.b'",
        "attention.dense' and 'transformer.layers.{n}.attention.dense' can match the same module",
        "segment 'norm_q' is indexed differently in layout 'sat'",
        "'twice.{i}.{i}' uses a block number twice",
        "'half{i}': 'half{i}' is neither a name nor one whole {number}",
        "'mixed' stacks segments whose parameters, or kinds, are not the same",
        "dropped 'time_embed.0.weight' is a parameter of 'time_embed.0', which no variant lacks",
        "dropped 'mixins.pos_embed.{n}' and 'mixins.pos_embed.3' can match the same key",
        "layout diffusers: absent: unknown segment 'qqq'",
    ):
        assert said in caught.value.message, said


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"parameters": {"out": ["a.b"]}}, 'parameters.out.0 is "a.b", which does not go with pattern'),
        ({"parameters": {"out": []}}, "parameters.out is [], which does not go with minItems 1"),
        ({"layouts": {"mine": {"modules": {"empty": []}}}}, "layouts.mine.modules.empty is []"),
        ({"dimensions": {"q": ["4d", "d"]}}, 'dimensions.q.0 is "4d", which does not go with pattern'),
    ],
)
def test_what_the_schema_says_is_said_before_a_layout_is_built(wrong: dict, said: str, tmp_path: Path) -> None:
    table = copy.deepcopy(TABLE) | {"architecture": "mine"} | wrong
    (tmp_path / "mine.toml").write_text(as_toml(table), "utf-8")
    adds, problems = check(tmp_path / "mine.toml")
    assert not adds
    assert any(said in str(problem) for problem in problems), [*map(str, problems)]


def test_a_key_that_every_variant_carries_cannot_be_dropped() -> None:
    """The positions may be dropped only because some variants have none."""
    data = copy.deepcopy(TABLE)
    for variant in data["variants"].values():
        variant["absent"] = []
    with pytest.raises(LayoutError, match=r"dropped 'mixins\.pos_embed\.pos_embedding' is a parameter of"):
        parse(data, "cogvideox.toml")


def test_a_small_model_is_told_by_the_inputs_of_its_patches() -> None:
    like = {
        (64, 16, 2, 2): ["CogVideoX-2B", "CogVideoX-5B"],
        (64, 32, 2, 2): ["CogVideoX-5B-I2V"],
        (64, 128): ["CogVideoX1.5-5B"],
        (64, 256): ["CogVideoX1.5-5B-I2V"],
        (64, 48, 2, 2): [],
    }
    for shape, names in like.items():
        assert [variant.name for variant in architecture("cogvideox").like(shape)] == names


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


def test_what_was_located_is_kept_for_its_separator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A path asked for with another separator is another question; and the answers are bounded."""
    layout = parse(copy.deepcopy(TABLE), "x.toml").layouts["diffusers"]
    monkeypatch.setattr(layouts, "_MOST_LOCATED", 3)
    dotted, flat = "transformer_blocks.3.attn1.to_q", "transformer_blocks_3_attn1_to_q"
    for _ in range(2):
        for number in range(5):
            assert layout.locate(dotted.replace("3", str(number)))[1] == (("i", number),)
        assert layout.locate(flat, "_")[1] == (("i", 3),)
        assert layout.locate(flat) is None
        assert layout.locate(dotted, "_") is None
        assert len(layout._located) <= 3


ENDING = {
    "architecture": "ending",
    "title": "Ending",
    "segments": ["mod", "shift", "scale", "out"],
    "parameters": {"out": ["table"]},
    "layouts": {
        "a": {"modules": {"x.{i}.mod": ["mod"], "x.{last}.mod": ["shift", "scale"], "": ["out"]}},
        "b": {"modules": {"y.{i}.mod": ["mod"], "y.{last}.end": ["scale", "shift"], "out": ["out"]}},
    },
}


@pytest.mark.parametrize(("last", "stack"), [(None, ("mod",)), (2, ("mod",)), (3, ("shift", "scale"))])
def test_the_last_block_may_be_built_differently(last: int | None, stack: tuple[str, ...]) -> None:
    for modules in (ENDING["layouts"]["a"]["modules"], dict(reversed(ENDING["layouts"]["a"]["modules"].items()))):
        data = copy.deepcopy(ENDING)
        data["layouts"]["a"]["modules"] = modules
        arch = parse(data, "ending.toml").ending(last)
        assert arch.layouts["a"].stacked("x.3.mod") == stack
        assert arch.layouts["a"].stacked("x.1.mod") == ("mod",)


def test_the_last_block_is_the_highest_of_its_kind() -> None:
    layout = parse(ENDING, "ending.toml").layouts["a"]
    assert layout.last_block(["x.0.mod.weight", "x.11.mod.weight", "x.2.q", "z.40.mod.weight", "table"]) == 11
    assert layout.last_block(["table"]) is None


def test_what_only_last_blocks_have_has_that_hole_in_every_layout() -> None:
    data = copy.deepcopy(ENDING)
    data["layouts"]["b"]["modules"] |= {"y.{last}.end": ["scale"], "y.{i}.shift": ["shift"]}
    with pytest.raises(LayoutError, match="segment 'shift' is indexed differently"):
        parse(data, "ending.toml")


def test_a_star_names_the_parameters_of_all_others() -> None:
    arch = parse(ENDING | {"parameters": {"*": ["weight"], "out": ["table"]}}, "ending.toml")
    assert [arch.named((segment,)) for segment in ("mod", "shift", "out")] == [("weight",), ("weight",), ("table",)]
    assert parse(ENDING, "ending.toml").named(("mod",)) == ("weight", "bias")
