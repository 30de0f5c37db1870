"""What says the scale may be wrong, contradictory, or built to hang a parser: nothing is converted on its word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hostile.builders import CHECKPOINT, RANK, TO_Q, diffusers_lora, run_folder, safetensors

WORDS = ("model", "network_config", "params", "modules", "lora_config", "params")


def section(**params: str) -> str:
    """A training YAML that says `params` where SAT's says r and lora_alpha."""
    lines = [f"{'  ' * depth}{word}:" for depth, word in enumerate(WORDS)]
    return "\n".join([*lines, *(f"{'  ' * len(WORDS)}{key}: {value}" for key, value in params.items())])


def merges(levels: int = 12, width: int = 10) -> str:
    """Mappings that merge ten times the one before: 10**12 entries for a parser that copies them."""
    lines = ["a0: &a0 {r: 4}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * width)}]}}" for n in range(1, levels)]
    return "\n".join([*lines, section(r="8")])


def aliases(levels: int = 40) -> str:
    lines = ["a0: &a0 [x]", *(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, levels))]
    return "\n".join([*lines, section(r=f"*a{levels - 1}")])


CONFIGS = {
    "r unlike the tensors": (section(r="8"), "rank 4"),
    "r 0": (section(r="0"), "rank 4"),
    "r true": (section(r="true"), "r True"),
    "r missing": (section(lora_alpha="1"), "r None"),
    "r text": (section(r="four"), "four"),
    "r infinite": (section(r=".inf"), "r inf"),
    "r of 400 digits": (section(r="9" * 400), ""),
    "lora_alpha 0": (section(r="4", lora_alpha="0"), "lora_alpha 0"),
    "lora_alpha -1": (section(r="4", lora_alpha="-1"), "lora_alpha -1"),
    "lora_alpha .nan": (section(r="4", lora_alpha=".nan"), "lora_alpha nan"),
    "lora_alpha .inf": (section(r="4", lora_alpha=".inf"), "lora_alpha inf"),
    "lora_alpha text": (section(r="4", lora_alpha="'1'"), "lora_alpha '1'"),
    "lora_alpha without a digit": (section(r="4", lora_alpha="one"), "lora_alpha 'one'"),
    "lora_alpha true": (section(r="4", lora_alpha="true"), "lora_alpha True"),
    "lora_alpha null": (section(r="4", lora_alpha="null"), "lora_alpha None"),
    "lora_alpha a list": (section(r="4", lora_alpha="[1, 2]"), "lora_alpha"),
    "lora_alpha a date": (section(r="4", lora_alpha="2024-01-01"), "lora_alpha"),
    "lora_alpha of 400 digits": (section(r="4", lora_alpha="9" * 400), ""),
    "lora_alpha of 5,000 digits": (section(r="4", lora_alpha="9" * 5_000), ""),
    "lora_alpha a long text": (section(r="4", lora_alpha="x" * 10_000), "lora_alpha"),
    "lora_alpha with a line of its own": (section(r="4", lora_alpha=r'"1\nError: \e[2J"'), "lora_alpha"),
    "not YAML": ("model: [1, 2\nnetwork: }", "YAML"),
    "tabs": ("model:\n\tnetwork_config: 1", "YAML"),
    "two documents": ("a: 1\n---\nb: 2\n", "YAML"),
    "not UTF-8": ("model: \udcff\udcfe", "YAML"),
    "NUL bytes": ("model: \0\0", "YAML"),
    "a key twice": (section(r="4") + "\nmodel: {}\n", "states 'model' twice"),
    "a merge key": ("a: &a {b: 1}\nmodel:\n  <<: *a\n", "YAML"),
    "a number of no digits": ('date: !!int ""', "YAML"),
    "an impossible date": ("date: 2024-99-99", "YAML"),
    "a key that cannot be one": ("? {a: b}\n: c", "YAML"),
    "a Python object": ("!!python/object/apply:os.mkdir ['executed']", "YAML"),
    "a Python name": (section(r="!!python/name:os.mkdir"), "YAML"),
    "a megabyte": ("# " + "x" * (1 << 20), ""),
}
BOMBS = {
    "a list of 200,000 lines": ("list:\n" + "- 1\n" * 200_000 + section(r="8"), ""),
    "lists 100,000 deep": ("[" * 100_000, "YAML"),
    "mappings 50,000 deep": ("{a: " * 50_000, "YAML"),
    "blocks 1,000 deep": ("\n".join(" " * n + "a:" for n in range(1_000)) + "\n" + section(r="8"), ""),
    "merges of merges": (merges(), ""),
    "aliases of aliases": (aliases(), ""),
}


def write(run: Path, text: str) -> Path:
    run_folder(run, "1000", latest="1000")
    (run / "training_config.yaml").write_bytes(text.encode("utf-8", "surrogateescape"))
    return run


@pytest.mark.parametrize(("text", "fragment"), CONFIGS.values(), ids=CONFIGS)
def test_a_training_config(tmp_path: Path, refused, text: str, fragment: str):
    refused(write(tmp_path / "run", text), fragment, "training_config.yaml")
    assert not Path("executed").exists()


@pytest.mark.parametrize(("text", "fragment"), BOMBS.values(), ids=BOMBS)
def test_a_training_config_that_exhausts_its_reader(tmp_path: Path, refused_alone, text: str, fragment: str):
    refused_alone(write(tmp_path / "run", text), fragment, "training_config.yaml")


