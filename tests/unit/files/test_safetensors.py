"""What is written depends on what is given and on nothing else; what is digested is everything."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from loraforge.adapter.relayout import relayout
from loraforge.algebra.lora import LoraWeight
from loraforge.errors import ConversionError, FileError
from loraforge.files import opening
from loraforge.files.digest import scan
from loraforge.files.mapped import FileMap
from loraforge.files.safetensors import read_safetensors, write_safetensors
from loraforge.files.tensorfile import TensorFile, TensorInfo
from loraforge.names.bijection import parse
from loraforge.scale.peft_config import config, rule

TYPES = {"F32": np.float32, "F16": np.float16}


def test_the_bytes_do_not_depend_on_the_order(tmp_path: Path) -> None:
    header = {"c": ("F32", (2,)), "a": ("F16", (1,)), "b": ("F32", (2,))}
    tensors = [(key, np.ones(shape, TYPES[kind])) for key, (kind, shape) in header.items()]
    write_safetensors(tmp_path / "1", header, tensors, {"x": "1", "y": "2"})
    write_safetensors(tmp_path / "2", dict(reversed(header.items())), tensors[::-1], {"y": "2", "x": "1"})
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    assert load_file(tmp_path / "1").keys() == header.keys()


def test_a_tensor_missing_or_unlike_its_announcement_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="announced and not given"):
        write_safetensors(tmp_path / "1", {"a": ("F32", (2,))}, [], {})
    with pytest.raises(ValueError, match="a is float16"):
        write_safetensors(tmp_path / "1", {"a": ("F32", (2,))}, [("a", np.ones(2, np.float16))], {})


def test_the_digest_knows_the_element_type(tmp_path: Path) -> None:
    for name, dtype, kind in (("h", np.float16, "F16"), ("b", ml_dtypes.bfloat16, "BF16")):
        write_safetensors(tmp_path / name, {"a": (kind, (2, 2))}, [("a", np.zeros((2, 2), dtype))], {})
    assert scan(read_safetensors(tmp_path / "h"), ["a"]) != scan(read_safetensors(tmp_path / "b"), ["a"])


def test_a_segment_the_target_has_no_module_for_is_refused() -> None:
    layouts = {"one": {"modules": {"x.a": ["a"], "x.b": ["b"]}}, "two": {"modules": {"y": ["a"]}, "absent": ["b"]}}
    arch = parse({"architecture": "t", "title": "t", "segments": ["a", "b"], "layouts": layouts}, "t")
    weight = (LoraWeight(np.ones((1, 3)), np.ones((2, 1)), 1.0),)
    with pytest.raises(ConversionError, match=r"layout two has no module for x\.b"):
        relayout({"x.a": weight, "x.b": weight}, arch, "one", "two")


def test_patterns_do_not_match_a_longer_path() -> None:
    ranks = {"a.b": 2, "x.a.b": 4, "y": 4}
    least = config(ranks, dict.fromkeys(ranks, 1.0))
    assert all(rule(least, ranks, "header").of(path, rank) == 1.0 for path, rank in ranks.items())


def test_of_a_header_alone_there_are_shapes_and_no_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    header = {"a": ("F32", (2, 3)), "n": ("I64", (1,))}
    write_safetensors(path, header, [("a", np.ones((2, 3), np.float32)), ("n", np.ones(1, np.int64))], {})
    file = replace(read_safetensors(path), maps=(FileMap(path, 32),))
    assert file["a"].shape == (2, 3) and np.isnan(file["a"]).all()
    for look in (lambda: file.raw("n"), file.maps[0].memory):
        with pytest.raises(FileError, match=r"stands in its tensors \(0 kB\)") as refused:
            look()
        assert refused.value.remedies[0].command == "--fetch"


def open_folder(path: Path) -> TensorFile:
    """A container of several files: one for each tensor, after two bytes of something else."""
    names = (path / "names").read_text().split()
    maps = tuple(FileMap(path / name) for name in names)
    tensors = {name: TensorInfo("F16", (len(name), 2), 2, map=n) for n, name in enumerate(names)}
    return TensorFile(path, "folder", 0, tensors, maps=maps)


FOLDER = opening.Container("folder", (), lambda head, path: not head and (path / "names").is_file(), open_folder)


def test_a_container_is_one_object_of_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder whose tensors lie in several files: recognised, opened, and read through a map of each."""
    (tmp_path / "names").write_text("a bc")
    content = {"a": np.array([[1, 2]], "<f2"), "bc": np.array([[3, 4], [5, 6]], "<f2")}
    for name, numbers in content.items():
        (tmp_path / name).write_bytes(b"??" + numbers.tobytes())
    with pytest.raises(FileError, match="is no file"):
        opening.open_tensors(tmp_path)
    monkeypatch.setattr(opening, "CONTAINERS", (*opening.CONTAINERS, FOLDER))
    file, warnings = opening.open_tensors(tmp_path)
    assert (file.kind, warnings, file.spread) == ("folder", [], True)
    file.scatter()
    assert file["a"].tolist() == [[1, 2]] and file["bc"].tolist() == [[3, 4], [5, 6]]
    assert bytes(file.raw("bc")) == content["bc"].tobytes()
    file.release("bc")
    file.release()
    assert file["bc"].tolist() == [[3, 4], [5, 6]]
    other = replace(file, path=tmp_path / "elsewhere", tensors={"bc": file.tensors["bc"]})
    assert other["bc"].tolist() == [[3, 4], [5, 6]]


