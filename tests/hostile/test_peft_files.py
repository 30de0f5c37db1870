"""PEFT folders and bare state dicts that contradict themselves, or that say more than A and B can hold."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hostile.builders import HIDDEN, RANK, checkpoint, factors, numbers, safetensors, tensor
from hostile.pickles import call, pickled

ROOT = "base_model.model."
MODULE = "transformer_blocks.0.attn1.to_q"
OTHER = "transformer_blocks.0.attn1.to_k"
CONV = "patch_embed.proj"
NAMES = ("adapter_model.safetensors", "adapter_config.json")
A, B = factors()
Tensors = Mapping[str, np.ndarray]


def cases(table: Mapping[str, Any]) -> Any:
    """The values and ids of a table, for parametrize; a lone value is a case of its own."""
    return {"argvalues": list(table.values()), "ids": list(table)}


def lora(prefix: str = ROOT, *modules: str) -> dict[str, np.ndarray]:
    """A healthy LoRA."""
    return {
        f"{prefix}{module}.lora_{name}.weight": factor
        for module in modules or (MODULE,)
        for name, factor in (("A", A), ("B", B))
    }


def config(**entries: Any) -> dict[str, Any]:
    return {"peft_type": "LORA", "r": RANK, "lora_alpha": 2, "target_modules": ["to_q", "to_k", "proj"]} | entries


def peft(folder: Path, tensors: Tensors | None = None, said: Any = None, *, text: bytes | None = None) -> Path:
    """A folder as save_pretrained leaves it."""
    folder.mkdir(parents=True)
    (folder / NAMES[0]).write_bytes(safetensors(lora() if tensors is None else tensors))
    (folder / NAMES[1]).write_bytes(json.dumps(config() if said is None else said).encode() if text is None else text)
    return folder


# the configuration

TEXTS = {
    "empty": (b"", "not JSON"),
    "half of it": (b'{"r": 4, "lora_al', "not JSON"),
    "noise": (b"\xff\xfe\x00\x1b[2J", "not JSON"),
    "zeros": (b"\0" * 100, "not JSON"),
    "a list": (b"[]", "a list"),
    "a number": (b"4", "4"),
    "null": (b"null", "None"),
    "a text": (b'"LORA"', "LORA"),
    "20 MB of blanks": (b" " * (20 << 20), "16 MB"),
    "20 MB of a text": (b'{"r": "' + b"4" * (20 << 20) + b'"}', "16 MB"),
    "nested 100,000 deep": (b"[" * 100_000, "not JSON"),
    "tables nested 100,000 deep": (b'{"r":' * 100_000, "not JSON"),
    "a number of 5,000 digits": (b'{"r": 4, "lora_alpha": ' + b"9" * 5_000 + b"}", "not JSON"),
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
    "a bias of the LoRA": {"lora_bias": True},
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


MANY = lora(ROOT, *(f"transformer_blocks.{n}.attn1.to_{name}" for n in range(80) for name in "qkv"))
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


# the tensors


def all_named(prefix: str, *names: str) -> dict[str, np.ndarray]:
    """The same LoRA once per adapter name; `` for none."""
    keys = lora(prefix).items()
    return {
        key.removesuffix("weight") + f"{name}.weight".removeprefix("."): factor
        for name in names
        for key, factor in keys
    }


def keys_that_do_not_belong(prefix: str) -> dict[str, tuple[dict[str, np.ndarray], str]]:
    """What may stand in a file of any prefix and makes it no plain adapter."""
    stem, healthy, one = f"{prefix}{MODULE}", lora(prefix), numbers(HIDDEN)
    return {
        "two adapters": (all_named(prefix, "one", "two"), "several adapters"),
        "a named adapter beside a plain one": (all_named(prefix, "", "default"), "several"),
        "A plain and B named": (
            {f"{stem}.lora_A.weight": A, f"{stem}.lora_B.default.weight": B},
            "several",
        ),
        "a bias of B": (healthy | {f"{stem}.lora_B.bias": one}, "lora_bias"),
        "a bias of a named B": (healthy | {f"{stem}.lora_B.default.bias": one}, "lora_bias"),
        "an alpha": (healthy | {f"{stem}.alpha": numbers()}, "alpha"),
        "a whole weight": (healthy | {f"{prefix}proj_out.weight": A}, "whole weight"),
        "a whole bias": (healthy | {f"{prefix}proj_out.bias": one}, "whole weight"),
        "an embedding": (healthy | {f"{stem}.lora_embedding_A": A}, "embedding"),
        "a part of LoKr": (healthy | {f"{stem}.lokr_w1": A}, "LoKr"),
        "a part of LoKr, split": (healthy | {f"{stem}.lokr_w2_a": A}, "lokr_w2_a"),
        "a part of LoHa": (healthy | {f"{stem}.hada_w1_a": A}, "hada_w1_a"),
        "nothing but LoHa": ({f"{stem}.hada_w1_a": A, f"{stem}.hada_w1_b": B}, "hada_w1_a"),
        "nothing but LoKr": ({f"{stem}.lokr_w1": A, f"{stem}.lokr_w2": B}, "lokr_w1"),
        "a saved module": (healthy | {f"{prefix}proj_out.modules_to_save.weight": A}, "modules_to_save"),
        "a text encoder's": (healthy | {"text_encoder.encoder.q.lora_A.weight": A}, "text_encoder"),
        "half of an older spelling": ({f"{stem}.lora_A.weight": A, f"{stem}.lora.up.weight": B}, "lora.up"),
        "a module beside it in an older spelling": (
            healthy | {f"{prefix}{OTHER}.lora.down.weight": A, f"{prefix}{OTHER}.lora.up.weight": B},
            "lora.down",
        ),
        "a module CogVideoX has not": (healthy | lora(prefix, "blocks.0.q"), "blocks.0.q"),
        "a block 00": (healthy | lora(prefix, MODULE.replace(".0.", ".00.")), ".00."),
        "a block of 30 digits": (healthy | lora(prefix, MODULE.replace(".0.", f".{10**30}.")), "1000000"),
        "A twice named": (
            healthy | {f"{prefix}{OTHER}.lora_A.lora_A.weight": A, f"{prefix}{OTHER}.lora_B.lora_A.weight": B},
            "lora_A.lora_A",
        ),
        "a magnitude and nothing else": ({f"{stem}.lora_magnitude_vector": one}, "has no A"),
        "a magnitude of another module": (healthy | {f"{prefix}{OTHER}.lora_magnitude_vector": one}, "to_k has no A"),
        "a magnitude of another spelling": (
            healthy | {f"{stem}.lora_magnitude_vector.default.weight": one},
            "several",
        ),
        "a magnitude of no spelling": (healthy | {f"{stem}.lora_magnitude_vector.weight": one}, "magnitude"),
        "nothing": ({}, "0 tensors"),
    }


KEYS = {name: keys_that_do_not_belong(prefix) for name, prefix in (("folder", ROOT), ("transformer", "transformer."))}
KEYS["bare"] = keys_that_do_not_belong("")


@pytest.mark.parametrize("case", KEYS["folder"])
def test_keys_of_a_folder(tmp_path: Path, refused, case: str):
    tensors, fragment = KEYS["folder"][case]
    refused(peft(tmp_path / "x", tensors), fragment)


@pytest.mark.parametrize("case", KEYS["bare"])
@pytest.mark.parametrize("kind", ["bare", "transformer"])
def test_keys_of_a_file(tmp_path: Path, refused, kind: str, case: str):
    tensors, fragment = KEYS[kind][case]
    (tmp_path / "x.safetensors").write_bytes(safetensors(tensors))
    refused([tmp_path / "x.safetensors", "--as-loaded"], fragment)


@pytest.mark.parametrize("case", ["a part of LoHa", "a part of LoKr, split"])
def test_another_method_is_named(tmp_path: Path, refused, case: str):
    refused(peft(tmp_path / "x", KEYS["folder"][case][0]), ": LoHa" if "LoHa" in case else ": LoKr")


PREFIXES = {
    "bare and transformer.": (lora("") | lora("transformer.", OTHER), ""),
    "bare and transformer., one module": (lora("") | lora("transformer."), ""),
    "bare and PEFT's": (lora("") | lora(ROOT, OTHER), "several"),
    "transformer. and PEFT's": (lora("transformer.") | lora(ROOT, OTHER), ""),
    "bare and kohya's": (lora("") | {"lora_unet_x.lora_down.weight": A}, "lora_unet_x"),
    "told as such": (lora("") | lora("transformer.", OTHER), "several"),
}


@pytest.mark.parametrize(("tensors", "fragment"), **cases(PREFIXES))
def test_two_prefixes(tmp_path: Path, refused, tensors: Tensors, fragment: str):
    (tmp_path / "x.safetensors").write_bytes(safetensors(tensors))
    refused([tmp_path / "x.safetensors", "--as-loaded"], fragment)


OTHERS = {
    "DiffSynth's names": lora("", "blocks.0.self_attn.q"),
    "Wan's names": lora("diffusion_model.", "blocks.0.self_attn.q"),
    "Flux's names": lora("transformer.", "single_transformer_blocks.0.attn.to_q"),
    "almost CogVideoX's names": lora("transformer.", "transformer_blocks.0.attn.to_q"),
    "kohya's names": {"lora_unet_q.lora_down.weight": A, "lora_unet_q.lora_up.weight": B},
    "a whole PEFT model": lora("") | {f"{MODULE}.base_layer.weight": A},
    "an adapter of no name": {f"{MODULE}.lora_A..weight": A, f"{MODULE}.lora_B..weight": B},
}


@pytest.mark.parametrize("tensors", **cases(OTHERS))
def test_another_model(tmp_path: Path, refused, tensors: Tensors):
    (tmp_path / "x.safetensors").write_bytes(safetensors(tensors))
    refused([tmp_path / "x.safetensors", "--as-loaded"])


# magnitudes

VECTOR = f"{ROOT}{MODULE}.lora_magnitude_vector"
LENGTHS = np.abs(numbers(HIDDEN)) + 1


def spoiled(value: float) -> np.ndarray:
    lengths = LENGTHS.copy()
    lengths[5] = value
    return lengths


MAGNITUDES = {
    "NaN": (spoiled(np.nan), "NaN"),
    "infinity": (spoiled(np.inf), "infinity"),
    "NaN in float16": (spoiled(np.nan).astype("float16"), "NaN"),
    "one too few": (LENGTHS[1:], "one per row"),
    "one too many": (np.append(LENGTHS, LENGTHS[:1]), "one per row"),
    "a column": (LENGTHS.reshape(-1, 1), "one per row"),
    "as of a convolution": (LENGTHS.reshape(1, -1, 1, 1), "one per row"),
    "no dimension": (numbers(), "one per row"),
    "none": (numbers(0), "one per row"),
    "whole numbers": (LENGTHS.astype("int64"), "I64"),
}


@pytest.mark.parametrize(("lengths", "fragment"), **cases(MAGNITUDES))
@pytest.mark.parametrize("target", ["diffusers", "peft"])
def test_magnitudes(tmp_path: Path, refused, target: str, lengths: np.ndarray, fragment: str):
    folder = peft(tmp_path / "x", lora() | {VECTOR: lengths}, config(use_dora=True))
    refused([folder, "--to", target], fragment, "lora_magnitude_vector")


@pytest.mark.parametrize("use_dora", [False, None, 0])
def test_magnitudes_without_use_dora(tmp_path: Path, refused, use_dora: Any):
    refused(peft(tmp_path / "x", lora() | {VECTOR: LENGTHS}, config(use_dora=use_dora)), "use_dora", "magnitudes")


@pytest.mark.parametrize("use_dora", [True, "false", 1])
def test_use_dora_without_magnitudes(tmp_path: Path, refused, use_dora: Any):
    refused(peft(tmp_path / "x", said=config(use_dora=use_dora)), "use_dora", "magnitudes")


def test_magnitudes_have_no_place_in_sat(tmp_path: Path, refused):
    folder = peft(tmp_path / "x", lora() | {VECTOR: LENGTHS}, config(use_dora=True))
    refused([folder, "--to", "sat", "--lora-only"], "DoRA")


def repeated(stride: int) -> bytes:
    """A torch file whose magnitudes are one number, shown for every row; healthy where the stride is 1."""
    one = tensor("0", HIDDEN, (HIDDEN,), (stride,))
    return checkpoint(dict(lora()) | {VECTOR: one}, {"data/0": LENGTHS.tobytes()})


def test_magnitudes_that_are_one_number(tmp_path: Path, refused, cli, out: Path):
    folder = peft(tmp_path / "x", said=config(use_dora=True))
    (folder / NAMES[0]).unlink()
    (folder / "adapter_model.bin").write_bytes(repeated(0))
    refused(folder, "lora_magnitude_vector")
    (folder / "adapter_model.bin").write_bytes(repeated(1))
    assert cli("convert", folder, "--to", "diffusers", "-o", out).exit_code == 0


def test_magnitudes_that_are_one_number_are_told(tmp_path: Path, refused):
    folder = peft(tmp_path / "x", said=config(use_dora=True))
    (folder / NAMES[0]).unlink()
    (folder / "adapter_model.bin").write_bytes(repeated(0))
    refused(folder, "repeat")


def test_magnitudes_that_overflow(tmp_path: Path, refused_alone):
    folder = peft(tmp_path / "x", lora() | {VECTOR: LENGTHS * 1e6}, config(use_dora=True))
    refused_alone([folder, "--dtype", "fp16"], "overflow")


def test_a_magnitude_of_0_among_others(tmp_path: Path, cli, out: Path):
    lengths = np.arange(HIDDEN, dtype="float32") / 3
    folder = peft(tmp_path / "x", lora() | {VECTOR: lengths}, config(use_dora=True))
    result = cli("convert", folder, "--to", "diffusers", "-o", out, "--dtype", "fp16")
    assert (result.exit_code, "Warning" in result.stderr) == (0, False), result.output


# convolutions


def pair(module: str, a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    return {f"{ROOT}{module}.lora_A.weight": a, f"{ROOT}{module}.lora_B.weight": b}


A4, B4 = numbers(RANK, 2, 2, 2), numbers(HIDDEN, RANK, 1, 1)
CONVS = {
    "B is not 1x1": (pair(CONV, A4, numbers(HIDDEN, RANK, 2, 2)), "not those of one module"),
    "B is 1x2": (pair(CONV, A4, numbers(HIDDEN, RANK, 1, 2)), "not those of one module"),
    "B is flat": (pair(CONV, A4, B), "not those of one module"),
    "A is flat": (pair(CONV, A, B4), "not those of one module"),
    "three dimensions": (pair(CONV, numbers(RANK, 2, 2), numbers(HIDDEN, RANK, 1)), "shape"),
    "five dimensions": (pair(CONV, numbers(RANK, 2, 1, 2, 2), numbers(HIDDEN, RANK, 1, 1, 1)), "shape"),
    "rank 0": (pair(CONV, numbers(0, 2, 2, 2), numbers(HIDDEN, 0, 1, 1)), "shape"),
    "a kernel of no width": (pair(CONV, numbers(RANK, 2, 0, 2), B4), "shape"),
    "no channels": (pair(CONV, numbers(RANK, 0, 2, 2), B4), "shape"),
    "ranks unlike": (pair(CONV, numbers(RANK + 1, 2, 2, 2), B4), "rank"),
    "whole numbers": (pair(CONV, A4.astype("int64"), B4), "I64"),
    "NaN": (pair(CONV, A4 * np.nan, B4), "NaN"),
    "magnitudes of a linear layer": (
        pair(CONV, A4, B4) | {f"{ROOT}{CONV}.lora_magnitude_vector": LENGTHS},
        "lora_magnitude_vector",
    ),
    "in a linear layer": (pair(MODULE, A4, B4), "to_q"),
    "in a modulation": (pair("transformer_blocks.0.norm1.linear", A4, numbers(2 * HIDDEN, RANK, 1, 1)), "norm1"),
}


@pytest.mark.parametrize(("tensors", "fragment"), **cases(CONVS))
def test_a_convolution(tmp_path: Path, refused, tensors: Tensors, fragment: str):
    said = config(use_dora=any("magnitude" in key for key in tensors), target_modules="all-linear")
    refused(peft(tmp_path / "x", tensors, said), fragment)


FLAT = {
    "rank 0": pair(MODULE, numbers(0, HIDDEN), numbers(HIDDEN, 0)),
    "three dimensions": pair(MODULE, numbers(RANK, HIDDEN, 1), numbers(HIDDEN, RANK, 1)),
    "A without B": {f"{ROOT}{MODULE}.lora_A.weight": A},
    "A and B exchanged": pair(MODULE, numbers(HIDDEN, 3), numbers(4, HIDDEN + 1)),
    "whole numbers": pair(MODULE, A.astype("int64"), B),
}


@pytest.mark.parametrize("tensors", **cases(FLAT))
def test_a_linear_layer(tmp_path: Path, refused, tensors: Tensors):
    refused(peft(tmp_path / "x", tensors), "to_q")


def test_a_torch_file_that_names_a_function(tmp_path: Path, refused_alone):
    folder = peft(tmp_path / "x")
    (folder / NAMES[0]).unlink()
    (folder / "adapter_model.bin").write_bytes(checkpoint(pickled({"x": call("os.mkdir", "executed")})))
    refused_alone(folder)
    assert not Path("executed").exists()


def test_folders_as_they_should_be_convert(tmp_path: Path, cli, out: Path):
    """What the cases above spoil is healthy."""
    patterns = {"rank_pattern": {"to_q": RANK}, "alpha_pattern": {r"^transformer_blocks\.0\.attn1\.to_q": 3}}
    healthy = {
        "plain": peft(tmp_path / "plain"),
        "patterns": peft(tmp_path / "patterns", said=config(**patterns)),
        "regular": peft(tmp_path / "regular", said=config(target_modules=r".*\.to_[qkv]")),
        "named": peft(tmp_path / "named", all_named(ROOT, "default")),
        "dora": peft(tmp_path / "dora", lora() | {VECTOR: LENGTHS}, config(use_dora=True)),
        "conv": peft(tmp_path / "conv", pair(CONV, A4, B4)),
        "many": peft(tmp_path / "many", MANY, config(target_modules=["to_q", "to_k", "to_v"])),
    }
    for name, folder in healthy.items():
        result = cli("convert", folder, "--to", "diffusers", "-o", out / name)
        assert result.exit_code == 0, result.output
