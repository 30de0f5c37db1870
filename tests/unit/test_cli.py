"""What a user sees: help, streams, exit codes, remedies that run."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch
from helpers.oracle import DATA, Case
from helpers.sat import lora_tensors, write_run
from safetensors.numpy import save_file

import loraforge
from loraforge.files.opening import open_tensors
from loraforge.format.registry import FORMATS


def test_results_to_stdout_and_the_rest_to_stderr(tmp_path: Path, cli) -> None:
    run = Case("sat_2b_r4").run(tmp_path)
    result = cli("convert", run, "--to", "diffusers", "-o", tmp_path / "out")
    assert result.exit_code == 0
    assert result.stderr.startswith("note: took iteration 1000")
    for word in ("strength", "load", "not with", "base"):
        assert f"\n  {word} " in result.stdout
    assert "1.0 acts as trained" in result.stdout
    assert (
        f"read at scale 1/4 = 0.25 (recorded: r 4, lora_alpha not set: SAT's default 1, in {run}/training_config.yaml)"
        in result.stdout
    )
    assert "load_cogvideox_lora.py" in result.stdout


def test_an_existing_file_is_kept_unless_forced(tmp_path: Path, cli) -> None:
    run, out = Case("sat_2b_r4").run(tmp_path), tmp_path / "out.safetensors"
    out.write_text("mine")
    result = cli("convert", run, "--to", "diffusers", "-o", out)
    assert result.exit_code == 1
    assert out.read_text() == "mine"
    for line in re.findall(r"try: loraforge (.*?)   #", result.stderr):
        assert cli(*shlex.split(line)).exit_code == 0
    assert out.read_bytes()[:2] != b"mi"


def test_dry_run_writes_nothing_and_says_everything_else(tmp_path: Path, cli) -> None:
    run = Case("sat_2b_r4").run(tmp_path)
    dry = json.loads(cli("convert", run, "--to", "diffusers", "-o", tmp_path / "out", "--dry-run", "--json").stdout)
    assert not (tmp_path / "out").exists()
    wet = json.loads(cli("convert", run, "--to", "diffusers", "-o", tmp_path / "out", "--json").stdout)
    assert (dry["worst_error"], dry["output"]["written"]) == (None, False)
    assert (wet["worst_error"], wet["output"]["written"]) == (0.0, True)
    assert {**dry, "worst_error": 0, "output": 0} == {**wet, "worst_error": 0, "output": 0}
    assert (
        "not written, not compared"
        in cli("convert", run, "--to", "diffusers", "-o", tmp_path / "x", "--dry-run").stdout
    )


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_dtype(dtype: str, case: Case, tmp_path: Path) -> None:
    report = loraforge.convert(case.run(tmp_path), to="diffusers", out=tmp_path / "out.safetensors", dtype=dtype)
    kinds = {tensor.dtype for tensor in safetensors.torch.load_file(tmp_path / "out.safetensors").values()}
    assert kinds == {{"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]}
    assert {step.kind for step in report.steps} == {"exact" if dtype == "fp32" else "rounded"}
    if dtype != "fp32":
        assert max(step.error for step in report.steps) < {"bf16": 4e-3, "fp16": 5e-4}[dtype]
        assert f"leave out --dtype {dtype}" in " ".join(report.notes)
        assert "same update as the source, to " in report.strength()


def test_numbers_that_overflow_float16_are_refused(tmp_path: Path, cli) -> None:
    tensors = {key: t * 1e9 for key, t in lora_tensors([0], hidden=16, rank=2).items()}
    result = cli(
        "convert", write_run(tmp_path, tensors), "--to", "diffusers", "-o", tmp_path / "out", "--dtype", "fp16"
    )
    assert result.exit_code == 1
    assert "overflow" in result.stderr
    line = re.search(r"try: loraforge (.*)", result.stderr)
    assert line is not None
    assert cli(*shlex.split(line[1])).exit_code == 0


def test_drop(tmp_path: Path, cli) -> None:
    run = Case("sat_2b_r4").run(tmp_path)
    report = loraforge.convert(run, to="diffusers", out=tmp_path / "out", drop=["*.dense"])
    assert report.dropped_modules == ("transformer.layers.0.attention.dense", "transformer.layers.1.attention.dense")
    assert "dropped transformer.layers.0.attention.dense" in "\n".join(report.lines())
    assert len(report.steps) == 6
    assert cli("convert", run, "--to", "diffusers", "--drop", "nothing*").exit_code == 1
    assert cli("convert", run, "--to", "diffusers", "--drop", "*").exit_code == 1


def test_scale_in_metadata_leaves_the_tensors_untouched(case: Case, tmp_path: Path) -> None:
    loraforge.convert(case.run(tmp_path), to="diffusers", out=tmp_path / "out.safetensors", scale_in="metadata")
    file, _ = open_tensors(next((case.folder / "sat_ckpt").glob("*/*.pt")))
    stored = sorted(bytes(file.raw(key)) for key in file.tensors if "matrix_" in key)
    result = safetensors.numpy.load_file(tmp_path / "out.safetensors")
    assert sorted(tensor.tobytes() for tensor in result.values()) == stored
    header = json.loads(loraforge.inspect(tmp_path / "out.safetensors").metadata["lora_adapter_metadata"])
    assert header["transformer.lora_alpha"] == case.manifest["lora_alpha"]
    assert header["transformer.r"] == case.manifest["rank"]


def test_the_header_is_minimal_and_full_paths(tmp_path: Path) -> None:
    case = Case("sat_2b_r4")
    loraforge.convert(
        case.run(tmp_path), to="diffusers", out=tmp_path / "out.safetensors", base_model="zai-org/CogVideoX-2b"
    )
    metadata = loraforge.inspect(tmp_path / "out.safetensors").metadata
    header = json.loads(metadata["lora_adapter_metadata"])
    assert header == {
        "transformer.r": 4,
        "transformer.lora_alpha": 4,
        "transformer.target_modules": sorted(case.deltas),
        "transformer.rank_pattern": {},
        "transformer.alpha_pattern": {},
    }
    origin = json.loads(metadata["loraforge"])
    assert origin["base_model"] == "zai-org/CogVideoX-2b"
    assert (
        origin["command"]
        == "loraforge convert mp_rank_00_model_states.pt --to diffusers --base-model zai-org/CogVideoX-2b"
    )


@pytest.mark.parametrize("words", [["convert"], ["nonsense"], ["verify"]])
def test_usage_errors_exit_with_2(words: list[str], cli) -> None:
    assert cli(*words).exit_code == 2


SOURCE = DATA / "sat_2b_r4" / "hf_export_unscaled"
UNKNOWN = {
    "a format to write": (["convert", SOURCE, "--to"], "Kohia", "kohya"),
    "a format that is read only": (["convert", SOURCE, "--to"], "other", ""),
    "a format to read": (["inspect", SOURCE, "--from"], "difusers", "diffusers"),
    "a program to write for": (["convert", SOURCE, "--for"], "comfyi", "comfyui"),
    "a program of doctor": (["doctor", SOURCE, "--runtime"], "cli_demo_old", "cli_demo-old"),
    "a program whose scale is kept": (["convert", SOURCE, "--to", "peft", "--as-in"], "difuser", "diffusers"),
    "a backend": (["fuse", SOURCE, SOURCE, "-o", "x", "--backend"], "nunpy", "numpy"),
    "an architecture": (["inspect", SOURCE, "--architecture"], "cogvideo", "cogvideox"),
    "an architecture to show": (["layouts"], "wam", "wan"),
    "nothing like it": (["convert", SOURCE, "--to"], "nonsense", ""),
}


@pytest.mark.parametrize("name", UNKNOWN)
@pytest.mark.parametrize("joined", [False, True])
def test_an_unknown_word_of_an_open_list_is_refused_with_the_nearest(name: str, joined: bool, cli) -> None:
    words, typed, meant = UNKNOWN[name]
    joined &= words[-1] != "layouts"
    end = [f"{words[-1]}={typed}"] if joined else [words[-1], typed]
    done = cli(*words[:-1], *end)
    assert done.exit_code == 1 and "Traceback" not in done.output
    assert re.search(rf"Error: there is no [\w ]+ '{typed}'( that is written)?; there are \w+, ", done.stderr), (
        done.stderr
    )
    assert ("Did you mean" in done.stderr) == bool(meant)
    if meant:
        assert f". Did you mean {meant}?" in done.stderr
        line = re.search(r"try: (.*?)(?:   #.*)?$", done.stderr, re.MULTILINE)
        assert line is not None
        mended = [*map(str, words), meant]
        assert shlex.split(line[1].replace("=", " ")) == ["loraforge", *mended]


def test_an_argument_that_may_be_left_out_stands_in_brackets(cli) -> None:
    assert "layouts [OPTIONS] [ARCHITECTURE] [COMMAND]" in cli("layouts", "--help").output
    assert "ARCHITECTURE" not in cli("layouts", "check", "--help").output.partition("\n")[0]


def test_snake_case_options_are_understood(tmp_path: Path, cli) -> None:
    run = Case("sat_2b_r4").run(tmp_path, config=False)
    assert (
        cli(
            "convert", run, "--to", "diffusers", "-o", tmp_path / "out", "--trained_scale", "0.25", "--dry_run"
        ).exit_code
        == 0
    )


def test_a_statement_of_scale_in_a_remedy_replaces_the_one_typed(tmp_path: Path, cli) -> None:
    """`--trained-by cogvideo` at another rank: the remedy says --alpha, and must run as printed."""
    source = DATA / "sat_2b_r4" / "hf_export_unscaled"
    for typed in (["--trained-by", "cogvideo"], ["--trained-by=cogvideo"]):
        result = cli("convert", source, "--to", "diffusers", "-o", tmp_path / "out", "--dry-run", *typed)
        line = re.search(r"try: loraforge (.*?)   #", result.stderr)
        assert line is not None
        assert "--trained-by" not in line[1]
        assert cli(*shlex.split(line[1])).exit_code == 0


def test_formats_and_version(cli) -> None:
    listed = {row["name"]: row for row in json.loads(cli("formats", "--json").stdout)}
    assert {name for name, row in listed.items() if row["reads"] and row["writes"]} == {
        form.name for form in FORMATS if form.writer
    }
    assert "diffusers" in cli("formats").stdout
    assert loraforge.__version__ in cli("--version").stdout


def test_inspect_names_what_a_file_is(cli) -> None:
    said = {
        DATA / "bases" / "2b" / "diffusion_pytorch_model.safetensors": "base model, one file of tensors",
        DATA / "bases" / "2b" / "sat_base": "base model, a SAT checkpoint",
        DATA / "bases" / "2b": "base model, a Diffusers model alone",
    }
    for path, words in said.items():
        result = cli("inspect", path)
        assert result.exit_code == 0
        assert words in result.stdout
    ambiguous = cli("inspect", DATA / "sat_2b_r4" / "hf_export_unscaled")
    assert ambiguous.exit_code == 0
    assert "scale    unknown (no alpha is recorded" in ambiguous.stdout
    assert "loaders apply 1.0" in ambiguous.stdout


def test_inspect_reads_headers_only(tmp_path: Path, cli) -> None:
    """A file whose tensors are a hole on the disk inspects the same, and quickly: nothing but the header is read."""
    run = write_run(tmp_path, lora_tensors(range(3), hidden=64, rank=4), lora={"r": 4})
    loraforge.convert(run, to="diffusers", out=tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    with (tmp_path / "b.safetensors").open("wb") as hole:
        hole.write(data[:start])
        hole.truncate(len(data))
    one, other = (cli("inspect", tmp_path / f"{name}.safetensors", "--json") for name in "ab")
    assert one.stdout.replace("a.safetensors", "b.safetensors") == other.stdout


def test_a_file_rebuilt_from_a_skeleton_inspects_the_same(case: Case, tmp_path: Path, cli) -> None:
    run = case.run(tmp_path)
    bones = json.loads(cli("inspect", run, "--skeleton").stdout)
    assert "numpy._core.multiarray._reconstruct" in bones["globals"]
    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64}
    tensors = {key: torch.zeros(info["shape"], dtype=kinds[info["dtype"]]) for key, info in bones["tensors"].items()}
    for wrapper in reversed(bones["wrappers"]):
        tensors = {wrapper: tensors}
    (tmp_path / "rebuilt").mkdir()
    torch.save(tensors, tmp_path / "rebuilt" / bones["name"])
    real, built = loraforge.inspect(run), loraforge.inspect(tmp_path / "rebuilt" / bones["name"])
    for field in ("format", "components", "targets", "ranks", "dtypes", "fits"):
        assert getattr(real, field) == getattr(built, field)


@pytest.mark.parametrize(
    "wrong",
    [
        {"to": "nonsense"},
        {"from_": "nonsense"},
        {"dtype": "int8"},
        {"scale_in": "air"},
        {"trained_by": "nobody"},
        {"base_model": "models/x/y"},
    ],
)
def test_the_python_api_refuses_unknown_values(wrong: dict, tmp_path: Path) -> None:
    run = Case("sat_2b_r4").run(tmp_path)
    with pytest.raises(loraforge.LoraforgeError):
        loraforge.convert(run, **{"to": "diffusers", "out": tmp_path / "out", **wrong})
    assert not (tmp_path / "out").exists()


def test_float16_that_must_be_rounded_names_both_ways_out(tmp_path: Path) -> None:
    """What was lost is measured, and how to lose nothing is said."""
    run = write_run(tmp_path, lora_tensors([0], hidden=64, rank=96, dtype=torch.float16), lora={"r": 96})
    report = loraforge.convert(run, to="diffusers", out=tmp_path / "out")
    assert {step.kind for step in report.steps} == {"rounded"}
    assert "4 rounded, at worst " in "\n".join(report.lines())
    (advice,) = [note for note in report.notes if "rounding" in note]
    assert "--dtype fp32" in advice
    assert "--scale-in metadata" in advice
    for way in ({"dtype": "fp32"}, {"scale_in": "metadata"}):
        better = loraforge.convert(run, to="diffusers", out=tmp_path / "better", force=True, **way)
        assert max(step.error for step in better.steps) < 1e-7


def test_help_keeps_its_examples_on_their_lines(cli) -> None:
    for command, line in {
        (): "  loraforge inspect RUN                  what is it",
        ("convert",): "  loraforge convert runs/lora-disney-11-20-10-00 --to diffusers\n",
        ("inspect",): "  loraforge inspect pytorch_lora_weights.safetensors --json\n",
    }.items():
        assert line in cli(*command, "--help").stdout


def test_inside_the_run_folder_the_remedy_is_beside_it(tmp_path: Path, cli, monkeypatch) -> None:
    run = Case("sat_2b_r4").run(tmp_path)
    monkeypatch.chdir(run)
    result = cli("convert", ".", "--to", "diffusers")
    assert result.exit_code == 1
    line = re.search(r"try: loraforge (.*?)   #", result.stderr)
    assert line is not None
    assert cli(*shlex.split(line[1])).exit_code == 0
    assert (tmp_path / "lora-disney-11-20-10-00-1000-diffusers" / "pytorch_lora_weights.safetensors").is_file()


def test_a_remedy_takes_the_place_of_the_option_it_contradicts(tmp_path: Path, cli) -> None:
    run = Case("sat_2b_r4").run(tmp_path)
    out = tmp_path / "out.safetensors"
    out.write_text("mine")
    result = cli("convert", run, "--to", "diffusers", "-o", out)
    assert result.stderr.count("-o ") == 2  # once in each remedy
    named = cli("convert", run, "--to", "diffusers", "--base-model", "./CogVideoX-5b")
    line = named.stderr.splitlines()[-1]
    assert line.endswith("--base-model zai-org/CogVideoX-5b") and "./CogVideoX-5b" not in line
    unknown = cli("convert", run, "--to", "diffusers", "--base-model", "models/of/mine")
    assert unknown.exit_code == 1 and "try: " not in unknown.stderr  # which one it is nobody can tell


def test_a_folder_one_level_too_high_is_the_one_in_it(tmp_path: Path, cli) -> None:
    run = Case("sat_2b_r4").run(tmp_path / "runs")
    result = cli("convert", tmp_path / "runs", "--to", "diffusers", "-o", tmp_path / "out")
    assert result.exit_code == 0 and f"took {run.name}, the only folder in runs with an adapter" in result.stderr


def test_adapters_of_formats_not_read_yet_are_called_adapters(tmp_path: Path, cli) -> None:
    names = {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": "not named as those of any model",
    }
    for key, words in names.items():
        save_file({key: np.ones((2, 4), np.float32)}, tmp_path / "x.safetensors")
        result = cli("convert", tmp_path / "x.safetensors", "--to", "diffusers")
        assert result.exit_code == 1
        assert "is an adapter" in result.stderr
        assert words in result.stderr


def test_a_stated_scale_of_zero_is_in_the_recorded_command(tmp_path: Path) -> None:
    run = Case("sat_2b_r4").run(tmp_path, config=False)
    loraforge.convert(run, to="diffusers", out=tmp_path / "out", trained_scale=0.0)
    origin = json.loads(loraforge.inspect(tmp_path / "out").metadata["loraforge"])
    assert origin["command"].endswith("--trained-scale 0")


def test_inspect_prints_the_line_for_each_scale_an_unrecorded_file_may_have(tmp_path: Path, cli, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    shown = cli("inspect", DATA / "sat_2b_r4" / "hf_export_unscaled").stdout
    lines = re.findall(r"loraforge (convert .*?)   # ", shown)
    assert len(lines) == 7
    for n, line in enumerate(lines):
        assert cli(*shlex.split(line), "-o", f"{n}.safetensors").exit_code == 0, line


def test_the_list_of_commands_is_not_cut(cli) -> None:
    assert "..." not in cli("--help").stdout.partition("Commands:")[2]


def test_files_of_one_name_get_results_named_after_their_folders(tmp_path: Path, monkeypatch) -> None:
    """Every Diffusers adapter is called pytorch_lora_weights.safetensors; one must not replace another."""
    monkeypatch.chdir(tmp_path)
    for style in ("disney", "orbit"):
        loraforge.convert(Case("sat_2b_r4").run(tmp_path / style), to="diffusers", out=tmp_path / style / "lora")
        shutil.move(tmp_path / style / "lora", tmp_path / f"{style}-lora")
        source = tmp_path / f"{style}-lora" / "pytorch_lora_weights.safetensors"
        report = loraforge.convert(source, to="diffusers", dtype="bf16")
        assert Path(report.output["path"]).parent.name == f"{style}-lora-diffusers"


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")
@pytest.mark.parametrize(("width", "is_grid"), [(80, False), (300, True)])
def test_a_table_is_whole_in_a_terminal_of_any_width(width: int, is_grid: bool) -> None:
    """Nothing is cut off with dots, and no word is broken over two cells."""
    import pty

    ours, theirs = pty.openpty()
    program = "from loraforge.cli import main; main(['formats'], standalone_mode=False)"
    environment = os.environ | {"COLUMNS": str(width), "NO_COLOR": "1", "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", program], stdout=theirs, env=environment, check=True)
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode().replace("\r", "")
    assert "CogVideo's SAT trainer: run folder or mp_rank_00_model_states.pt" in shown
    assert "\u2026" not in shown
    assert ("\u2500\u2500" in shown) == is_grid


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "loraforge", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"loraforge, version {loraforge.__version__}\n"
