"""What holds of every built-in architecture's file: its schema, its check, and names that are really its alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import loraforge.names
from loraforge.names.bijection import parse
from loraforge.names.catalog import architecture, architectures
from loraforge.names.check import check
from loraforge.names.layout import Template
from loraforge.names.lookalike import models
from loraforge.names.places import expanded
from loraforge.plugin.schema_check import look
from loraforge.tables import package_tables

FOLDER = Path(loraforge.names.__path__[0]) / "architectures"
FILES = sorted(FOLDER.glob("*.toml"))
TABLES = package_tables("names/architectures")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_follows_its_schema_and_is_a_bijection(file: Path) -> None:
    data, problems = look(file)
    assert not problems
    arch = parse(data, file.name)
    assert arch.name == file.stem
    assert file.read_text("utf-8").startswith("#:schema ../../schemas/architecture.schema.json\n# ")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_check_for_plugins_says_only_that_it_is_there(file: Path) -> None:
    _, problems = check(file)
    assert [problem for problem in problems if "already" not in problem.what] == []


def shape(path: str) -> str:
    """A template as formats with flattened names see it: any number, any separator."""
    return re.sub(r"(?<=_)(\d+|\{\w+\})(?=_|$)", "#", path.replace(".", "_"))


@pytest.mark.parametrize("name", TABLES)
def test_its_own_modules_are_no_other_model_s(name: str) -> None:
    others = {
        shape(template.text): f"{other.name}/{layout.name}"
        for other in map(architecture, architectures())
        if other.name != name
        for layout in other.layouts.values()
        for template in layout.modules
    }
    arch = architecture(name)
    for layout in arch.layouts.values():
        for own in layout.own:
            assert shape(own.text) not in others, f"{own.text} is also in {others.get(shape(own.text))}"
            for title, model in models().items():
                if title == arch.title:
                    continue
                for pattern in (*model.get("comfyui", ()), *model.get("diffusers", ())):
                    regex = pattern.replace("{i}", r"\d+")
                    path = own.fill(tuple((hole[1:-1], 0) for hole in own.holes))
                    assert not re.fullmatch(regex, path), f"{own.text} is also in {title}"


@pytest.mark.parametrize("name", TABLES)
def test_every_variant_says_how_it_is_run_and_how_deep_it_is(name: str) -> None:
    arch = architecture(name)
    assert arch.variants
    assert len({variant.repo for variant in arch.variants}) == len(arch.variants)
    kinds = arch.block_kinds()
    for variant in arch.variants:
        assert variant.pipeline in arch.pipelines
        stated = expanded(TABLES[name])["variants"][variant.name]["blocks"]
        present = {kind for segment, kind in kinds.items() if segment not in variant.absent}
        if isinstance(stated, dict):  # one segment of each kind at least
            assert {kinds[segment] for segment in stated} == present, variant.name
        else:
            assert len(present) <= 1, f"{variant.name} has several kinds of blocks, and one number"


@pytest.mark.parametrize("name", TABLES)
def test_the_table_of_other_models_calls_it_by_its_title(name: str) -> None:
    """So that its entry there counts only where the architecture's file is not installed."""
    arch = architecture(name)
    words = {title: model.get("words", ()) for title, model in models().items()}
    for title, known in words.items():
        assert title == arch.title or not set(known) & set(arch.words), title


@pytest.mark.parametrize("name", TABLES)
def test_the_table_of_other_models_has_all_of_its_modules(name: str) -> None:
    """So that without its file an adapter of it is still no other model's (tests/laws/test_leave_one_out.py)."""
    arch, model = architecture(name), models()[architecture(name).title]
    for layout in (one for kind, one in arch.layouts.items() if kind in ("original", "comfyui", "diffusers")):
        kinds = ("original", "comfyui", "diffusers")[("original", "comfyui", "diffusers").index(layout.name) :]
        known = next(model[kind] for kind in kinds if kind in model)
        for template, stack in layout.modules.items():
            path = template.fill(tuple((hole[1:-1], 0) for hole in template.holes))
            listed = any(re.fullmatch(one.replace("{i}", r"\d+"), path) for one in known)
            assert listed or arch.unadapted.keys() & {*stack}, f"{layout.name}: {path}"


def test_no_word_of_a_header_is_of_two_architectures() -> None:
    every = [word for arch in map(architecture, architectures()) for word in arch.words]
    assert len(every) == len(set(every))


def test_the_shape_of_a_name() -> None:
    assert shape("double_blocks.{i}.img_attn_qkv") == shape("double_blocks.0.img_attn.qkv")
    assert shape("blocks.{i}.mod_x") != shape("blocks.{i}.mod_y")
    assert Template("a.{last}.b").for_last