def test_of_several_files_those_that_were_fetched_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12")
    maps = (FileMap(tmp_path / "a"), FileMap(tmp_path / "b", absent=7))
    tensors = {"a": TensorInfo("U8", (2,), 0), "b": TensorInfo("F32", (2,), 0, map=1)}
    file = TensorFile(tmp_path / "whole", "safetensors", 9, tensors, maps=maps)
    assert file.absent == 7
    assert bytes(file.raw("a")) == b"12" and np.isnan(file["b"]).all()
    with pytest.raises(FileError, match=r"/b: that stands in its tensors"):
        file.raw("b")


@pytest.mark.parametrize("name", ["data_offsets", "__metadata", 'a"b', "a\\b", "名"])
def test_a_header_may_use_its_own_words_as_names(name: str, tmp_path: Path) -> None:
    texts = {"data_offsets": "x", "shape": '"', "dtype": "\\", name: '{"r": 4}'}
    write_safetensors(tmp_path / "x", {name: ("F32", (2,))}, [(name, np.ones(2, np.float32))], texts)
    file = read_safetensors(tmp_path / "x")
    assert dict(file.metadata) == texts
    assert file[name].tolist() == [1, 1]
    assert file.tensors[name].shape == (2,)


def test_the_library_alone_and_json_read_a_header_and_each_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"blocks.{n}.x" for n in range(9)]
    write_safetensors(tmp_path / "x", dict.fromkeys(keys, ("F32", ())), [(k, np.ones((), "f4")) for k in keys], {})
    plain, calls = json.loads, list[object]()
    monkeypatch.setattr(json, "loads", lambda *args, **how: (calls.append(how), plain(*args, **how))[1])
    assert read_safetensors(tmp_path / "x").tensors.keys() == {*keys}
    assert len(calls) == 1


def test_views_compare_the_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys, checks = [f"blocks.{n}.x" for n in range(9)], list[FileMap]()
    write_safetensors(
        tmp_path / "x",
        dict.fromkeys(keys, ("F32", ())),
        [(key, np.full((), n, "f4")) for n, key in enumerate(keys)],
        {},
    )
    file, plain = read_safetensors(tmp_path / "x"), FileMap.check
    file.maps[0].memory()
    monkeypatch.setattr(FileMap, "check", lambda part: (checks.append(part), plain(part))[1])
    assert [float(view) for view in file.views(keys)] == [*range(9)]
    assert checks == [file.maps[0]]
