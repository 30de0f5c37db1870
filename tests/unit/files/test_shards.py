"""An adapter in several files is read whole, from any of them; a part of one is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.hub import Hub
from helpers.oracle import DATA
from helpers.pushed import BASE, NAME
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.errors import FileError
from loraforge.files.torch_write import write_torch

WHOLE = DATA / "peft_plain"
SILENT = DATA / "diffusers_save_lora_weights_nometa" / NAME


def shards(folder: Path, source: Path = WHOLE, count: int = 3, *, index: bool = True, numbered: bool = True) -> Path:
    """The adapter in so many files; with the configuration, where there is one."""
    folder.mkdir(parents=True)
    file = source if source.is_file() else source / "adapter_model.safetensors"
    tensors, stem = load_file(file), file.stem
    placed: dict[str, str] = {}
    for n in range(count):
        name = f"{stem}-{n + 1:05d}-of-{count:05d}.safetensors" if numbered else f"part{'abc'[n]}.safetensors"
        mine = {key: tensors[key] for key in sorted(tensors)[n::count]}
        save_file(mine, folder / name, {"format": "pt"})
        placed |= dict.fromkeys(mine, name)
    if index:
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    if (source / "adapter_config.json").is_file():
        shutil.copy(source / "adapter_config.json", folder)
    return folder


def written(source: Path, out: Path, **stated: object) -> dict[str, bytes]:
    loraforge.convert(source, "diffusers", out=out, **stated)  # type: ignore[arg-type]
    file = out if out.is_file() else out / NAME
    return {key: value.tobytes() for key, value in load_file(file).items()}


GIVEN: dict[str, Callable[[Path], Path]] = {
    "the folder": lambda folder: folder,
    "the index": lambda folder: folder / "adapter_model.safetensors.index.json",
    "what the whole would be called": lambda folder: folder / "adapter_model.safetensors",
    "the first": lambda folder: folder / "adapter_model-00001-of-00003.safetensors",
    "the last": lambda folder: folder / "adapter_model-00003-of-00003.safetensors",
}


@pytest.mark.parametrize("given", GIVEN)
def test_whichever_is_given_all_are_read(tmp_path: Path, given: str) -> None:
    source = GIVEN[given](shards(tmp_path / "s"))
    assert written(source, tmp_path / "o") == written(WHOLE, tmp_path / "whole")
    found = loraforge.inspect(source)
    assert found.targets == loraforge.inspect(WHOLE).targets and found.scale.provenance == "recorded"  # type: ignore[union-attr]
    assert any("as one, by adapter_model.safetensors.index.json" in note for note in found.notes)


def test_by_their_names_alone_and_by_the_index_alone(tmp_path: Path) -> None:
    want = written(WHOLE, tmp_path / "whole")
    bare = shards(tmp_path / "a", index=False)
    assert written(bare, tmp_path / "1") == want
    assert written(bare / "adapter_model-00002-of-00003.safetensors", tmp_path / "2") == want
    named = shards(tmp_path / "b", numbered=False)
    assert written(named / "partb.safetensors", tmp_path / "3") == want
    odd = shards(tmp_path / "c", index=False)
    for path in sorted(odd.glob("*.safetensors")):  # as some tools number them
        path.rename(odd / f"adapter_model.safetensors{path.stem.removeprefix('adapter_model')}")
    assert written(odd / "adapter_model.safetensors-00002-of-00003", tmp_path / "4") == want


def test_torch_files_in_parts(tmp_path: Path) -> None:
    tensors = load_file(SILENT)
    for n in (1, 2):
        mine = {key: tensors[key] for key in sorted(tensors)[n - 1 :: 2]}
        header = {key: ("F32", value.shape) for key, value in mine.items()}
        write_torch(tmp_path / f"pytorch_model-0000{n}-of-00002.bin", header, mine.items())
    got = written(tmp_path / "pytorch_model-00002-of-00002.bin", tmp_path / "o", trained_scale=0.5)
    assert got == written(SILENT, tmp_path / "w", trained_scale=0.5)


@pytest.mark.parametrize("index", [True, False])
@pytest.mark.parametrize("given", ["", "adapter_model-00001-of-00003.safetensors"])
def test_a_part_whose_others_are_missing(tmp_path: Path, cli, given: str, index: bool) -> None:
    folder = shards(tmp_path / "s", index=index)
    (folder / "adapter_model-00002-of-00003.safetensors").unlink()
    for verb in (["inspect"], ["convert", "--to", "diffusers", "-o", tmp_path / "o"], ["doctor"], ["verify", WHOLE]):
        done = cli(*verb, folder / given)
        assert done.exit_code == 1, done.output
        assert "adapter_model-00002-of-00003.safetensors is not here" in done.output, (verb, done.output)
    assert not (tmp_path / "o").exists()


def moved(folder: Path) -> None:
    index = next(folder.glob("*.index.json"))
    table = json.loads(index.read_text())["weight_map"]
    first = min(table)
    table[first] = next(name for name in table.values() if name != table[first])
    index.write_text(json.dumps({"weight_map": table}))


def changed(**entries: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        index = next(folder.glob("*.index.json"))
        table = json.loads(index.read_text())["weight_map"] | entries
        index.write_text(json.dumps({"weight_map": table}))

    return change


def twice(folder: Path) -> None:
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    save_file(load_file(second) | dict([next(iter(load_file(first).items()))]), second)


DISAGREEING = {
    "a key in another file": (moved, "names other places than the files beside it have"),
    "a key that none holds": (
        changed(nobody="adapter_model-00001-of-00003.safetensors"),
        r"have: nobody \(in none of them\)",
    ),
    "a file elsewhere": (changed(x="../x.safetensors"), "which is no file beside it"),
    "a file that is not there": (changed(x="x.safetensors"), "x.safetensors is not here"),
    "a key in two files": (twice, "both hold"),
    "no table": (lambda folder: next(folder.glob("*.index.json")).write_text("{}"), "cannot be read as an index"),
    "no JSON": (lambda folder: next(folder.glob("*.index.json")).write_text("x"), "cannot be read as an index"),
}


@pytest.mark.parametrize("fault", DISAGREEING)
def test_an_index_that_does_not_agree(tmp_path: Path, fault: str) -> None:
    folder = shards(tmp_path / "s")
    damage, said = DISAGREEING[fault]
    damage(folder)
    for given in ("adapter_model.safetensors.index.json", "adapter_model-00001-of-00003.safetensors"):
        with pytest.raises(FileError, match=said):
            loraforge.read(folder / given)


def test_headers_that_contradict_each_other(tmp_path: Path) -> None:
    folder = shards(tmp_path / "s")
    last = max(folder.glob("*.safetensors"))
    save_file(load_file(last), last, {"format": "np"})
    with pytest.raises(FileError, match="says of format what the files beside it do not say"):
        loraforge.read(folder)


def test_one_whole_file_is_no_part(tmp_path: Path) -> None:
    """Numbers in a name that are no shard's, a set of one, an index of something else."""
    want = written(SILENT, tmp_path / "w", trained_scale=0.5)
    for name in ("epoch-3-of-10.safetensors", "style-00001-of-00001.safetensors"):
        (tmp_path / name).write_bytes(SILENT.read_bytes())
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "b.safetensors"}}))
        assert written(tmp_path / name, tmp_path / f"o-{name}", trained_scale=0.5) == want


