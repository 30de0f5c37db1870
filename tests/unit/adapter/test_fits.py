"""The base model that is typed or recorded is checked against the shapes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers.oracle import Case
from helpers.sparse import BASE_2B, BASE_5B, attention, sparse
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.adapter.fits import repository
from loraforge.errors import LoraforgeError

FIVE = attention(3072, 1) | attention(3072, 1, 41)
TWO = attention(1920, 1) | attention(1920, 1, 29)
TINY = attention(64, 2)


def numbers(file: Path) -> Path:
    """The same file with numbers in it."""
    save_file({key: np.full_like(tensor, 0.5) for key, tensor in load_file(file).items()}, file)
    return file


@pytest.mark.parametrize(
    ("modules", "base"),
    [
        (FIVE, BASE_2B),
        (TWO, BASE_5B),
        (FIVE, "THUDM/CogVideoX-2b"),
        (TWO, "THUDM/CogVideoX-5b/"),
        (TWO, "zai-org/cogvideox1.5-5b"),
        (attention(2048, 1), BASE_5B),
        (attention(2240, 1), BASE_2B),
        (FIVE, "black-forest-labs/FLUX.1-dev"),
        (TINY, "black-forest-labs/FLUX.1-dev"),
        (TINY, "Wan-AI/Wan2.1-T2V-14B"),
        (FIVE | {"proj_out": (64, 3072)}, "zai-org/CogVideoX1.5-5B"),
        (FIVE | {"patch_embed.proj": (3072, 32, 2, 2)}, BASE_5B),
    ],
)
def test_a_base_that_the_shapes_speak_against(
    modules: dict[str, tuple[int, ...]], base: str, tmp_path: Path, cli
) -> None:
    file = numbers(sparse(tmp_path / "x.safetensors", modules))
    words = ["convert", file, "--to", "diffusers", "--trained-scale", "0.5", "-o", tmp_path / "o.safetensors"]
    refused = cli(*words, "--base-model", base)
    assert refused.exit_code == 1
    assert "the adapter is not for" in refused.stderr
    assert not (tmp_path / "o.safetensors").exists()
    line = re.search(r"try: loraforge (.*)", refused.stderr)
    assert line is not None
    assert cli(*shlex.split(line[1].partition("   #")[0])).exit_code == 0
    assert cli(*words, "--architecture", "cogvideox", "--force").exit_code == 0
    pushed = cli("push", tmp_path / "o.safetensors", "me/x", "--base-model", base, "--dry-run")
    assert pushed.exit_code == 1
    recorded = sparse(tmp_path / "r.safetensors", modules, metadata={"base_model": base})
    for verb in (["convert", recorded, "--to", "peft", "-o", tmp_path / "p"], ["stamp", recorded]):
        done = cli(*verb, "--alpha", "2")
        assert done.exit_code == 1, done.output
        assert "the adapter is not for" in done.stderr
    said = cli("doctor", recorded, "--alpha", "2", "--architecture", "cogvideox")
    assert said.exit_code == 1
    assert said.stdout.startswith("wrong base: the adapter is not for")


def test_a_recorded_base_gives_way_to_a_right_one_that_is_typed(tmp_path: Path) -> None:
    file = sparse(tmp_path / "x.safetensors", FIVE, metadata={"base_model": BASE_2B})
    report = loraforge.convert(file, to="peft", alpha=4, base_model=BASE_5B, out=tmp_path / "o")
    assert report.base_model == BASE_5B


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("THUDM/CogVideoX-5b/", BASE_5B),
        ("THUDM/CogVideoX-5b", BASE_5B),
        ("https://huggingface.co/zai-org/CogVideoX-5b", BASE_5B),
        ("hf://zai-org/CogVideoX-5b", BASE_5B),
        ("zai-org/cogvideox-5B", BASE_5B),
        ("somebody/CogVideoX-5b", "somebody/CogVideoX-5b"),
    ],
)
def test_names_of_one_repository(typed: str, meant: str, tmp_path: Path) -> None:
    assert repository(typed) == meant
    file = sparse(tmp_path / "x.safetensors", FIVE)
    report = loraforge.convert(file, to="peft", alpha=4, base_model=typed, out=tmp_path / "o")
    assert report.base_model == meant


def test_an_unknown_repository_is_said_to_be_unchecked(tmp_path: Path) -> None:
    for n, repo in enumerate(("foo/bar", "alibaba-pai/CogVideoX-Fun-V1.1-5b-InP", "somebody/CogVideoX-5b")):
        file = sparse(tmp_path / f"{n}.safetensors", FIVE)
        report = loraforge.convert(file, to="peft", alpha=4, base_model=repo, out=tmp_path / f"o{n}")
        assert any(f"whether it fits {repo} is not checked" in note for note in report.notes)


@pytest.mark.parametrize(
    "typed", ["models/CogVideoX-5b", "checkpoints/5b", "./CogVideoX-5b", "/data/CogVideoX-5b", "a/b/c"]
)
def test_a_path_is_no_repository(typed: str, tmp_path: Path, cli) -> None:
    file = sparse(tmp_path / "x.safetensors", FIVE)
    refused = cli("convert", file, "--to", "peft", "--alpha", "4", "--base-model", typed, "-o", tmp_path / "o")
    assert refused.exit_code == 1
    line = re.search(r"try: loraforge (.*)", refused.stderr)
    assert bool(line) == typed.endswith("CogVideoX-5b")  # which model is meant by another one is not known
    assert line is None or cli(*shlex.split(line[1].partition("   #")[0])).exit_code == 0
    assert cli("push", file, "me/x", "--base-model", typed, "--dry-run").exit_code == 1
    recorded = sparse(tmp_path / "r.safetensors", FIVE, metadata={"base_model_name_or_path": typed})
    report = loraforge.convert(recorded, to="diffusers", alpha=4, out=tmp_path / "q.safetensors")
    assert report.base_model is None
    assert any("names no repository" in note for note in report.notes)


def test_a_folder_that_exists_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zai-org" / "CogVideoX-5b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert repository(BASE_5B) is None
    with pytest.raises(LoraforgeError, match="but a path"):
        loraforge.convert(sparse(tmp_path / "x.safetensors", FIVE), to="peft", alpha=4, base_model=BASE_5B)


def test_a_test_s_model_is_said_to_be_unchecked(tmp_path: Path) -> None:
    run = Case("sat_2b_r4").run(tmp_path)
    report = loraforge.convert(run, to="diffusers", base_model=BASE_5B, out=tmp_path / "o")
    assert any(f"{BASE_5B} is not checked" in note for note in report.notes)
    assert report.base_model == BASE_5B


def test_what_peft_records_is_checked(tmp_path: Path, cli) -> None:
    config = '{"peft_type": "LORA", "r": 4, "lora_alpha": 4, "base_model_name_or_path": "%s"}'
    for name, modules, verdict in (("THUDM/CogVideoX-2b", FIVE, "wrong base"), ("THUDM/CogVideoX-5b", FIVE, "")):
        folder = tmp_path / name.rpartition("/")[2]
        sparse(folder / "adapter_model.safetensors", modules, prefix="base_model.model.")
        (folder / "adapter_config.json").write_text(config % name)
        done = cli("doctor", folder)
        assert done.stdout.startswith(verdict)
        assert done.stdout.startswith("wrong base") == bool(verdict)
        out = tmp_path / f"{folder.name}-o"
        assert cli("convert", folder, "--to", "diffusers", "-o", out).exit_code == bool(verdict)
