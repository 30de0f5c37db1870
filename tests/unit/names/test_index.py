"""The index of names says what the data of the architectures says, and only the data that matters is read."""

from __future__ import annotations

import pytest
from helpers import index as made

from loraforge.names.catalog import FOLDER, Catalog
from loraforge.names.index import FILE, built_in
from loraforge.names.layout import pattern
from loraforge.tables import package_tables


def test_the_index_is_made_from_the_data() -> None:
    assert FILE.read_text("utf-8") == made.text(), "run `make index`"


def test_numbers_and_separators_do_not_count() -> None:
    assert (
        pattern("blocks.12.attn.to_out.0") == pattern("blocks_3_attn_to_out_1") == pattern("blocks.{i}.attn.to_out.{j}")
    )
    assert pattern("x2.linear1") != pattern("x1.linear1")
    assert pattern("{last}.a") == pattern("7.a")


@pytest.mark.parametrize("name", built_in().layouts)
def test_a_module_that_no_other_model_has_is_no_other_models(name: str) -> None:
    arch = Catalog(built_in().layouts)[name]
    for layout in arch.layouts.values():
        for template in layout.own:
            homes = {home for home, _ in built_in().patterns[pattern(template.text)]}
            assert homes == {name}, f"{template.text} of {name}/{layout.name} is also of {homes - {name}}"


def test_an_architecture_is_read_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    tables = package_tables(FOLDER)
    monkeypatch.setattr(
        "loraforge.names.catalog.package_table", lambda path: read.append(path) or tables[path.split("/")[-1]]
    )
    catalog = Catalog(built_in().layouts)
    assert "cogvideox" in catalog
    assert len(catalog) == len(list(catalog)) == len(tables)
    assert read == []
    assert catalog["cogvideox"].name == "cogvideox"
    assert read == ["names/architectures/cogvideox"]
    with pytest.raises(KeyError):
        catalog["no-model"]