def test_doctor_says_that_loaders_read_one_of_them(tmp_path: Path, cli) -> None:
    done = cli("doctor", shards(tmp_path / "s"))
    assert done.exit_code == 1 and "it lies in 3 files" in done.output and "acts as trained" not in done.output
    line = next(line for line in done.output.splitlines() if "# one file" in line).split("loraforge ")[1]
    assert cli(*line.partition("   #")[0].split(), "-o", tmp_path / "o").exit_code == 0


def test_verify_fuse_and_stamp(tmp_path: Path) -> None:
    folder = shards(tmp_path / "s")
    assert loraforge.verify(folder, WHOLE).same
    for name, source in (("one", WHOLE), ("parts", folder)):
        loraforge.fuse(DATA / "bases" / "5b", [source], tmp_path / name)
    files = [path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.safetensors")]
    for file in files:
        one, parts = (load_file(tmp_path / name / file) for name in ("one", "parts"))
        assert all(np.array_equal(one[key], parts[key]) for key in one | parts)
    assert files
    other = shards(tmp_path / "d", SILENT, 2)
    done = loraforge.stamp(other, 2, out=tmp_path / "stamped.safetensors")
    assert np.allclose(done.scalings, loraforge.inspect(tmp_path / "stamped.safetensors").scalings)
    with pytest.raises(loraforge.LoraforgeError, match="--in-place has no one file to replace"):
        loraforge.stamp(other, 2, in_place=True)


def test_on_the_hub_and_pushed_as_one(hub: Hub, tmp_path: Path) -> None:
    folder = shards(tmp_path / "s")
    hub.add("me/parts", {path.name: path.read_bytes() for path in folder.iterdir()})
    hub.add("me/half", {path.name: path.read_bytes() for path in folder.iterdir() if "00002-of" not in path.name})
    first = "hf://me/parts/adapter_model-00001-of-00003.safetensors"
    for words in (("me/parts",), (first,), ("me/parts", "--fetch")):
        done = hub.run("inspect", *words)
        assert done.returncode == 0 and "as one, by adapter_model.safetensors.index.json" in done.stderr, done.stderr
    assert hub.run("verify", "me/parts", WHOLE).returncode == 0
    done = hub.run("inspect", "me/half")
    assert done.returncode == 1 and "adapter_model-00002-of-00003.safetensors is not here" in done.stderr
    hub.add(BASE, {"README.md": b"---\nlicense: other\n---\n"})
    done = hub.run("push", folder, "me/whole", "--base-model", BASE)
    assert done.returncode == 0, done.stderr
    assert sorted(name for name in hub.files("me/whole") if "adapter" in name) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert hub.run("verify", "me/whole", WHOLE).returncode == 0
