"""Configurations of PEFT that contradict themselves or their tensors, or say more than A and B can hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hostile.peft_builders import MANY, NAMES, cases, config, peft

TEXTS = {
    "empty": (b"", "JSON"),
    "half of it": (b'{"r": 4, "lora_al', "JSON"),
    "noise": (b"\xff\xfe\x00\x1b[2J", "JSON"),
    "zeros": (b"\0" * 100, "JSON"),
    "a list": (b"[]", "a list"),
    "a number": (b"4", "4"),
    "null": (b"null", "None"),
    "a text": (b'"LORA"', "LORA"),
    "20 MB of blanks": (b" " * (20 << 20), "16 MB"),
    "20 MB of a text": (b'{"r": "' + b"4" * (20 << 20) + b'"}', "16 MB"),
    "nested 100,000 deep": (b"[" * 100_000, "JSON"),
    "tables nested 100,000 deep": (b'{"r":' * 100_000, "JSON"),
    "a number of 5,000 digits": (b'{"r": 4, "lora_alpha": ' + b"9" * 5_000 + b"}", "JSON"),
    "an empty table": (b"{}", "scale"),
}


@pytest.mark.parametrize(("text", "fragment"), **cases(TEXTS))
def test_a_configuration_that_is_none(tmp_path: Path, refused, text: bytes, fragment: str):
    refused(peft(tmp_path / "x", text=text), fragment)


SCALES = {
    "r text": ({"r": "4"}, "r '4'"),
    "r true": ({"r": True}, "r True"),
    "r NaN": ({"r": float("nan")}, "r nan"),
    "r infinite": ({"r": float("inf")}, "r inf"),
    "r negative": ({"r": -4}, "rank 4"),
    "r 0": ({"r": 0}, "rank 4"),
    "r 10**400": ({"r": 10**400}, "digits"),
    "r 1e400": ({"r": 1e400}, "r inf"),
    "r a list": ({"r": [4]}, "r a list"),
    "r null": ({"r": None}, "r None"),
    "r of another file": ({"r": 8}, "rank 4"),
    "r 4.5": ({"r": 4.5}, "rank 4"),
    "lora_alpha null": ({"lora_alpha": None}, "lora_alpha None"),
    "lora_alpha text": ({"lora_alpha": "2"}, "lora_alpha '2'"),
    "lora_alpha a table": ({"lora_alpha": {}}, "lora_alpha a dict"),
    "lora_alpha 0": ({"lora_alpha": 0}, "lora_alpha 0"),
    "lora_alpha -2": ({"lora_alpha": -2}, "lora_alpha -2"),
    "lora_alpha NaN": ({"lora_alpha": float("nan")}, "lora_alpha nan"),
    "lora_alpha infinite": ({"lora_alpha": float("inf")}, "lora_alpha inf"),
    "lora_alpha 10**400": ({"lora_alpha": 10**400}, "digits"),
    "lora_alpha too small for a scale": ({"lora_alpha": 5e-324}, "scaling of 0"),
    "lora_alpha too large for the tensors": ({"lora_alpha": 1e308}, "overflow"),
    "rank_pattern a list": ({"rank_pattern": ["to_q"]}, "rank_pattern"),
    "rank_pattern a text": ({"rank_pattern": "to_q"}, "rank_pattern"),
    "rank_pattern unlike the tensors": ({"rank_pattern": {"to_q": 8}}, "rank 4"),
    "rank_pattern that matches nothing": ({"rank_pattern": {"to_z": 8}}, "matches none"),
    "rank_pattern of text": ({"rank_pattern": {"to_q": "4"}}, "rank_pattern"),
    "alpha_pattern a number": ({"alpha_pattern": 2}, "alpha_pattern"),
    "alpha_pattern that matches nothing": ({"alpha_pattern": {"to_z": 8}}, "matches none"),
    "alpha_pattern that matches a part of a name": ({"alpha_pattern": {"o_q": 8}}, "matches none"),
    "alpha_pattern without a name": ({"alpha_pattern": {"": 8}}, "matches none"),
    "alpha_pattern of NaN": ({"alpha_pattern": {"to_q": float("nan")}}, "nan"),
    "alpha_pattern of 0": ({"alpha_pattern": {"to_q": 0}}, "scaling of 0"),
    "alpha_pattern of a list": ({"alpha_pattern": {"to_q": [8]}}, "alpha_pattern"),
    "a pattern that is no regular expression": ({"alpha_pattern": {"(": 8}}, "pattern ("),
    "a pattern that repeats nothing": ({"alpha_pattern": {"*": 8}}, "pattern *"),
    "a pattern that repeats too often": ({"alpha_pattern": {"a{99999999999999999999}": 8}}, "pattern a{9"),
    "a pattern of fuzzy matching, which re has not": ({"alpha_pattern": {"(to_z){e<=1}": 8}}, "(to_z)"),
    "a flag inside a pattern, which re refuses": ({"alpha_pattern": {"(?i)TO_Q": 8}}, "(?i)"),
    "use_rslora a text": ({"use_rslora": "false"}, "use_rslora"),
    "init_lora_weights a list": ({"init_lora_weights": ["pissa"]}, "init_lora_weights"),
}


@pytest.mark.parametrize(("entries", "fragment"), **cases(SCALES))
def test_a_configuration_that_cannot_be(tmp_path: Path, refused, entries: dict[str, Any], fragment: str):
    refused(peft(tmp_path / "x", said=config(**entries)), fragment)


@pytest.mark.parametrize("missing", ["r", "lora_alpha"])
def test_a_configuration_without_a_number(tmp_path: Path, refused, missing: str):
    said = {key: value for key, value in config().items() if key != missing}
    refused(peft(tmp_path / "x", said=said), f"{missing} None")


def test_a_stated_alpha_that_contradicts_the_configuration(tmp_path: Path, refused):
    refused([peft(tmp_path / "x"), "--alpha", "3"], "two scales", "0.5", "0.75")


MORE = {
    "LoHa": {"peft_type": "LOHA"},
    "LoKr": {"peft_type": "LOKR"},
    "a method of no name": {"peft_type": 4},
    "whole weights": {"modules_to_save": ["proj_out"]},
    "all biases": {"bias": "all"},
    "biases beside the LoRA": {"bias": "lora_only"},
    "weights the other way round": {"fan_in_fan_out": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "PiSSA, fast": {"init_lora_weights": "pissa_niter_16"},
    "OLoRA": {"init_lora_weights": "olora"},
    "LoftQ": {"init_lora_weights": "loftq"},
    "CorDA": {"init_lora_weights": "corda"},
    "a start of another name": {"init_lora_weights": "x" * 10_000},
    "layers twice": {"layer_replication": [[0, 1], [0, 1]]},
    "parameters": {"target_parameters": ["weight"]},
    "aLoRA": {"alora_invocation_tokens": [1]},
    "Arrow": {"arrow_config": {"top_k": 1}},
}


@pytest.mark.parametrize("entries", **cases(MORE))
@pytest.mark.parametrize("words", [(), ("--alpha", "2", "--override-scale")], ids=["", "whatever the scale"])
def test_a_configuration_of_more_than_a_lora(tmp_path: Path, refused, entries: dict[str, Any], words: tuple[str, ...]):
    refused([peft(tmp_path / "x", said=config(**entries)), *words], next(iter(entries)))


TARGETS = {
    "another name": ["to_v"],
    "none": [],
    "a part of the name": ["o_q"],
    "a regular expression for others": r".*\.to_[kv]",
    "the name, as a regular expression": "to_q",
    "an empty regular expression": "",
    "a broken regular expression": "[",
    "brackets nested 100,000 deep": "(" * 100_000 + ")" * 100_000,
    "a regular expression re has not": r"(?|.*to_q)",
    "a class re has not": r".*\p{L}+_q",
    "a number": 4,
    "a list of numbers": [4],
}


@pytest.mark.parametrize("targets", **cases(TARGETS))
def test_target_modules_that_leave_out_a_module_of_the_file(tmp_path: Path, refused, targets: Any):
    refused(peft(tmp_path / "x", said=config(target_modules=targets)))


LEFT_OUT = {"exclude_modules": ["to_q"], "layers_to_transform": [5]}


@pytest.mark.parametrize("entry", LEFT_OUT)
def test_other_entries_that_leave_out_a_module_of_the_file(tmp_path: Path, refused, entry: str):
    refused(peft(tmp_path / "x", said=config(**{entry: LEFT_OUT[entry]})), entry)


GROUPS = "(.+?)"
SLOW = {
    "alternatives that overlap": {"rank_pattern": {"(a|aa)+$": 8}},
    "sums of sums": {"alpha_pattern": {"(x+x+)+y": 8}},
    "repetitions of everything": {"target_modules": "(.*)*(.*)*(.*)*(.*)*#"},
    "repetitions within repetitions": {"target_modules": r"([a-z_.0-9]+)+#"},
    "references back": {"target_modules": GROUPS * 12 + "".join(rf"\{n + 1}" for n in range(12))},
    "bounds within bounds": {"target_modules": "(" * 6 + "a" + "{1,1000})" * 6},
    "a long list of names": {"target_modules": "|".join(["x"] * 100_000)},
}


@pytest.mark.parametrize("entries", **cases(SLOW))
def test_a_pattern_that_takes_for_ever(tmp_path: Path, refused_alone, entries: dict[str, Any]):
    refused_alone(peft(tmp_path / "x", said=config(**entries)), NAMES[1], seconds=10)


BULK = {
    "12 MB of names": {"target_modules": "|".join(f"x{n}" for n in range(1_200_000))},
    "5,000 names": {"alpha_pattern": {f"x{n}": 2 for n in range(5_000)}},
    "patterns that are quick one by one": {
        "alpha_pattern": {f"(?#{n})" + GROUPS * 7 + "".join(rf"\{k + 3}" for k in range(7)): 2 for n in range(8)}
    },
}


@pytest.mark.parametrize("entries", **cases(BULK))
def test_patterns_that_take_for_ever_together(tmp_path: Path, refused_alone, entries: dict[str, Any]):
    folder = peft(tmp_path / "x", MANY, config(target_modules=["to_q", "to_k", "to_v"]) | entries)
    refused_alone(folder, NAMES[1], seconds=8)


def test_a_configuration_that_is_no_file_is_not_read(tmp_path: Path, refused):
    """Nor are the tensors taken without it: the scale would stand there."""
    for name in ("folder", "link", "loop", "pipe"):
        folder = peft(tmp_path / name)
        place = folder / NAMES[1]
        place.unlink()
        try:
            if name == "folder":
                place.mkdir()
            elif name == "pipe":
                os.mkfifo(place)
            else:
                place.symlink_to(place if name == "loop" else tmp_path / "nowhere")
        except (OSError, AttributeError):
            continue  # not on this system
        refused(folder, "scale")


def test_a_configuration_that_is_a_link_to_nowhere_is_told(tmp_path: Path, refused):
    folder = peft(tmp_path / "x")
    (folder / NAMES[1]).unlink()
    (folder / NAMES[1]).symlink_to(tmp_path / "nowhere")
    refused(folder, NAMES[1])


def test_a_configuration_alone(tmp_path: Path, refused):
    folder = peft(tmp_path / "x")
    (folder / NAMES[0]).unlink()
    refused(folder, NAMES[0])
    (folder / NAMES[0]).mkdir()
    refused(folder, NAMES[0])
