"""Every parser of foreign bytes, fed with what its own checks did not foresee: one refusal, and never a trace."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import loraforge
from hostile.base_builders import model
from hostile.builders import checkpoint, diffusers_lora, safetensors, tensor
from hostile.test_config import section
from hostile.test_safetensors import KEY_A, KEY_B, text
from loraforge.errors import FileError, HubError, ScaleError
from loraforge.files import resume
from loraforge.files.texts import read_json, read_yaml
from loraforge.files.torch_read import read_torch
from loraforge.foreign import reading
from loraforge.hub.address import address
from loraforge.publishing.front_matter import fields
from loraforge.scale import peft_config

YAML_TAGS = ["!!bool x", '!!int ""', '!!float ""', "!!timestamp y", "!!int 0x", "!!binary 1", "[" * 5000]
JSON_ODD = ["", "null", "[]", "1", '"a"', "{", "[" * 100_000, '{"a":' * 100_000, "\xff", "NaN", "9" * 5000]


@pytest.mark.parametrize("value", YAML_TAGS)
def test_yaml_of_strangers(tmp_path: Path, value: str) -> None:
    """A run's configuration and the head of a card: PyYAML raises KeyError, IndexError, AttributeError ..."""
    file = tmp_path / "training_config.yaml"
    file.write_text(section(lora_alpha=value))
    try:
        read_yaml(file)
    except ScaleError as error:
        assert error.remedies and str(file) in error.message and "YAML" in error.message
    try:
        fields(f"a: 1\ntags: {value}\n", "hf://me/x")
    except HubError as error:
        assert error.remedies and "hf://me/x" in error.message


def test_the_line_is_that_of_the_card() -> None:
    with pytest.raises(HubError, match=r"\(line 3\)"):
        fields("a: 1\nb: [}\n", "hf://me/x")


@pytest.mark.parametrize("value", JSON_ODD)
def test_json_that_is_no_object(tmp_path: Path, value: str) -> None:
    file = tmp_path / "config.json"
    file.write_bytes(value.encode("latin-1"))
    with pytest.raises(FileError, match=r"config\.json cannot be read as JSON") as refusal:
        read_json(file)
    assert len(str(refusal.value)) < 1000


def test_whatever_a_parser_raises_is_one_refusal(tmp_path: Path) -> None:
    for error in (KeyError("x"), RecursionError(), StopIteration(), OSError(5, "I/O"), ValueError("odd.")):
        with pytest.raises(ScaleError) as refusal, reading(tmp_path / "f", "TOML", kind=ScaleError):
            raise error
        assert refusal.value.__cause__ is error
        assert str(refusal.value.message).startswith(f"{tmp_path / 'f'} cannot be read as TOML: ")
        assert ".." not in refusal.value.message
    for error in (KeyboardInterrupt(), MemoryError(), FileError("mine", "ls")):
        with pytest.raises(type(error)) as passed, reading(tmp_path / "f", "TOML"):
            raise error
        assert passed.value is error


HEADERS = {
    "metadata null": ('"__metadata__":null', 0),
    "metadata a list": ('"__metadata__":[]', 1),
    "metadata a text": ('"__metadata__":"x"', 1),
    "metadata of null": ('"__metadata__":{"a":null}', 1),
}


@pytest.mark.parametrize(("entry", "code"), HEADERS.values(), ids=HEADERS)
@pytest.mark.parametrize("verb", ["convert", "inspect", "doctor", "verify", "stamp", "skeleton"])
def test_metadata_that_is_no_table(tmp_path: Path, cli, verb: str, entry: str, code: int) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(text(entry, KEY_A, KEY_B))
    words = {
        "convert": ("convert", file, "--to", "peft", "--as-loaded", "-o", tmp_path / "o"),
        "doctor": ("doctor", file, "--as-loaded"), "verify": ("verify", file, file, "--as-loaded"),
        "stamp": ("stamp", file, "--as-loaded", "-o", tmp_path / "o.safetensors"),
        "skeleton": ("inspect", "--skeleton", file),
    }.get(verb, (verb, file))  # fmt: skip
    done = cli(*words)
    assert done.exit_code in ((0, 1) if code == 0 else (1,)), done.output
    if code:
        assert "x.safetensors" in done.output


def test_tensors_that_share_their_numbers_cannot_grow_a_file(tmp_path: Path, refused) -> None:
    file = tmp_path / "x.pt"
    for count, most in ((9, True), (90, False)):
        same = {f"layers.{n}.q.lora_A.weight": tensor("0", 1 << 14, (1 << 14,), (1,)) for n in range(count)}
        file.write_bytes(checkpoint(same, {"data/0": bytes(4 << 14)}))
        if most:
            assert len(read_torch(file).tensors) == count
    refused(file, "share their numbers")


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "pipe.json")
    return tmp_path / "pipe.json"


