"""A folder is told by what it holds, not by what its files are called; parts of a model are no model."""

from __future__ import annotations

import hashlib
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.oracle import DATA, Case
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.errors import FileError, LoraforgeError
from loraforge.files import opening
from loraforge.files.opening import open_tensors
from loraforge.files.tensorfile import TensorFile
from loraforge.files.torch_read import read_torch

SILENT = DATA / "diffusers_save_lora_weights_nometa" / "pytorch_lora_weights.safetensors"
PEFT = DATA / "peft_plain"
CHECKPOINT = "mp_rank_00_model_states.pt"


def lines(output: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in re.findall(r"try: loraforge ([^\n]*)", output)]


@pytest.mark.parametrize("name", ["my_style_000001000.safetensors", "日本 lora.safetensors", "X.SAFETENSORS"])
def test_the_one_adapter_of_a_folder_is_taken(name: str, tmp_path: Path, cli) -> None:
    (tmp_path / "out").mkdir()
    shutil.copy(SILENT, tmp_path / "out" / name)
    (tmp_path / "out" / "config.yaml").write_text("job: extension\n")
    (tmp_path / "out" / "notes.txt").write_text("x")
    done = cli("convert", tmp_path / "out", "--to", "diffusers", "--trained-scale", "0.5", "-o", tmp_path / "o")
    assert done.exit_code == 0 and f"note: took {name}, the only tensor file in out" in done.output
    said = cli("inspect", tmp_path / "out", "--iteration", "5")
    assert said.exit_code == 1 and "--iteration chooses among the checkpoints of a run" in said.output
    assert cli(*lines(said.output)[0]).exit_code == 0


