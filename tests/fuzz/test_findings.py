"""Every fault that was found so: its input, made small, in findings/PARSER.what.suffix."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import tomli

import loraforge
from fuzz import chains, reader
from fuzz.parsers import PARSERS
from loraforge.errors import LoraforgeError

HERE = Path(__file__).parent
FINDINGS = sorted((HERE / "findings").iterdir())


@pytest.mark.parametrize("path", FINDINGS, ids=lambda path: path.stem)
def test_what_was_found_is_refused_or_read(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "place").mkdir()
    with contextlib.suppress(LoraforgeError):
        PARSERS[path.name.partition(".")[0]].read(path.read_bytes(), tmp_path / "place")


def test_every_earlier_fault_has_its_test() -> None:
    table = tomli.loads((HERE / "earlier.toml").read_text("utf-8"))
    assert list(table) == [f"B{n:02}" for n in range(1, 22)]
    for _, file, test in table.values():
        assert f"def {test}(" in (HERE.parent / file).read_text("utf-8"), test


@pytest.mark.parametrize("to", ["kohya", "comfyui", "original"])
@pytest.mark.parametrize("block", [0, 2])
def test_a_block_with_a_module_that_the_last_one_lacks_is_not_the_last(to: str, block: int, tmp_path: Path) -> None:
    """Its name is the last block's in the original's words, where the last block has another module of that name."""
    shapes = {"norm1_context.linear": (64, 128), "attn1.to_add_out": (64, 32)}
    source = chains.saved(
        tmp_path / "a", {f"transformer_blocks.{block}.{name}": shape for name, shape in shapes.items()}
    )
    loraforge.convert(source, to=to, out=tmp_path / "b", architecture="mochi")
    assert reader.by_rows(reader.read(source), reader.read(tmp_path / "b")) <= chains.PLAIN
    loraforge.convert(tmp_path / "b", to="peft", out=tmp_path / "c", architecture="mochi")
    assert reader.by_names(reader.read(source), reader.read(tmp_path / "c")) <= chains.PLAIN
