"""Run folders that name what is not there, or hold a checkpoint in pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostile.builders import CHECKPOINT, deepspeed, diffusers_lora, numbers, run_folder, safetensors, sat

LATEST = {
    "a folder that is missing": ("2000", "2000"),
    "nothing": ("", "latest"),
    "blanks": (" \n\n", "latest"),
    "a path out of the run": ("../other", "../other"),
    "an absolute path": ("/etc", "/etc"),
    "the run itself": (".", "'.'"),
    "two names": ("500\n1000", "500"),
    "noise": ("\x00\x01\x02\x1b[2J", "latest"),
    "a sentence": ("x" * 100_000, "latest"),
    "a folder without a checkpoint": ("empty", "empty"),
}


@pytest.mark.parametrize(("latest", "fragment"), LATEST.values(), ids=LATEST)
def test_latest_names(tmp_path: Path, refused, latest: str, fragment: str):
    run = run_folder(tmp_path / "run", "500", "1000", latest=latest)
    run_folder(tmp_path / "other", "1000")
    (run / "empty").mkdir()
    refused(run, fragment)


def test_latest_that_is_not_text(tmp_path: Path, refused):
    run = run_folder(tmp_path / "run", "1000")
    (run / "latest").write_bytes(b"\xff\xfe\x00")
    refused(run, "latest")


def test_latest_beside_nothing(tmp_path: Path, refused):
    refused(run_folder(tmp_path / "run", latest="1000"), "1000")
    refused([tmp_path / "run", "--iteration", 1000], "1000")


CHOICES = {
    "an iteration that is missing": (["--iteration", 700], "700"),
    "an iteration of its own sign": (["--iteration", -1000], "-1000"),
    "an iteration of 30 digits": (["--iteration", 10**30], "1000000"),
    "averaged weights that are missing": (["--ema"], "-ema"),
    "averaged weights of an iteration": (["--ema", "--iteration", 1000], "-ema"),
    "another format": (["--from", "diffusers"], "diffusers"),
}


@pytest.mark.parametrize(("words", "fragment"), CHOICES.values(), ids=CHOICES)
def test_a_choice_the_run_has_not(tmp_path: Path, refused, words: list[object], fragment: str):
    refused([run_folder(tmp_path / "run", "500", "1000", latest="1000"), *words], fragment)


PIECES = {
    "model parallel": ((CHECKPOINT, "mp_rank_01_model_states.pt"), "parallel"),
    "the second part of two": (("mp_rank_01_model_states.pt",), "parallel"),
    "ZeRO-3": (("zero_pp_rank_0_mp_rank_00_model_states.pt",), "ZeRO-3"),
    "ZeRO-3 of two ranks": (tuple(f"zero_pp_rank_{n}_mp_rank_00_model_states.pt" for n in range(2)), "ZeRO-3"),
    "ZeRO-3 beside a whole one": ((CHECKPOINT, "zero_pp_rank_0_mp_rank_00_model_states.pt"), "ZeRO-3"),
    "ZeRO-3 of an older kind": (("z3_rank_0_model_states.pt",), "ZeRO-3"),
    "pipeline stages": (("layer_00-model_states.pt", "layer_01-model_states.pt"), "layer_00"),
}


@pytest.mark.parametrize(("names", "fragment"), PIECES.values(), ids=PIECES)
def test_a_checkpoint_in_pieces(tmp_path: Path, refused, names: tuple[str, ...], fragment: str):
    folder = run_folder(tmp_path / "run", "1000", latest="1000") / "1000"
    (folder / CHECKPOINT).unlink()
    for name in names:
        (folder / name).write_bytes(sat())
    refused(tmp_path / "run", fragment)
    refused(folder, fragment)


def test_a_piece_of_zero_3_given_by_name(tmp_path: Path, refused):
    """Its `module` has the names, and empty tensors for the weights."""
    file = tmp_path / "zero_pp_rank_0_mp_rank_00_model_states.pt"
    module = {"transformer.layers.0.attention.dense.matrix_A.0": numbers(0)}
    file.write_bytes(deepspeed(module, param_shapes=[{}]))
    refused(file, "attention.dense")


def test_a_checkpoint_that_is_a_folder(tmp_path: Path, refused):
    (tmp_path / "run" / "1000" / CHECKPOINT).mkdir(parents=True)
    (tmp_path / "run" / "latest").write_text("1000")
    refused(tmp_path / "run", "1000")


def test_a_folder_of_two_adapters(tmp_path: Path, refused):
    run = run_folder(tmp_path / "run", "1000", latest="1000")
    (run / "pytorch_lora_weights.safetensors").write_bytes(safetensors(diffusers_lora()))
    refused(run, CHECKPOINT, "pytorch_lora_weights.safetensors")


def test_a_damaged_checkpoint_in_a_healthy_run(tmp_path: Path, refused):
    run = run_folder(tmp_path / "run", "500", "1000", latest="1000")
    whole = (run / "1000" / CHECKPOINT).read_bytes()
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        (run / "1000" / CHECKPOINT).write_bytes(whole[:size])
        refused(run, CHECKPOINT)


@pytest.mark.parametrize("number", ["0100", "\u0661\u0660"], ids=["a leading zero", "digits of another script"])
def test_iterations_written_oddly(tmp_path: Path, cli, number: str):
    """SAT writes no such name; but it is the only one with a checkpoint, and that is said."""
    done = cli("convert", run_folder(tmp_path / "run", number), "--to", "diffusers", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert f"took iteration {number} of run, the newest" in done.stderr
