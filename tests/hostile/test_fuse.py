"""`fuse` and `convert-base` on bases and adapters that are none, are not whole, or do not belong together."""

from __future__ import annotations

import json
import os
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from click.testing import Result

from hostile.base_builders import (
    ADAPTER,
    BASES,
    DATA,
    INDEX,
    QKV,
    SHARDS,
    SINGLE,
    STEM,
    TO_Q,
    Make,
    Tensors,
    changed,
    cut,
    done,
    edited,
    file,
    four_bits,
    helps,
    mapped,
    model,
    run,
    run_of,
    sat_weights,
    sharded,
    typed,
    weights,
    wrapped,
)
from hostile.builders import numbers, safetensors, sat
from hostile.peft_builders import cases
from hostile.refusal import proper
from loraforge.files.opening import open_tensors

FUSED = {
    "config.json says so": (
        model(said={"quantization_config": {"quant_method": "bitsandbytes"}}),
        ("quantised (bitsandbytes)", "config.json"),
    ),
    "config.json says so, oddly": (model(said={"quantization_config": [4]}), ("quantised",)),
    "4 bits": (model(four_bits()), ("quantised", f"{TO_Q}.weight (U8)")),
    "8 bits": (model(typed(ml_dtypes.float8_e4m3fn, "weight")), ("quantised", "F8_E4M3")),
    "GGUF": (file(b"GGUF\3" + bytes(60), "x.gguf"), ("x.gguf", "GGUF", "quantised")),
    "an adapter": (lambda _: ADAPTER, ("is an adapter", "base model comes first")),
    "an adapter's folder": (lambda _: DATA / "peft_dora", ("peft_dora",)),
    "not there": (lambda folder: folder / "no", ("no does not exist",)),
    "not there, in no folder": (lambda folder: folder / "no" / "no", ("no does not exist",)),
    "an empty folder": (lambda folder: (folder / "x").mkdir() or folder / "x", ("no config.json",)),
    "no config.json": (edited(model(), lambda base: (base / "config.json").unlink()), ("no config.json",)),
    "config.json is no JSON": (edited(model(), lambda base: (base / "config.json").write_text("{")), ("as JSON",)),
    "config.json is a list": (
        edited(model(), lambda base: (base / "config.json").write_text("[]")),
        ("no JSON object",),
    ),
    "a pipeline without transformer": (
        edited(model(), lambda base: (base / "model_index.json").write_text("{}")),
        ("transformer",),
    ),
    "no weights": (edited(model(), lambda base: (base / SINGLE).unlink()), (SINGLE, INDEX)),
    "a shard is missing": (edited(sharded(), lambda base: (base / SHARDS[1]).unlink()), (SHARDS[1], "not there")),
    "a path in the index": (mapped(lambda m: m | {TO_Q: f"../base/{SHARDS[0]}"}), ("../base/", INDEX)),
    "a path out of the index": (mapped(lambda m: m | {TO_Q: "/etc/passwd"}), ("/etc/passwd", INDEX)),
    "the folder itself": (mapped(lambda m: dict.fromkeys(m, "..")), ("'..'",)),
    "a weight that is in the index alone": (
        mapped(lambda m: m | {f"{TO_Q}.weight".replace(".0.", ".7."): SHARDS[0]}),
        ("transformer_blocks.7.attn1", "in none of the shards"),
    ),
    "the shards swapped": (mapped(lambda m: {k: SHARDS[v == SHARDS[0]] for k, v in m.items()}), ("do not agree",)),
    "an index that is no JSON": (sharded(lambda _: b"{"), (INDEX, "as an index of shards")),
    "an index nested deep": (sharded(lambda _: b"[" * 100_000), (INDEX, "nested too deep")),
    "an index that is a list": (sharded(lambda _: []), (INDEX, "no JSON object")),
    "a map that is a list": (mapped(lambda m: list(m)), (INDEX, "no weight_map of names")),
    "a map of numbers": (mapped(lambda m: dict.fromkeys(m, 1)), (INDEX, "no weight_map of names")),
    "no map": (sharded(lambda _: {}), (INDEX, "no weight_map of names")),
    "a file and an index": (
        edited(sharded(), lambda base: shutil.copy(BASES / "2b" / SINGLE, base)),
        (SINGLE, INDEX, "two models"),
    ),
    "two variants": (
        edited(
            model(name=f"{STEM}.fp16.safetensors"),
            lambda base: shutil.copy(base / f"{STEM}.fp16.safetensors", base / f"{STEM}.bf16.safetensors"),
        ),
        ("several versions", f"{STEM}.bf16.safetensors", f"{STEM}.fp16.safetensors"),
    ),
    "a part without an index": (model(name=SHARDS[0]), (SHARDS[0], "no index")),
    "with LoRA layers": (model(wrapped("attn1.to_")), ("base_layer", "LoRA layers still in it")),
    "with LoRA layers everywhere": (model(wrapped("")), ("base_layer", "LoRA layers still in it")),
    "a shard cut off": (edited(sharded(), cut), (SHARDS[1], "as a safetensors file")),
    "an empty shard": (edited(sharded(), lambda base: os.truncate(base / SHARDS[1], 0)), (SHARDS[1], "empty")),
    "other names": (file(sat({"layer.weight": numbers(4, 4)}), "x.pt"), ("x.pt", "layer.weight")),
    "NaN": (model(changed(f"{TO_Q}.weight", np.nan)), (f"{TO_Q}.weight", "base", "NaN")),
    "another width": (lambda _: BASES / "1.5_t2v", ("there is no transformer_blocks.1", "1.5_t2v")),
}


