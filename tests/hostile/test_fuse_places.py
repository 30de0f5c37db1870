"""`fuse` and `convert-base` to places that are taken, of adapters that are fused already, and what must work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hostile.base_builders import ADAPTER, BASES, DATA, SINGLE, Make, done, file, helps, model, run, sharded
from hostile.peft_builders import cases

# places


def taken(folder: Path) -> Path:
    (folder / "out").mkdir()
    (folder / "out" / "thesis.txt").write_text("precious")
    return folder / "out"


def partial(folder: Path) -> Path:
    (folder / "out.partial").mkdir()
    (folder / "out.partial" / "thesis.txt").write_text("precious")
    return folder / "out"


PLACES: dict[str, tuple[Make, str]] = {
    "in the base": (lambda folder: folder / "base" / "out", "lie inside"),
    "the base": (lambda folder: folder / "base", "replace"),
    "the base, roundabout": (lambda folder: folder / "base" / ".." / "base", "replace"),
    "around the base": (lambda folder: folder, "replace"),
    "a folder of others": (taken, "thesis.txt"),
    "a file of others": (lambda folder: file(b"precious", "thesis.txt")(folder), "thesis.txt"),
    "the unfinished folder of others": (partial, "out.partial"),
    "an unfinished file": (lambda folder: file(b"", "out.partial")(folder) and folder / "out", "out"),
    "below a file": (lambda folder: file(b"")(folder) / "out", "cannot be written"),
    "a name of 300 letters": (lambda folder: folder / ("o" * 300), "cannot be written"),
    "a file system that is read-only": (lambda folder: Path("/proc/out"), "cannot be written"),
}


@pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "--force"])
@pytest.mark.parametrize(("place", "fragment"), **cases(PLACES))
@pytest.mark.parametrize("verb", ["fuse", "convert-base"])
def test_a_place(tmp_path: Path, spares, verb: str, place: Make, fragment: str, force: tuple[str, ...]):
    base = model()(tmp_path)
    words = (base, ADAPTER) if verb == "fuse" else (base, "--to", "sat")
    spares((verb, *words, "-o", place(tmp_path), *force), fragment)


def test_an_earlier_result(tmp_path: Path, spares):
    words = ("fuse", model()(tmp_path), ADAPTER, "-o", tmp_path / "out")
    done(*words)
    before = (tmp_path / "out" / SINGLE).read_bytes()
    spares((*words, "--strength", "0.5"), "out exists")
    done(*words, "--strength", "0.5", "--force")
    assert (tmp_path / "out" / SINGLE).read_bytes() != before
    assert {path.name for path in tmp_path.iterdir()} == {"base", "out", "out-2"}  # the last, as was proposed
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", SINGLE}


@pytest.mark.parametrize("text", ["[]", '{"plan": 1, "done": []}', "{", '{"done": {"x": 1}}', "\0"])
def test_an_unfinished_folder_whose_list_was_damaged(tmp_path: Path, text: str):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "loraforge-progress.json").write_text(text)
    done("fuse", model()(tmp_path), ADAPTER, "-o", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "out"}


@pytest.mark.parametrize("out", ["out", "deep/er/out"])
def test_a_disk_that_is_full(tmp_path: Path, spares, monkeypatch: pytest.MonkeyPatch, out: str):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    spares(("fuse", model()(tmp_path), ADAPTER, "-o", tmp_path / out), "100 are free")


@pytest.mark.parametrize("option", ["--backend", "--device"])
def test_a_backend_or_device_that_is_not_there(tmp_path: Path, spares, option: str):
    words = ("fuse", model()(tmp_path), ADAPTER, option, "abacus")
    spares((*words, "-o", tmp_path / "out"), "abacus")
    helps(tmp_path, *words)


# twice


def test_an_adapter_that_is_in_the_base_already(tmp_path: Path, spares):
    base, peft = tmp_path / "fused", tmp_path / "peft"
    done("fuse", model()(tmp_path), ADAPTER, "-o", base)
    done("convert", ADAPTER, "--to", "peft", "-o", peft)
    done("convert-base", base, "--to", "sat", "-o", tmp_path / "fused-sat")
    for holder in (base, base / SINGLE, tmp_path / "fused-sat"):
        for again in (ADAPTER, peft):
            spares(("fuse", holder, again, "-o", tmp_path / "out"), "already", "strength 1")


def test_an_adapter_converted_before_it_was_fused(tmp_path: Path, spares):
    done("convert", ADAPTER, "--to", "peft", "-o", tmp_path / "peft")
    done("fuse", model()(tmp_path), tmp_path / "peft", "-o", tmp_path / "fused")
    spares(("fuse", tmp_path / "fused", ADAPTER, "-o", tmp_path / "out"), "already")


def test_an_adapter_that_was_converted_twice(tmp_path: Path, spares):
    done("fuse", model()(tmp_path), ADAPTER, "-o", tmp_path / "fused")
    done("convert", ADAPTER, "--to", "peft", "-o", tmp_path / "peft")
    done("convert", tmp_path / "peft", "--to", "sat", "-o", tmp_path / "sat", "--lora-only")
    spares(("fuse", tmp_path / "fused", tmp_path / "sat", "-o", tmp_path / "out"), "already")


def entry(**changes: Any) -> dict[str, str]:
    """What a header claims to hold already."""
    known = {"path": "x", "format": "x", "digests": [], "strength": 1, "scalings": [], "provenance": "", "said": ""}
    return {"loraforge": json.dumps({"fused": [known | changes]})}


def digest() -> str:
    result = json.loads(done("fuse", BASES / "2b", ADAPTER, "-o", "nowhere", "--dry-run", "--json"))
    return str(result["adapters"][0]["digests"][0])


@pytest.mark.parametrize("strength", [10**400, float("nan"), True, "1"], ids=["large", "nan", "true", "text"])
def test_a_claim_with_a_strength_that_is_none(tmp_path: Path, strength: Any):
    """Refused as held already, or not believed; anybody can write a header."""
    base = model(header=entry(digests=[digest()], strength=strength))(tmp_path)
    result = run("fuse", base, ADAPTER, "-o", tmp_path / "out")
    assert isinstance(result.exception, SystemExit | None), repr(result.exception)


@pytest.mark.parametrize("claim", [{"fused": 1}, {"fused": [1, [], {}]}, [], "x"], ids=repr)
def test_a_claim_that_is_none(tmp_path: Path, claim: Any):
    done("fuse", model(header={"loraforge": json.dumps(claim)})(tmp_path), ADAPTER, "-o", tmp_path / "out")


# what must work


def test_a_folder_whose_name_has_a_dot(tmp_path: Path):
    done("fuse", model()(tmp_path), ADAPTER, "-o", tmp_path / "CogVideoX-1.5-mine")
    assert {path.name for path in (tmp_path / "CogVideoX-1.5-mine").iterdir()} == {"config.json", SINGLE}


def test_strengths_of_two_adapters(tmp_path: Path):
    words = ("fuse", model()(tmp_path), ADAPTER, DATA / "peft_plain", "--strength", "2", "--strength=nan")
    helps(tmp_path, *words)


def test_links_as_a_cache_has_them(tmp_path: Path):
    real = model()(tmp_path / "blobs")
    base = tmp_path / "snapshot"
    base.mkdir()
    for path in real.iterdir():
        (base / path.name).symlink_to(path)
    before = {path: path.read_bytes() for path in real.iterdir()}
    for more in ((), ("--force",)):
        done("fuse", base, ADAPTER, "-o", tmp_path / "out", *more)
    assert {path: path.read_bytes() for path in real.iterdir()} == before
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("metadata", [None, [1], "x", 4], ids=repr)
def test_an_index_with_odd_metadata(tmp_path: Path, metadata: Any):
    base = sharded(lambda table: table | {"metadata": metadata})(tmp_path)
    done("fuse", base, ADAPTER, "-o", tmp_path / "out")
