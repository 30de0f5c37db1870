"""Cases beside the examples by which faults were found: another input of the same kind, right by the same rule."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.oracle import DATA
from helpers.scalefiles import PATHS, adapter
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.errors import HubError, LoraforgeError


def of_blocks(blocks: Iterable[int], width: int) -> dict[str, np.ndarray]:
    """One module in each of these blocks."""
    tensors = dict[str, np.ndarray]()
    for n in blocks:
        stem = f"transformer.transformer_blocks.{n}.attn1.to_q"
        tensors[f"{stem}.lora_A.weight"] = np.ones((1, width), np.float32)
        tensors[f"{stem}.lora_B.weight"] = np.ones((width, 1), np.float32)
    return tensors


COGVIDEOX = ("--architecture", "cogvideox")


def remedies(text: str) -> list[list[str]]:
    """The lines that a refusal offers, as words."""
    lines = [line.strip().removeprefix("try: ") for line in text.splitlines() if line.strip().startswith("try: ")]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("loraforge ")]


@pytest.mark.parametrize("said", [{"lora_alpha": "4"}, {"network_alpha": "16"}, {"lora_alpha": "4", "use_rslora": "1"}])
def test_an_alpha_without_a_rank_is_no_word_against_transposed_factors(
    said: dict[str, str], tmp_path: Path, cli: Any
) -> None:
    whole = load_file(adapter(tmp_path / "whole.safetensors"))
    save_file({k: np.ascontiguousarray(v.T) for k, v in whole.items()}, tmp_path / "x.safetensors", said)
    done = cli("convert", tmp_path / "x.safetensors", "--to", "peft", "-o", tmp_path / "out", *COGVIDEOX)
    assert done.exit_code == 1 and "transposed" in done.stderr
    save_file(whole, tmp_path / "x.safetensors", said)
    assert cli("convert", tmp_path / "x.safetensors", "--to", "peft", "-o", tmp_path / "out", *COGVIDEOX).exit_code == 0


@pytest.mark.parametrize("rank", ["r", "lora_rank", "ss_network_dim"])
def test_a_recorded_rank_is(rank: str, tmp_path: Path) -> None:
    alpha = "ss_network_alpha" if rank.startswith("ss") else "lora_alpha"
    source = adapter(tmp_path / "x.safetensors", {alpha: "4", rank: "128"}, rank=128)
    assert loraforge.read(source, architecture="cogvideox").modules


@pytest.mark.parametrize("kept", [4, 6, 10])
def test_a_shard_that_was_renamed_beside_its_index_is_a_part(kept: int, tmp_path: Path, cli: Any) -> None:
    tensors = load_file(adapter(tmp_path / "whole.safetensors"))
    (tmp_path / "whole.safetensors").unlink()
    names, first = sorted(tensors), tmp_path / "style.safetensors"
    save_file({name: tensors[name] for name in names[:kept]}, first, {"lora_alpha": "4"})
    places = {name: f"x-0000{1 + (n >= kept)}-of-00002.safetensors" for n, name in enumerate(names)}
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    done = cli("convert", first, "--to", "peft", "-o", tmp_path / "out", *COGVIDEOX)
    assert done.exit_code == 1 and f"{kept} of the {len(names)}" in done.stderr
    assert not (tmp_path / "out").exists()
    (tmp_path / "x.safetensors.index.json").unlink()
    assert cli("inspect", first, *COGVIDEOX).exit_code == 0


def test_an_index_of_another_adapter_makes_no_part(tmp_path: Path, cli: Any) -> None:
    source = adapter(tmp_path / "style.safetensors", {"lora_alpha": "4"})
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps({"weight_map": {"other": "x-1.safetensors"}}))
    assert cli("inspect", source, *COGVIDEOX).exit_code == 0


@pytest.mark.parametrize("start", ["transformer.", "diffusion_model.", "model.diffusion_model.", ""])
@pytest.mark.parametrize("pattern", ["*.diff", "*.proj_out.diff", "*.proj_out.*", "*proj_out*"])
def test_a_star_stands_for_what_is_before_a_path(start: str, pattern: str, tmp_path: Path) -> None:
    if not start and pattern.startswith("*.proj_out"):
        pytest.skip("no dot stands before it")
    source = adapter(tmp_path / "x.safetensors", {"lora_alpha": "4"})
    save_file(load_file(source) | {f"{start}proj_out.diff": np.ones((4, 4), np.float32)}, source, {"lora_alpha": "4"})
    assert len(loraforge.read(source, architecture="cogvideox", drop=[pattern]).modules) == len(PATHS)


@pytest.mark.parametrize("pattern", ["*diffusion*", "*model.*", "*.transformer.*"])
def test_and_means_none_of_it(pattern: str, tmp_path: Path) -> None:
    source = adapter(tmp_path / "x.safetensors", {"lora_alpha": "4"})
    with pytest.raises(LoraforgeError, match="matches no module"):
        loraforge.read(source, architecture="cogvideox", drop=[pattern])


UNREADABLE = {
    "a word": ({"lora_alpha": "eight"}, "lora_alpha 'eight'"),
    "a list": ({"network_alpha": "[8]"}, "network_alpha '[8]'"),
    "a comma": ({"transformer.lora_alpha": "8,0"}, "lora_alpha '8,0'"),
    "a list of configurations": ({"lora_adapter_metadata": '[{"r": 4, "lora_alpha": 8}]'}, "lora_adapter_metadata is"),
}


@pytest.mark.parametrize(("metadata", "said"), UNREADABLE.values(), ids=UNREADABLE)
def test_what_cannot_be_read_is_not_called_absent(
    metadata: dict[str, str], said: str, tmp_path: Path, cli: Any
) -> None:
    source = adapter(tmp_path / "x.safetensors", metadata)
    done = cli("convert", source, "--to", "peft", "-o", tmp_path / "out", *COGVIDEOX)
    assert done.exit_code == 1 and said in done.stderr and "no alpha is recorded" not in done.stderr
    assert cli("convert", source, "--to", "peft", "-o", tmp_path / "out", *COGVIDEOX, "--alpha", 8).exit_code == 0


@pytest.mark.parametrize("unset", ["", "None", "Dynamic"])
def test_what_says_nothing_is(unset: str, tmp_path: Path, cli: Any) -> None:
    source = adapter(tmp_path / "x.safetensors", {"ss_network_alpha": unset})
    assert "no alpha is recorded" in cli("convert", source, "--to", "peft", "-o", tmp_path / "o", *COGVIDEOX).stderr


@pytest.mark.parametrize(
    "output", ["run/checkpoint-5", "/data/run/checkpoint-5/", "C:\\data\\run\\checkpoint-5", "run"]
)
def test_the_folder_of_the_file_itself_is_no_other_run(output: str, tmp_path: Path) -> None:
    source = adapter(tmp_path / "run/checkpoint-5/x.safetensors")
    (tmp_path / "run/args.yaml").write_text(f"rank: 4\nlora_alpha: 8\noutput_dir: {output}\n")
    assert loraforge.read(source, architecture="cogvideox").scale.provenance == "recorded"
    (tmp_path / "run/other").mkdir()
    (tmp_path / "run/args.yaml").write_text("rank: 4\nlora_alpha: 8\noutput_dir: runs/other\n")
    with pytest.raises(LoraforgeError, match="does not record"):
        loraforge.read(source, architecture="cogvideox")


@pytest.mark.parametrize(("near", "far"), [(8, 16), (4, 1), (16, 8)])
def test_two_configurations_of_one_run_that_disagree_are_candidates(
    near: int, far: int, tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    adapter(Path("run/checkpoint-5/x.safetensors"))
    words = ("convert", "run/checkpoint-5/x.safetensors", "--to", "peft", *COGVIDEOX, "-o", "out")
    for folder, alpha in (("run/checkpoint-5", near), ("run", far)):
        Path(folder, "args.yaml").write_text(f"rank: 4\nlora_alpha: {alpha}\n")
    done = cli(*words)
    assert done.exit_code == 1
    named = [line[line.index("--training-config") + 1] for line in remedies(done.stderr) if "--training-config" in line]
    assert named == ["run/checkpoint-5/args.yaml", "run/args.yaml"]
    Path("run/args.yaml").write_text(f"rank: 4\nlora_alpha: {near}\n")
    assert cli(*words).exit_code == 0


@pytest.mark.parametrize(
    "base", ["THUDM/CogVideoX-2b", "thudm/cogvideox-2B", "ZAI-ORG/COGVIDEOX-2B/", "hf://Thudm/CogVideoX-2b"]
)
def test_a_base_model_is_known_in_any_spelling(base: str, tmp_path: Path, cli: Any) -> None:
    wide = of_blocks(range(42), 3072)
    save_file(wide, tmp_path / "x.safetensors", {"lora_alpha": "1"})
    done = cli("convert", tmp_path / "x.safetensors", "--to", "peft", "-o", tmp_path / "out", "--base-model", base)
    assert done.exit_code == 1 and "not for zai-org/CogVideoX-2b" in done.stderr


@pytest.mark.parametrize("base", ["zai-org/CogVideoX-5b", "THUDM/CogVideoX-5b", "me/tuned"])
def test_a_folder_of_that_name_is_told_from_the_repository(
    base: str, tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(base).mkdir(parents=True)
    source = adapter(tmp_path / "x.safetensors", {"lora_alpha": "4"})
    done = cli("convert", source, "--to", "peft", "-o", "out", *COGVIDEOX, "--base-model", base)
    assert done.exit_code == 1 and "but a path: a folder here" in done.stderr
    (line,) = remedies(done.stderr)
    assert cli(*line).exit_code == 0, line


@pytest.mark.parametrize("base", ["", " ", "/"])
def test_an_empty_base_model_is_refused(base: str, tmp_path: Path, cli: Any) -> None:
    source = adapter(tmp_path / "x.safetensors", {"lora_alpha": "4"})
    done = cli("convert", source, "--to", "peft", "-o", tmp_path / "out", *COGVIDEOX, "--base-model", base)
    assert done.exit_code == 1 and "no Hub id" in done.stderr


@pytest.mark.parametrize(("blocks", "over"), [((0, 30), [30]), ((3, 29, 30, 31), [30, 31]), ((1, 41, 35), [35, 41])])
def test_blocks_beyond_are_left_out_by_one_line(
    blocks: tuple[int, ...], over: list[int], tmp_path: Path, cli: Any
) -> None:
    done, again = beyond(blocks, tmp_path, cli)
    assert done.exit_code == 1 and all(f"*.{number}.*" in done.stderr for number in over)
    assert again and again[0].exit_code == 0


@pytest.mark.parametrize("blocks", [(999,), (30, 31), tuple(range(48))])
def test_where_that_leaves_nothing_or_too_many_it_is_not_offered(
    blocks: tuple[int, ...], tmp_path: Path, cli: Any
) -> None:
    done, _ = beyond(blocks, tmp_path, cli)
    assert done.exit_code == 1 and "of its width, has 30 blocks" in done.stderr and "--drop" not in done.stderr


def beyond(blocks: tuple[int, ...], place: Path, cli: Any) -> tuple[Any, list[Any]]:
    tensors = of_blocks(blocks, 1920)
    save_file(tensors, place / "x.safetensors", {"lora_alpha": "1"})
    done = cli("convert", place / "x.safetensors", "--to", "peft", "-o", place / "out", *COGVIDEOX)
    return done, [cli(*line) for line in remedies(done.stderr) if "--drop" in line]


NO_BRANCH = ["", "a b", "a..b", "-x", "main@{1}", "/x", "x/", "x.lock", "a\\b", "x" * 300]


@pytest.mark.parametrize("name", NO_BRANCH)
def test_a_revision_that_no_branch_can_have_is_refused_before_anything_is_asked(name: str, tmp_path: Path) -> None:
    source = adapter(tmp_path / "x.safetensors", {"lora_alpha": "4"})
    with pytest.raises(HubError, match="no name that a branch can have"):
        loraforge.push(source, "me/x", revision=name, dry_run=True)


@pytest.mark.parametrize("name", ["a b", "a..b", "x.lock"])
def test_in_an_address_too_and_the_remedy_is_another_repository_line(name: str, tmp_path: Path) -> None:
    source = adapter(tmp_path / "x.safetensors", {"lora_alpha": "4"})
    with pytest.raises(HubError, match=r"no name that a branch|no revision|no name of a repository") as refused:
        loraforge.push(source, f"me/x@{name}", dry_run=True)
    assert [(remedy.command, remedy.instead) for remedy in refused.value.remedies] == [("me/x", f"me/x@{name}")]


@pytest.mark.parametrize(
    "address", ["https://user:word@huggingface.co/me/x", "https://user@huggingface.co/me/x/tree/dev"]
)
def test_a_password_in_an_address_is_not_thrown_away(address: str, tmp_path: Path) -> None:
    source = adapter(tmp_path / "x.safetensors", {"lora_alpha": "4"})
    with pytest.raises(HubError, match="not used"):
        loraforge.push(source, address, dry_run=True)


@pytest.mark.parametrize("zero", ["lora_B", "lora_A", "both"])
def test_an_adapter_that_does_nothing_is_told_of(zero: str, tmp_path: Path) -> None:
    shutil.copytree(DATA / "peft_plain", tmp_path / "a")
    file = tmp_path / "a" / "adapter_model.safetensors"
    tensors = load_file(file)
    save_file({k: t * (zero != "both" and zero not in k) for k, t in tensors.items()}, file)
    for source, told in ((tmp_path / "a", True), (DATA / "peft_plain", False)):
        report = loraforge.convert(source, to="diffusers", out=tmp_path / f"{told}")
        assert any("its update is zero" in note for note in report.notes) == told