@pytest.mark.parametrize(("make", "fragments"), **cases(FUSED))
def test_a_base_that_cannot_be_fused(tmp_path: Path, spares, make: Make, fragments: tuple[str, ...]):
    spares(("fuse", make(tmp_path), ADAPTER, "-o", tmp_path / "out"), *fragments)


def adapter(tensors: Tensors, alpha: float = 4, rank: int = 8) -> Make:
    said = json.dumps({"transformer.r": rank, "transformer.lora_alpha": alpha})
    return file(safetensors(tensors, {"lora_adapter_metadata": said}), "adapter.safetensors")


@cache
def lora() -> Tensors:
    opened = open_tensors(ADAPTER)[0]
    return {key: np.array(opened[key]) for key in opened.tensors}


def moved(block: int) -> dict[str, np.ndarray]:
    return {**lora(), **{k.replace("blocks.0", f"blocks.{block}"): v for k, v in lora().items()}}


A_KEY = f"transformer.{TO_Q}.lora_A.weight"
WIDE = {
    f"transformer.transformer_blocks.41.attn1.to_q.lora_{name}.weight": numbers(*shape)
    for name, shape in (("A", (8, 3072)), ("B", (3072, 8)))
}
ADAPTERS = {
    "NaN": (adapter(changed(A_KEY, np.nan, tensors=lora())), (A_KEY, "NaN")),
    "infinity": (adapter(changed(A_KEY, np.inf, tensors=lora())), (A_KEY, "infinity")),
    "block 7": (adapter(moved(7)), ("there is no transformer_blocks.7.attn1.to_q", "base")),
    "of the 5B": (adapter(WIDE), ("It is for CogVideoX-5B", "transformer_blocks.41")),
    "the base": (lambda _: BASES / "2b" / SINGLE, ()),
    "not there": (lambda folder: folder / "no.safetensors", ("no.safetensors does not exist",)),
}


@pytest.mark.parametrize(("make", "fragments"), **cases(ADAPTERS))
def test_an_adapter_that_cannot_be_fused(tmp_path: Path, spares, make: Make, fragments: tuple[str, ...]):
    spares(("fuse", model()(tmp_path), make(tmp_path), "-o", tmp_path / "out"), *fragments)


STRENGTHS = {
    "NaN": (["nan"], "strength"),
    "infinity": (["inf"], "strength"),
    "minus infinity": (["-inf"], "strength"),
    "out of this world": (["1e300"], "strength"),
    "two for one": (["1", "1"], "2 strengths for 1 adapter"),
}


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["", "--dry-run"])
@pytest.mark.parametrize(("given", "fragment"), **cases(STRENGTHS))
def test_a_strength(tmp_path: Path, spares, given: list[str], fragment: str, more: tuple[str, ...]):
    words = [word for number in given for word in ("--strength", number)]
    command = ("fuse", model()(tmp_path), ADAPTER, *words, *more)
    spares((*command, "-o", tmp_path / "out"), fragment)
    helps(tmp_path, *command)


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["", "--dry-run"])
@pytest.mark.parametrize(
    ("tensors", "words", "fragment"),
    [
        (typed("float16"), ("--strength", 1e7), f"{TO_Q[:18]}"),
        (changed("proj_out.weight", 1e5), ("--dtype", "fp16"), "proj_out.weight"),
        (changed(f"{TO_Q}.weight", 1e5), ("--dtype", "fp16"), f"{TO_Q}.weight"),
    ],
    ids=["strength", "copied", "fused"],
)
def test_numbers_too_large_for_fp16(tmp_path: Path, spares, tensors: Tensors, words: Any, fragment: str, more: Any):
    command = ("fuse", model(tensors)(tmp_path), ADAPTER, *words, *more)
    spares((*command, "-o", tmp_path / "out"), fragment, "too large for F16")
    helps(tmp_path, *command)