NAMED = {
    "none there": (None, "no.yaml"),
    "a folder": ("", "no.yaml"),
    "another trainer's": ("args:\n  rank: 4\n", "lora_config"),
    "not YAML": ("[", "YAML"),
    "empty": ("\n", "lora_config"),
}


@pytest.mark.parametrize(("text", "fragment"), NAMED.values(), ids=NAMED)
def test_a_training_config_that_was_named(tmp_path: Path, refused, text: str | None, fragment: str):
    run, config = run_folder(tmp_path / "run", "1000", latest="1000"), tmp_path / "no.yaml"
    if text:
        config.write_text(text)
    elif text is not None:
        config.mkdir()
    refused([run, "--training-config", config], fragment)


def metadata(**entries: Any) -> dict[str, str]:
    config = {"r": RANK, "lora_alpha": 2} | entries
    return {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in config.items()})}


HEADERS = {
    "not JSON": ({"lora_adapter_metadata": "{r: 4"}, "lora_adapter_metadata"),
    "JSON nested 100,000 deep": ({"lora_adapter_metadata": "[" * 100_000}, "lora_adapter_metadata"),
    "r unlike the tensors": (metadata(r=8), "rank 4"),
    "r null": (metadata(r=None), "r None"),
    "r text": (metadata(r="4"), "r '4'"),
    "r of 400 digits": (metadata(r=10**400), "lora_adapter_metadata"),
    "r of 5,000 digits": ({"lora_adapter_metadata": '{"transformer.r": ' + "9" * 5_000 + "}"}, "lora_adapter_metadata"),
    "lora_alpha missing": ({"lora_adapter_metadata": '{"transformer.r": 4}'}, "lora_alpha None"),
    "lora_alpha 0": (metadata(lora_alpha=0), "lora_alpha 0"),
    "lora_alpha -1": (metadata(lora_alpha=-1), "lora_alpha -1"),
    "lora_alpha NaN": (metadata(lora_alpha=float("nan")), "lora_alpha nan"),
    "lora_alpha infinite": (metadata(lora_alpha=float("inf")), "lora_alpha inf"),
    "lora_alpha a list": (metadata(lora_alpha=[1]), "lora_alpha a list"),
    "lora_alpha of 400 digits": (metadata(lora_alpha=10**400), "lora_adapter_metadata"),
    "alpha_pattern with text": (metadata(alpha_pattern={"to_q": "2"}), "alpha_pattern"),
    "alpha_pattern of 0": (metadata(alpha_pattern={"to_q": 0}), ""),
    "alpha_pattern of 400 digits": (metadata(alpha_pattern={"to_q": 10**400}), "alpha_pattern"),
    "rank_pattern unlike the tensors": (metadata(rank_pattern={"to_q": 8}), "rank 4"),
    "a pattern that is a regular expression": (metadata(alpha_pattern={"(x+x+)+y": 2}), "alpha_pattern"),
    "a pattern that ends in a backslash": (metadata(alpha_pattern={"to_q\\": 2}), "alpha_pattern"),
    "a pattern with an unknown escape": (metadata(alpha_pattern={r"\q": 2}), "alpha_pattern"),
    "a pattern that refers to a group to come": (metadata(alpha_pattern={r"\2": 2}), "alpha_pattern"),
    "two records that disagree": (metadata() | {"lora_config": '{"r": 4, "lora_alpha": 1}'}, "two scales"),
}


@pytest.mark.parametrize(("header", "fragment"), HEADERS.values(), ids=HEADERS)
def test_a_header_that_records_the_scale(tmp_path: Path, refused, header: dict[str, str], fragment: str):
    (tmp_path / "x.safetensors").write_bytes(safetensors(diffusers_lora(), header))
    refused(tmp_path / "x.safetensors", fragment)


def test_a_header_without_a_scale_is_asked_for(tmp_path: Path, refused):
    for header in (None, {"lora_adapter_metadata": "[]"}, {"lora_adapter_metadata": "{}"}, {"lora_config": "1"}):
        (tmp_path / "x.safetensors").write_bytes(safetensors(diffusers_lora(), header))
        refused(tmp_path / "x.safetensors", "scale")


STATED = {
    "--alpha nan": ["--alpha", "nan"],
    "--alpha inf": ["--alpha", "inf"],
    "--trained-scale -inf": ["--trained-scale=-inf"],
    "two statements": ["--alpha", "1", "--trained-scale", "1"],
    "a trainer of another rank": ["--trained-by", "cogvideo"],
    "a contradiction": ["--alpha", "3"],
}


@pytest.mark.parametrize("words", STATED.values(), ids=STATED)
def test_a_statement_that_cannot_be(tmp_path: Path, refused, words: list[str]):
    run = run_folder(tmp_path / "run", "1000", config=section(r="4", lora_alpha="2"))
    refused([run / "1000" / CHECKPOINT, *words])


def test_a_config_as_it_should_be_converts(tmp_path: Path, cli, out: Path):
    run = run_folder(tmp_path / "run", "1000", config=section(r="4", lora_alpha="2"))
    result = cli("convert", run, "--to", "diffusers", "-o", out)
    assert result.exit_code == 0, result.output
    header = metadata(alpha_pattern={r"^transformer_blocks\.0\.attn1\.to_q$": 3, "to_q": 2})
    (tmp_path / "x.safetensors").write_bytes(safetensors(diffusers_lora(), header))
    result = cli("convert", tmp_path / "x.safetensors", "--to", "diffusers", "-o", out, "--force")
    assert result.exit_code == 0, result.output
    assert TO_Q not in result.stderr
