"""`--drop` reaches every tensor of every format, says what it left out, and never does nothing."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers.oracle import Case
from helpers.scalefiles import adapter
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.errors import LoraforgeError

PATHS = [f"transformer_blocks.{n}.attn1.to_{m}" for n in range(2) for m in "qkv"]
RNG = np.random.default_rng(3)


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def pairs(form: str, paths: list[str] = PATHS) -> dict[str, np.ndarray]:
    """The factors of an adapter in a spelling, trained at 0.5 where it can say so."""
    out: dict[str, np.ndarray] = {}
    for path in paths:
        stem = {"diffusers": f"transformer.{path}", "peft": f"base_model.model.{path}"}.get(form, path)
        out |= {f"{stem}.lora_A.weight": numbers(4, 64), f"{stem}.lora_B.weight": numbers(64, 4)}
    return out


T5 = "text_encoder.encoder.block.0.layer.0.SelfAttention.q"
BESIDE: dict[str, tuple[str, dict[str, np.ndarray], str, str]] = {
    "a text encoder in Diffusers' names": (
        "diffusers",
        {f"{T5}.lora_A.weight": numbers(4, 64), f"{T5}.lora_B.weight": numbers(64, 4)},
        "adapt the text encoder",
        "2 tensors of the text encoder",
    ),
    "a text encoder beside bare PEFT names": (
        "peft",
        {f"text_encoder_2.{T5}.lora_A.weight": numbers(4, 64)},
        "adapt the text encoder",
        "1 tensors of the text encoder",
    ),
    "weights that replace the base model's": (
        "diffusers",
        {
            "transformer.transformer_blocks.1.norm1.norm.set_weight": numbers(64),
            "transformer.transformer_blocks.0.norm1.norm.set_weight": numbers(64),
        },
        "(.set_weight)",
        "2 weights that replace the base model's (.set_weight)",
    ),
    "a difference of nothing": (
        "diffusers",
        {"transformer.transformer_blocks.0.norm9.norm.diff": numbers(64)},
        "no LoRA key",
        "1 weight differences (.diff)",
    ),
    "an alpha of nothing": (
        "peft",
        {"base_model.model.proj_out.alpha": np.array(2.0, np.float32)},
        "alpha",
        "1 alphas",
    ),
    "a bundled embedding": (
        "diffusers",
        {"bundle_emb.sks.string_to_param.*": numbers(2, 64)},
        "a bundled embedding",
        "1 other tensors",
    ),
}


@pytest.fixture(params=BESIDE)
def beside(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, dict[str, np.ndarray], str, str]:
    form, more, refused, left = BESIDE[request.param]
    mine = pairs(form)
    save_file(mine | more, tmp_path / "a.safetensors")
    save_file(mine, tmp_path / "alone.safetensors")
    return tmp_path / "a.safetensors", mine, refused, left


def tried(output: str) -> list[str]:
    return shlex.split(re.findall(r"try: loraforge ([^#\n]*)", output)[0])


def test_what_lies_beside_is_refused_by_name_and_the_line_runs(beside, cli, tmp_path: Path) -> None:
    file, _, refused, left = beside
    out = tmp_path / "out"
    done = cli("convert", file, "--to", "diffusers", "--trained-scale", "0.5", "-o", out)
    assert done.exit_code == 1 and refused in done.output and not out.exists()
    line = tried(done.output)
    assert "--drop" in line
    done = cli(*line)
    assert done.exit_code == 0 and f"left out, as --drop says: {left}" in done.output, done.output
    loraforge.convert(tmp_path / "alone.safetensors", "diffusers", out=tmp_path / "b", trained_scale=0.5)
    one, other = (load_file(tmp_path / x / "pytorch_lora_weights.safetensors") for x in ("out", "b"))
    assert one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def test_every_verb_that_meets_it_takes_it(beside, cli, tmp_path: Path) -> None:
    file, _, _, left = beside
    done = cli("convert", file, "--to", "diffusers", "--trained-scale", "0.5")
    words = tried(done.output)
    drop = [x for n, word in enumerate(words) if word == "--drop" for x in ("--drop", words[n + 1])]
    assert drop
    for verb in (
        ["inspect", file],
        ["doctor", file, "--trained-scale", "0.5"],
        ["verify", file, tmp_path / "alone.safetensors"],
    ):
        assert cli(*verb).exit_code == 1
        done = cli(*verb, *drop)
        assert f"left out, as --drop says: {left}" in done.output, done.output
        assert verb[0] == "doctor" or done.exit_code == 0, done.output
        for line in re.findall(r"loraforge convert [^\n]*--trained-scale [^#\n]*", done.output):
            assert cli(*shlex.split(line)[1:], "--dry-run").exit_code == 0, line
    kept = load_file(tmp_path / "alone.safetensors")
    done = cli("stamp", file, "--alpha", "2", *drop, "-o", tmp_path / "s.safetensors")
    if done.exit_code == 0:  # names that are stamped
        assert load_file(tmp_path / "s.safetensors").keys() == kept.keys()


def test_modules_go_by_path_as_ever_in_every_layout(tmp_path: Path) -> None:
    run = Case("sat_2b_r4").run(tmp_path / "r")
    for source, pattern, left in (
        (run, "*.dense", ["transformer.layers.0.attention.dense", "transformer.layers.1.attention.dense"]),
        (tmp_path / "d.safetensors", "transformer_blocks.0.*", [p for p in PATHS if ".0." in p]),
        (tmp_path / "d.safetensors", "*to_q", [p for p in PATHS if p.endswith("q")]),
    ):
        save_file(pairs("diffusers"), tmp_path / "d.safetensors")
        said = {} if source is run else {"trained_scale": 0.5}
        report = loraforge.convert(source, "diffusers", out=tmp_path / f"{pattern.strip('.*')}", drop=[pattern], **said)
        assert sorted(report.dropped_modules) == sorted(left)
        assert not [
            key for key in load_file(report.output["path"]) if any(key.startswith(f"transformer.{p}.") for p in left)
        ]


@pytest.mark.parametrize("verb", ["inspect", "convert", "doctor", "stamp", "verify", "fuse"])
def test_a_pattern_that_means_nothing_is_refused_with_the_near_names(verb: str, tmp_path: Path, cli) -> None:
    file = tmp_path / "d.safetensors"
    save_file(pairs("diffusers"), file)
    more = {
        "convert": ["--to", "peft", "--trained-scale", "1", "-o", tmp_path / "o"],
        "stamp": ["--alpha", "2", "-o", tmp_path / "o"],
        "verify": [file],
        "fuse": [file, "--trained-scale", "1", "-o", tmp_path / "o"],
    }.get(verb, [])
    first = [Case("sat_2b_r4").run(tmp_path / "r")] if verb == "fuse" else [file]
    done = cli(verb, *first, *more, "--drop", "*to_qq*")
    assert done.exit_code == 1 and not (tmp_path / "o").exists()
    assert "--drop *to_qq* matches no module and no tensor (the nearest names: " in done.output
    assert "to_q" in done.output.split("nearest names")[1]


def test_nothing_is_left(tmp_path: Path) -> None:
    save_file(pairs("diffusers"), tmp_path / "d.safetensors")
    for pattern in ("*", "transformer.*", "*attn1*"):
        with pytest.raises(LoraforgeError, match="leaves none of the 12 tensors"):
            loraforge.read(tmp_path / "d.safetensors", drop=[pattern])


def test_half_a_pair_cannot_go(tmp_path: Path) -> None:
    save_file(pairs("diffusers"), tmp_path / "d.safetensors")
    with pytest.raises(LoraforgeError, match="to_q has no A"):
        loraforge.read(tmp_path / "d.safetensors", drop=["*0*to_q.lora_A*"])


def test_words_of_the_prefix_are_not_meant(tmp_path: Path) -> None:
    """`*diff*` is of the differences, not of the diffusion_model. before every name."""
    from loraforge.adapter.drop import left_out
    from loraforge.files.opening import open_tensors

    mine = {f"diffusion_model.{key}": value for key, value in pairs("bare").items()}
    save_file(mine | {"diffusion_model.proj_out.diff": numbers(4)}, tmp_path / "c.safetensors")
    file, notes = left_out(open_tensors(tmp_path / "c.safetensors")[0], ["*diff*"])
    assert file.tensors.keys() == mine.keys() and notes == ("left out, as --drop says: 1 weight differences (.diff)",)


def test_stamp_in_place_takes_nothing_out(tmp_path: Path, cli) -> None:
    file = tmp_path / "d.safetensors"
    save_file(pairs("diffusers"), file)
    before = file.read_bytes()
    done = cli("stamp", file, "--alpha", "2", "--in-place", "--drop", "*to_q*")
    assert done.exit_code == 1 and "takes nothing out of a file" in done.output and file.read_bytes() == before
    assert cli("inspect", file, "--skeleton", "--drop", "*to_q*").exit_code == 2


def test_a_pattern_that_means_nothing_is_told_before_what_it_was_to_mend(beside, cli) -> None:
    done = cli("convert", beside[0], "--to", "diffusers", "--drop", "*nothing*")
    assert done.exit_code == 1 and "--drop *nothing* matches no module and no tensor" in done.output


def test_the_lines_of_doctor_leave_out_what_was_left_out(tmp_path: Path, cli) -> None:
    """Without the same --drop, the file that is offered to be converted or examined would be refused."""
    source = adapter(tmp_path / "x.safetensors")
    save_file({**load_file(source), "stranger.weight": np.ones((2, 2), np.float32)}, source)
    words = ("--architecture", "cogvideox", "--drop", "stranger*")
    done = cli("doctor", source, *words)
    assert done.stdout.startswith("cannot tell ("), done.output
    lines = re.findall(r"loraforge (doctor .*?)   #", done.stdout)
    assert lines
    assert all("--drop 'stranger*'" in line for line in lines), lines
    weak = cli(*shlex.split(lines[0]), "--architecture", "cogvideox")
    assert weak.stdout.startswith("4x too strong: "), weak.output
    convert = re.search(r"loraforge (convert .*)", weak.stdout)
    assert convert and convert[1].count("--drop") == 1
    made = cli(*shlex.split(convert[1]), "-o", tmp_path / "y.safetensors")
    assert made.exit_code == 0, made.output