def test_numbers_too_large_for_fp32(tmp_path: Path, spares):
    large = {f"{TO_Q}.weight": np.full((64, 64), 3.4e38, "float32")}
    base = model(typed("float32") | large)(tmp_path)
    words = ("fuse", base, ADAPTER, "-o", tmp_path / "out", "--strength", "1e37")
    spares(words, "too large to be measured", "smaller --strength")
    assert "--dtype" not in run(*words).stderr


def test_a_nan_that_is_only_cast_is_the_bases_own(tmp_path: Path, spares):
    base = model(changed("proj_out.weight", np.nan))(tmp_path)
    message = spares(("fuse", base, ADAPTER, "-o", tmp_path / "out", "--dtype", "fp16"), "proj_out.weight", "base")
    assert "too large" not in message


# convert-base


def without(tensors: Tensors, *parts: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in tensors.items() if not any(part in key for part in parts)}


EXTRA = "model.diffusion_model.transformer.layers.0.attention.mystery.weight"
MIXED = typed("float32", f"{TO_Q}.weight")
CONVERTED = {
    "a key nobody knows": (run_of({**sat_weights(), EXTRA: numbers(4, 4)}), "diffusers", ("mystery",)),
    "no k": (model(without(weights(), "blocks.0.attn1.to_k.weight")), "sat", ("attn1.to_k", "not whole")),
    "no q, k and v": (run_of(without(sat_weights(), QKV)), "diffusers", ("query_key_value",)),
    "no patch": (model(without(weights(), "patch_embed")), "sat", ("base",)),
    "Diffusers to Diffusers": (model(), "diffusers", ("diffusers already",)),
    "SAT to SAT": (run_of(sat_weights()), "sat", ("sat already",)),
    "mixed types": (model(MIXED), "sat", ("to_q.weight", "BF16", "F32")),
    "NaN": (model(changed("proj_out.weight", 1e5)), "sat --dtype fp16", ("final_layer.linear.weight", "F16")),
}


@pytest.mark.parametrize(("make", "to", "fragments"), **cases(CONVERTED))
def test_a_base_that_cannot_be_converted(tmp_path: Path, spares, make: Make, to: str, fragments: tuple[str, ...]):
    spares(("convert-base", make(tmp_path), "-o", tmp_path / "out", "--to", *to.split()), *fragments)


def test_what_helps_with_mixed_types(tmp_path: Path):
    helps(tmp_path, "convert-base", model(MIXED)(tmp_path), "--to", "sat")


def test_the_text_encoder_is_left_out_and_counted(tmp_path: Path):
    t5 = {f"conditioner.embedders.0.transformer.{n}.weight": numbers(4, 4) for n in range(3)}
    base = run_of({**sat_weights(), **t5})(tmp_path)
    stdout = done("convert-base", base, "--to", "diffusers", "-o", tmp_path / "out")
    assert "left out: 3 tensors of text encoder (T5)" in stdout


# noise


def healthy_or_refused(result: Result, folder: Path) -> None:
    assert isinstance(result.exception, SystemExit | None), repr(result.exception)
    if result.exit_code:
        proper("Error: " + result.stderr.rpartition("Error: ")[2], (), folder)
    shutil.rmtree(folder / "out", ignore_errors=True)
    assert {path.name for path in folder.iterdir()} == {"base"}


@pytest.mark.parametrize("name", [SHARDS[0], INDEX, "config.json"])
def test_noise(tmp_path: Path, name: str):
    """Bytes of a header, an index or a configuration changed or cut off: refused, or without a consequence."""
    base, dice = sharded()(tmp_path), random.Random(name)
    whole = (base / name).read_bytes()
    reach = min(len(whole), 8 + int.from_bytes(whole[:8], "little")) if name in SHARDS else len(whole)
    for n in range(33):
        data = bytearray(whole)
        for _ in range(dice.randint(1, 3)):
            data[dice.randrange(reach)] = (
                dice.choice(b'0123456789{}[]",:.-\\ \n\0\xff') if n % 2 else dice.randrange(256)
            )
        (base / name).write_bytes(data[: dice.randrange(reach)] if n % 8 == 0 else data)
        healthy_or_refused(run("fuse", base, ADAPTER, "-o", tmp_path / "out"), tmp_path)