@pytest.mark.skipif(os.name == "nt", reason="pipes in folders are of Unix")
@pytest.mark.parametrize("option", ["--settings", "--training-config"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, cli, pipe: Path, option: str) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(safetensors(diffusers_lora(), {"format": "pt"}))
    started = time.monotonic()
    done = cli("doctor", file, *(["--as-loaded"] if option == "--settings" else []), option, pipe)
    assert done.exit_code == 1 and "is no file" in done.stderr and time.monotonic() - started < 5
    with pytest.raises(FileError, match="it is no file"):
        read_json(pipe)


NUMBERS = {
    "--alpha 0": ("convert --to diffusers --alpha 0", 0, "switches the adapter off"),
    "--alpha -1": ("convert --to diffusers --alpha -1", 0, "inverts the adapter"),
    "--alpha 1e30": ("convert --to diffusers --alpha 1e30 --override-scale", 0, "hardly one"),
    "--trained-scale 1e-40": ("convert --to peft --trained-scale 1e-40", 0, "hardly one"),
    "doctor --trained-scale 1e200": ("doctor --trained-scale 1e200", 1, "hardly one"),
    "doctor --alpha 1e308": ("doctor --alpha 1e308", 1, "hardly one"),
    "--target-alpha 5e-324": ("convert --to sat --lora-only --alpha 1 --target-alpha 5e-324", 1, "no lora_alpha"),
    "--target-alpha 1e300": ("convert --to sat --lora-only --alpha 1 --target-alpha 1e300", 1, "no lora_alpha"),
}


@pytest.mark.parametrize(("words", "code", "said"), NUMBERS.values(), ids=NUMBERS)
def test_odd_numbers_are_told_at_once(tmp_path: Path, cli, words: str, code: int, said: str) -> None:
    verb, *options = words.split()
    file = tmp_path / "x.safetensors"
    file.write_bytes(safetensors(diffusers_lora(), {"format": "pt"}))
    done = cli(verb, file, *options, *(() if verb == "doctor" else ("-o", tmp_path / "o")))
    assert done.exit_code == code, done.output
    assert said in done.output and "never trained" not in done.output


@pytest.mark.parametrize("scale", ["0.7", "0.1", str(1 / 3), "1e-3"])
def test_several_ranks_at_one_scale_that_is_no_power_of_two(tmp_path: Path, cli, scale: str) -> None:
    """lora_alpha has 12 digits, so that one scale is several floats in the file."""
    file = tmp_path / "x.safetensors"
    lora = diffusers_lora() | {
        f"transformer.transformer_blocks.1.attn1.to_{name}.lora_{half}.weight": np.ones(shape, np.float32)
        for name, rank in (("q", 3), ("k", 7), ("v", 5))
        for half, shape in (("A", (rank, 8)), ("B", (8, rank)))
    }
    file.write_bytes(safetensors(lora, {"format": "pt"}))
    for to, more in (("peft", ()), ("diffusers", ("--scale-in", "metadata"))):
        done = cli("convert", file, "--to", to, *more, "--trained-scale", scale, "-o", tmp_path / to)
        assert done.exit_code == 0, done.output
        assert cli("convert", tmp_path / to, "--to", "peft", "-o", tmp_path / f"{to}-again").exit_code == 0


def test_an_address_that_is_no_address() -> None:
    for text_ in ("https://huggingfac[e.co/a/b", "hf://[", "https://[::1/a/b"):
        with pytest.raises(HubError):
            address(text_)


LISTS = {
    "target_modules": lambda n: [f"m.{i}" for i in range(n)],
    "exclude_modules": lambda n: [f"m.{i}" for i in range(n)],
    "layers_to_transform": lambda n: list(range(n)),
}


@pytest.mark.parametrize("name", LISTS)
def test_long_lists_are_quick_or_refused(name: str) -> None:
    paths = [f"transformer.blocks.{n}.attn1.to_q" for n in range(2000)]
    plain = {"target_modules": ["to_q"], "layers_to_transform": None}
    started = time.process_time()
    left = peft_config.untargeted(plain | {name: LISTS[name](peft_config.MOST_NAMES)}, paths, "x")
    assert len(left) == (2000 if name == "target_modules" else 0)
    with pytest.raises(ScaleError, match=f"{name} has 100,001 entries"):
        peft_config.untargeted(plain | {name: LISTS[name](peft_config.MOST_NAMES + 1)}, paths, "x")
    assert time.process_time() - started < 2


def test_many_plain_patterns_are_quick_and_mean_what_they_mean_to_re() -> None:
    paths = {f"transformer_blocks.{n}.attn{m}.to_{w}": 4 for n in range(417) for m in (1, 2) for w in "qkvo"}
    written = peft_config.config(dict.fromkeys(paths, 4), {p: (n % 9 + 1) / 4 for n, p in enumerate(paths)}, older=True)
    started = time.process_time()
    found = peft_config.rule({"r": 4, **written}, paths, "x")
    assert [found.exceptions[p] for p in paths] == [(n % 9 + 1) / 4 for n in range(len(paths))]
    assert time.process_time() - started < 3
    with pytest.raises(ScaleError, match="too long"):
        odd = {"." * n + "a" * (40 - n): 1 for n in range(40)}
        texts = {f"{n:040d}": 4 for n in range(peft_config.MOST_WORK // 30)}
        peft_config._full_matches(odd, texts, "x", r"(.*\.)?({})")


def test_a_plain_pattern_matches_as_in_re() -> None:
    random.seed(7)
    words = ["".join(random.choices("ab", k=random.randint(0, 2))) for _ in range(40)]
    texts = [".".join(random.choices(words, k=random.randint(1, 4))) for _ in range(60)]
    for tail in ("{}", r"(.*\.)?({})"):
        for _ in range(400):
            pattern = random.choice(["", "^"]) + "".join(random.choices(["a", "b", ".", r"\."], k=random.randint(0, 5)))
            match = re.compile(tail.replace("{}", pattern)).fullmatch
            want = {text_ for text_ in texts if match(text_)}
            assert peft_config._full_matches([pattern], texts, "x", tail) == [want], pattern


def test_an_unforeseen_exception_is_one_message_and_code_70(tmp_path: Path, cli, monkeypatch) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(safetensors(diffusers_lora(), {"format": "pt"}))

    def fails(error: Exception) -> Callable[..., None]:
        def fail(*_: object, **__: object) -> None:
            raise error

        return fail

    monkeypatch.setattr(loraforge, "inspect", fails(KeyError("\x1bodd")))
    done = cli("inspect", file)
    assert (done.exit_code, done.stdout) == (70, "")
    error, trace, skeleton, report = done.stderr.splitlines()
    assert error.startswith("Error: loraforge has a fault here") and "KeyError" in error and "\x1b" not in error
    assert trace.startswith("  try: env LORAFORGE_TRACE=1 loraforge inspect ") and "inspect --skeleton" in skeleton
    assert loraforge.__version__ in report and "test_guard.py" in report
    monkeypatch.setenv("LORAFORGE_TRACE", "1")
    assert "Traceback" in cli("inspect", file).stderr
    monkeypatch.delenv("LORAFORGE_TRACE")
    for other, said in ((MemoryError(), "memory"), (PermissionError(13, "Permission denied", "/x/y"), "/x/y cannot")):
        monkeypatch.setattr(loraforge, "inspect", fails(other))
        done = cli("inspect", file)
        assert done.exit_code == 1 and said in done.stderr and "report" not in done.stderr
    with pytest.raises(PermissionError):  # in Python it passes as it is
        loraforge.inspect(file)


ENTRIES = [
    *({"sample_width": value} for value in ("x", None, [], {}, 0, -1, 90.5, True, 10**12, float("nan"), float("inf"))),
    {"sample_height": None}, {"sample_frames": []}, {"temporal_compression_ratio": 0}, {"patch_size": float("nan")},
    {"spatial_interpolation_scale": "1"}, {"use_rotary_positional_embeddings": 1}, {"max_text_seq_length": "226"},
    {"temporal_interpolation_scale": 0.0}, {"activation_fn": None}, {"patch_size_t": "x"},
]  # fmt: skip


@pytest.mark.parametrize("said", ENTRIES, ids=str)
def test_a_configuration_of_a_base_with_an_entry_it_cannot_have(tmp_path: Path, spares, said: dict[str, Any]) -> None:
    words = ("convert-base", model(said=said)(tmp_path), "--to", "sat", "-o", tmp_path / "out")
    spares(words, "config.json", next(iter(said)))


def test_a_configuration_of_a_base_with_entries_of_its_kind(tmp_path: Path, cli) -> None:
    said = {
        "sample_width": 16,
        "sample_height": 8,
        "freq_shift": 0,
        "spatial_interpolation_scale": 2,
        "patch_size_t": None,
    }
    done = cli("convert-base", model(said=said)(tmp_path), "--to", "sat", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output


DONE = ("null", '{"a":1}', '{"a":{"size":"1"}}', "[1]")


@pytest.mark.parametrize("text", ["[]", "null", "[" * 100_000, *(f'{{"plan":"p","done":{done}}}' for done in DONE)])
def test_a_list_of_finished_files_of_another_shape_counts_as_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / resume.PROGRESS).write_text(text)
    assert resume._progress(tmp_path) == {}