def test_what_is_no_adapter_beside_it_does_not_count(tmp_path: Path, cli) -> None:
    shutil.copy(SILENT, tmp_path / "style.safetensors")
    save_file({"encoder.conv_in.weight": np.ones((2, 2), np.float32)}, tmp_path / "vae.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"x" * 9)
    done = cli("inspect", tmp_path)
    assert done.exit_code == 0 and "took style.safetensors, the only adapter in" in done.output


def test_several_are_named_each_with_a_line_that_runs(tmp_path: Path, cli) -> None:
    for name in ("one.safetensors", "two.safetensors"):
        shutil.copy(SILENT, tmp_path / name)
    done = cli("inspect", tmp_path)
    assert done.exit_code == 1 and "holds 2 adapters: one.safetensors, two.safetensors. Which?" in done.output
    assert [cli(*line).exit_code for line in lines(done.output)] == [0, 0]


def test_a_folder_without_any_says_what_is_there(tmp_path: Path, cli) -> None:
    for n in (1, 2):
        save_file({f"encoder.{n}.weight": np.ones((2, 2), np.float32)}, tmp_path / f"v{n}.safetensors")
    done = cli("inspect", tmp_path)
    assert "2 tensor files, none of them an adapter: v1.safetensors, v2.safetensors" in done.output
    (tmp_path / "v2.safetensors").unlink()
    assert "holds no adapter of a format this version reads" in cli("inspect", tmp_path).output


def cache(folder: Path, *, main: bool = True, snapshots: int = 1) -> Path:
    """A repository in the Hub's cache: links to blobs."""
    repo = folder / "models--user--style"
    (repo / "blobs").mkdir(parents=True)
    (repo / "refs").mkdir()
    for letter in "ab"[:snapshots]:
        place = repo / "snapshots" / (letter * 40)
        place.mkdir(parents=True)
        for file in (PEFT / "adapter_model.safetensors", PEFT / "adapter_config.json"):
            blob = repo / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
            shutil.copy(file, blob)
            (place / file.name).symlink_to(Path("../../blobs") / blob.name)
    if main:
        (repo / "refs" / "main").write_text("a" * 40)
    return repo


def test_a_folder_of_the_hubs_cache_is_its_main(tmp_path: Path, cli) -> None:
    for n, options in enumerate(({}, {"main": False}, {"snapshots": 2})):
        found = loraforge.inspect(cache(tmp_path / str(n), **options))  # type: ignore[arg-type]
        assert found.scale.provenance == "recorded" and "took the snapshot aaaaaaaaaaaa" in found.notes[0]  # type: ignore[union-attr]
    done = cli("inspect", cache(tmp_path / "x", main=False, snapshots=2))
    assert done.exit_code == 1 and "2 snapshots and no main" in done.output
    assert [cli(*line).exit_code for line in lines(done.output)] == [0, 0]


def test_an_adapter_inside_a_model_that_was_saved_with_it(tmp_path: Path) -> None:
    whole = {}
    for key, value in load_file(SILENT).items():
        path, _, end = key.removeprefix("transformer.").partition(".lora_")
        whole[f"{path}.lora_{end.replace('.weight', '.default.weight')}"] = value
        whole[f"{path}.base_layer.weight"] = np.ones((64, 64), np.float32)
    save_file(whole, tmp_path / "diffusion_pytorch_model.safetensors")
    found = loraforge.read(tmp_path / "diffusion_pytorch_model.safetensors", trained_scale=0.5)
    assert any("took the adapter out of a model that was saved with its LoRA layers" in note for note in found.notes)
    loraforge.convert(
        tmp_path / "diffusion_pytorch_model.safetensors", "diffusers", out=tmp_path / "o", trained_scale=0.5
    )
    loraforge.convert(SILENT, "diffusers", out=tmp_path / "p", trained_scale=0.5)
    one, other = (load_file(tmp_path / x / "pytorch_lora_weights.safetensors") for x in "op")
    assert all(np.array_equal(one[key], other[key]) for key in one | other)


def run(tmp_path: Path) -> Path:
    """SAT's iteration folder."""
    return next(Case("sat_2b_r4").run(tmp_path).rglob(CHECKPOINT)).parent


def refused(cli, file: Path, tmp_path: Path) -> None:
    base = DATA / "bases" / "2b"
    for verb in (
        ["convert", file, "--to", "diffusers", "--alpha", "1", "-o", tmp_path / "o"],
        ["inspect", file], ["doctor", file], ["verify", file, file],
        ["convert-base", file, "--to", "diffusers", "-o", tmp_path / "o"],
        ["fuse", base, file, "--alpha", "1", "-o", tmp_path / "o"], ["fuse", file, SILENT, "-o", tmp_path / "o"],
        ["convert", SILENT, "--trained-scale", "1", "--to", "sat", "--base", file, "-o", tmp_path / "o"],
    ):  # fmt: skip
        done = cli(*verb)
        said = "model parallelism" in done.output or "one part of a model" in done.output
        assert done.exit_code == 1 and said, (verb, done.output)
        assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("name", ["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"])
def test_a_part_of_a_model_cut_over_ranks(name: str, tmp_path: Path, cli) -> None:
    folder = run(tmp_path)
    shutil.copy(folder / CHECKPOINT, folder / "mp_rank_01_model_states.pt")
    for given in (folder / name, folder):
        done = cli("convert", given, "--to", "diffusers", "--alpha", "1", "-o", tmp_path / "o")
        assert done.exit_code == 1 and "model parallelism" in done.output and not (tmp_path / "o").exists()
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(folder / CHECKPOINT, alone / "mp_rank_01_model_states.pt")
    assert "it is not the first" in cli("inspect", alone / "mp_rank_01_model_states.pt").output


def test_a_renamed_part_says_so_itself(tmp_path: Path, cli, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(run(tmp_path) / CHECKPOINT, tmp_path / "style.pt")
    assert cli("inspect", tmp_path / "style.pt").exit_code == 0

    def of_two(path: Path) -> TensorFile:
        file = read_torch(path)
        file.counts = {"mp_world_size": 2}
        return file

    monkeypatch.setattr(opening, "CONTAINERS", (opening.CONTAINERS[0]._replace(open=of_two), opening.CONTAINERS[1]))
    refused(cli, tmp_path / "style.pt", tmp_path)


def test_the_numbers_of_a_checkpoint_are_read(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    said = {"module": {"x": torch.zeros(2)}, "mp_world_size": 4, "iteration": 7, "flag": True, "other": "x"}
    torch.save(said, tmp_path / "a.pt")
    assert open_tensors(tmp_path / "a.pt")[0].counts == {"mp_world_size": 4, "iteration": 7}


def test_a_released_folder_of_sat(tmp_path: Path, cli) -> None:
    released = tmp_path / "CogVideoX-2b-sat"
    shutil.copytree(run(tmp_path), released / "transformer" / "1")
    (released / "transformer" / "latest").write_bytes("1".encode("utf-16"))
    (released / "vae").mkdir()
    (released / "vae" / "3d-vae.pt").write_bytes(b"x")
    done = cli("convert-base", released, "--to", "diffusers", "-o", tmp_path / "d")
    assert "took transformer of CogVideoX-2b-sat" in done.output and "no SAT checkpoint" not in done.output
    shutil.copytree(released / "transformer", released / "transformer_i2v")
    done = cli("convert-base", released, "--to", "diffusers", "-o", tmp_path / "e")
    assert done.exit_code == 1 and "in transformer, transformer_i2v: which?" in done.output
    assert [line[:2] for line in lines(done.output)] == [
        ["convert-base", str(released / name)] for name in ("transformer", "transformer_i2v")
    ]


@pytest.mark.parametrize("text", ["\ufeff1", "1\r\n", " 1 "])
def test_latest_as_editors_write_it(text: str, tmp_path: Path) -> None:
    folder = run(tmp_path).parent
    number = next(child.name for child in folder.iterdir() if child.is_dir())
    (folder / "latest").write_text(text.replace("1", number), "utf-8")
    assert loraforge.inspect(folder).format == "sat"


def test_deepspeeds_own_tag(tmp_path: Path) -> None:
    shutil.copytree(run(tmp_path), tmp_path / "d" / "global_step5")
    assert "took iteration global_step5 of d, the newest" in loraforge.inspect(tmp_path / "d").notes[0]


def test_a_zero_3_piece_is_still_refused(tmp_path: Path) -> None:
    folder = run(tmp_path)
    (folder / CHECKPOINT).rename(folder / f"zero_pp_rank_0_{CHECKPOINT}")
    with pytest.raises(FileError, match="ZeRO-3"):
        loraforge.read(folder)
    assert issubclass(FileError, LoraforgeError)


def test_a_file_under_the_name_of_another_format(tmp_path: Path) -> None:
    """PEFT's tensors, called as Diffusers calls its file: the folder and the file are read alike."""
    shutil.copytree(DATA / "peft_plain", tmp_path / "a")
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "a" / "pytorch_lora_weights.safetensors")
    for source in (tmp_path / "a", tmp_path / "a" / "pytorch_lora_weights.safetensors"):
        assert loraforge.inspect(source).format == "peft"
        assert loraforge.verify(source, DATA / "peft_plain").same


def test_a_number_that_a_file_and_a_folder_have_is_told(tmp_path: Path, cli) -> None:
    """Not what the file of the two is called, which only one of the formats looked at."""
    (tmp_path / "checkpoint-10").mkdir()
    shutil.copy(SILENT, tmp_path / "checkpoint-10" / SILENT.name)
    shutil.copy(SILENT, tmp_path / "checkpoint-10.safetensors")
    done = cli("convert", tmp_path, "--to", "peft", "-o", tmp_path / "out")
    assert done.exit_code == 1 and "have the same number" in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["checkpoint-{}.safetensors", "{:07d}_adapters.safetensors"])
def test_the_newest_of_numbered_files(name: str, tmp_path: Path) -> None:
    for number in (9, 10):
        shutil.copy(SILENT, tmp_path / name.format(number))
    assert Path(loraforge.inspect(tmp_path).path).name == name.format(10)
    assert Path(loraforge.inspect(tmp_path, iteration=9).path).name == name.format(9)


def test_no_model_is_offered_that_would_not_show_what_it_is(cli) -> None:
    """No released model has this width: to state one would be refused again."""
    done = cli("push", SILENT, "me/x", "--dry-run", "--trained-scale", "1")
    assert done.exit_code == 1 and "--architecture cogvideox" in done.stderr and "--base-model" not in done.stderr
