"""`fuse` and `convert-base` on bases that are none, adapters that are not theirs, and places that are taken."""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from click.testing import CliRunner, Result

from hostile.builders import CHECKPOINT, checkpoint, numbers, safetensors, sat
from hostile.conftest import Check
from hostile.peft_builders import cases
from hostile.refusal import listing, proper
from loraforge.cli import main
from loraforge.source import open_tensors

DATA = Path(__file__).parents[1] / "data"
BASES = DATA / "bases"
ADAPTER = DATA / "diffusers_save_lora_weights_meta" / "pytorch_lora_weights.safetensors"
STEM = "diffusion_pytorch_model"
SINGLE, INDEX = f"{STEM}.safetensors", f"{STEM}.safetensors.index.json"
SHARDS = [f"{STEM}-{n:05}-of-00002.safetensors" for n in (1, 2)]
TO_Q = "transformer_blocks.0.attn1.to_q"
QKV = "model.diffusion_model.transformer.layers.0.attention.query_key_value.weight"
Tensors = Mapping[str, np.ndarray]
Make = Callable[[Path], Path]


@cache
def weights(path: str = f"2b/{SINGLE}") -> Tensors:
    file = open_tensors(BASES / path)[0]
    return {key: np.array(file[key]) for key in file.tensors}


def sat_weights() -> Tensors:
    return weights(f"2b/sat_base/1/{CHECKPOINT}")


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def done(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def refuses(tmp_path: Path) -> Check:
    """Prove that a command refuses as it should, changes nothing, and that what it proposes to add helps."""

    def check(words: tuple[object, ...], *fragments: str) -> str:
        before = listing(tmp_path), listing(BASES)
        result = run(*words)
        assert isinstance(result.exception, SystemExit), repr(result.exception)
        assert (result.exit_code, result.stdout) == (1, ""), result.output
        assert (listing(tmp_path), listing(BASES)) == before, "something was changed or left behind"
        notes, mark, message = result.stderr.rpartition("Error: ")
        assert all(line.startswith("note: ") for line in notes.splitlines()), result.stderr
        return proper(mark + message, fragments, tmp_path)

    return check


def helps(message: Result) -> None:
    """The first command a refusal proposes works."""
    proposal = next(line for line in message.stderr.splitlines() if line.startswith("  try: "))
    done(*shlex.split(proposal.removeprefix("  try: "), comments=True)[1:])


def model(tensors: Tensors | None = None, *, name: str = SINGLE, said: Any = None, header: Any = None) -> Make:
    """What writes a transformer folder, healthy until a test says otherwise."""

    def make(folder: Path) -> Path:
        base = folder / "base"
        base.mkdir(parents=True)
        config = json.loads((BASES / "2b" / "config.json").read_text()) | (said or {})
        (base / "config.json").write_text(json.dumps(config))
        (base / name).write_bytes(safetensors(weights() if tensors is None else tensors, header))
        return base

    return make


def sharded(change: Callable[[dict[str, Any]], Any] = lambda table: table) -> Make:
    """A folder of two shards whose index was changed."""

    def make(folder: Path) -> Path:
        base = model()(folder)
        (base / SINGLE).unlink()
        keys = sorted(weights())
        parts = dict(zip(SHARDS, (keys[:40], keys[40:]), strict=True))
        for name, part in parts.items():
            (base / name).write_bytes(safetensors({key: weights()[key] for key in part}))
        table = change({"metadata": {}, "weight_map": {key: name for name, part in parts.items() for key in part}})
        (base / INDEX).write_bytes(table if isinstance(table, bytes) else json.dumps(table).encode())
        return base

    return make


def mapped(change: Callable[[dict[str, Any]], Any]) -> Make:
    return sharded(lambda table: table | {"weight_map": change(table["weight_map"])})


def edited(make: Make, edit: Callable[[Path], Any]) -> Make:
    def both(folder: Path) -> Path:
        base = make(folder)
        edit(base)
        return base

    return both


def file(data: bytes, name: str = "x.safetensors") -> Make:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def run_of(tensors: Tensors, **extra: Any) -> Make:
    """A SAT run."""

    def make(folder: Path) -> Path:
        (folder / "run" / "1").mkdir(parents=True)
        (folder / "run" / "latest").write_text("1")
        (folder / "run" / "1" / CHECKPOINT).write_bytes(sat(tensors, **extra))
        return folder / "run"

    return make


def changed(key: str, value: float, at: Any = (2, 3), tensors: Tensors | None = None) -> dict[str, np.ndarray]:
    """The tensors with one number changed."""
    found = dict(weights() if tensors is None else tensors)
    found[key] = found[key].copy()
    found[key][at] = value
    return found


def typed(dtype: Any, part: str = "", tensors: Tensors | None = None) -> dict[str, np.ndarray]:
    found = weights() if tensors is None else tensors
    return {key: value.astype(dtype) if part in key else value for key, value in found.items()}


def four_bits() -> dict[str, np.ndarray]:
    packed = {f"{TO_Q}.weight": numbers(2048, 1, dtype="uint8"), f"{TO_Q}.weight.absmax": numbers(64)}
    return {**weights(), **packed, f"{TO_Q}.weight.quant_map": numbers(16)}


def wrapped(part: str) -> dict[str, np.ndarray]:
    """As PEFT saves a model whose layers it has wrapped."""
    found = {}
    for key, value in weights().items():
        stem, _, parameter = key.rpartition(".")
        found[f"{stem}.base_layer.{parameter}" if part in key else key] = value
    return found


def renamed(base: Path, name: str) -> None:
    (base / SINGLE).rename(base / name)


def cut(base: Path) -> None:
    os.truncate(base / SHARDS[1], (base / SHARDS[1]).stat().st_size - 100)


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
    "a key more in the index": (mapped(lambda m: m | {"extra.weight": SHARDS[0]}), ("extra.weight", "do not agree")),
    "a key less in the index": (
        mapped(lambda m: {k: v for k, v in m.items() if TO_Q not in k}),
        (f"{TO_Q}.weight", "do not agree"),
    ),
    "the shards swapped": (mapped(lambda m: {k: SHARDS[v == SHARDS[0]] for k, v in m.items()}), ("do not agree",)),
    "an index that is no JSON": (sharded(lambda _: b"{"), (INDEX, "as JSON")),
    "an index nested deep": (sharded(lambda _: b"[" * 100_000), (INDEX, "as JSON")),
    "an index that is a list": (sharded(lambda _: []), (INDEX, "no JSON object")),
    "a map that is a list": (mapped(lambda m: list(m)), (INDEX, "names no files")),
    "a map of numbers": (mapped(lambda m: dict.fromkeys(m, 1)), (INDEX, "names no files")),
    "no map": (sharded(lambda _: {}), (INDEX, "names no files")),
    "a file and an index": (
        edited(sharded(), lambda base: shutil.copy(BASES / "2b" / SINGLE, base)),
        (SINGLE, INDEX, "two models"),
    ),
    "only .bin": (edited(model(), lambda base: renamed(base, f"{STEM}.bin")), (f"{STEM}.bin", "as safetensors")),
    "only fp16": (model(name=f"{STEM}.fp16.safetensors"), (f"{STEM}.fp16.safetensors",)),
    "with LoRA layers": (model(wrapped("attn1.to_")), ("base_layer", "LoRA layers still in it")),
    "with LoRA layers everywhere": (model(wrapped("")), ("base_layer", "LoRA layers still in it")),
    "a shard cut off": (edited(sharded(), cut), (SHARDS[1], "not a healthy safetensors file")),
    "an empty shard": (edited(sharded(), lambda base: os.truncate(base / SHARDS[1], 0)), (SHARDS[1], "empty")),
    "another wrapper": (file(checkpoint({"state_dict": dict(sat_weights())}), "x.pt"), ("x.pt", "module")),
    "Diffusers' names in torch": (file(sat(typed("float32")), "x.pt"), ("x.pt", "no checkpoint of SAT")),
    "other names": (file(sat({"layer.weight": numbers(4, 4)}), "x.pt"), ("x.pt", "layer.weight")),
    "NaN": (model(changed(f"{TO_Q}.weight", np.nan)), (f"{TO_Q}.weight", "base", "NaN")),
    "another width": (lambda _: BASES / "1.5_t2v", ("there is no transformer_blocks.1", "1.5_t2v")),
}


@pytest.mark.parametrize(("make", "fragments"), **cases(FUSED))
def test_a_base_that_cannot_be_fused(tmp_path: Path, refuses, make: Make, fragments: tuple[str, ...]):
    refuses(("fuse", make(tmp_path), ADAPTER, "-o", tmp_path / "out"), *fragments)


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
def test_an_adapter_that_cannot_be_fused(tmp_path: Path, refuses, make: Make, fragments: tuple[str, ...]):
    refuses(("fuse", model()(tmp_path), make(tmp_path), "-o", tmp_path / "out"), *fragments)


STRENGTHS = {
    "NaN": (["nan"], "strength"),
    "infinity": (["inf"], "strength"),
    "minus infinity": (["-inf"], "strength"),
    "out of this world": (["1e300"], "strength"),
    "two for one": (["1", "1"], "2 strengths for 1 adapter"),
}


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["", "--dry-run"])
@pytest.mark.parametrize(("given", "fragment"), **cases(STRENGTHS))
def test_a_strength(tmp_path: Path, refuses, given: list[str], fragment: str, more: tuple[str, ...]):
    words = [word for number in given for word in ("--strength", number)]
    command = ("fuse", model()(tmp_path), ADAPTER, "-o", tmp_path / "out", *words, *more)
    refuses(command, fragment)
    helps(run(*command))


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
def test_numbers_too_large_for_fp16(tmp_path: Path, refuses, tensors: Tensors, words: Any, fragment: str, more: Any):
    command = ("fuse", model(tensors)(tmp_path), ADAPTER, "-o", tmp_path / "out", *words, *more)
    refuses(command, fragment, "too large for F16")
    helps(run(*command))


def test_numbers_too_large_for_fp32(tmp_path: Path, refuses):
    base = model(typed("float32"))(tmp_path)
    message = refuses(("fuse", base, ADAPTER, "-o", tmp_path / "out", "--strength", "1e38"), "too large for F32")
    assert "NaN" not in message
    helps(run("fuse", base, ADAPTER, "-o", tmp_path / "out", "--strength", "1e38"))


def test_a_nan_that_is_only_cast_is_the_bases_own(tmp_path: Path, refuses):
    base = model(changed("proj_out.weight", np.nan))(tmp_path)
    message = refuses(("fuse", base, ADAPTER, "-o", tmp_path / "out", "--dtype", "fp16"), "proj_out.weight", "base")
    assert "too large" not in message


# places


def taken(folder: Path) -> Path:
    (folder / "out").mkdir()
    (folder / "out" / "thesis.txt").write_text("precious")
    return folder / "out"


def partial(folder: Path) -> Path:
    (folder / "out.partial").mkdir()
    (folder / "out.partial" / "thesis.txt").write_text("precious")
    return folder / "out"


PLACES: dict[str, tuple[Make, str]] = {
    "in the base": (lambda folder: folder / "base" / "out", "lie inside"),
    "the base": (lambda folder: folder / "base", "replace"),
    "the base, roundabout": (lambda folder: folder / "base" / ".." / "base", "replace"),
    "around the base": (lambda folder: folder, "replace"),
    "a folder of others": (taken, "thesis.txt"),
    "a file of others": (lambda folder: file(b"precious", "thesis.txt")(folder), "thesis.txt"),
    "the unfinished folder of others": (partial, "out.partial"),
    "an unfinished file": (lambda folder: file(b"", "out.partial")(folder) and folder / "out", "out"),
    "below a file": (lambda folder: file(b"")(folder) / "out", "cannot be written"),
    "a name of 300 letters": (lambda folder: folder / ("o" * 300), "cannot be written"),
    "a file system that is read-only": (lambda folder: Path("/proc/out"), "cannot be written"),
}


@pytest.mark.parametrize("force", [(), ("--force",)], ids=["", "--force"])
@pytest.mark.parametrize(("place", "fragment"), **cases(PLACES))
@pytest.mark.parametrize("verb", ["fuse", "convert-base"])
def test_a_place(tmp_path: Path, refuses, verb: str, place: Make, fragment: str, force: tuple[str, ...]):
    base = model()(tmp_path)
    words = (base, ADAPTER) if verb == "fuse" else (base, "--to", "sat")
    refuses((verb, *words, "-o", place(tmp_path), *force), fragment)


def test_an_earlier_result(tmp_path: Path, refuses):
    words = ("fuse", model()(tmp_path), ADAPTER, "-o", tmp_path / "out")
    done(*words)
    before = (tmp_path / "out" / SINGLE).read_bytes()
    refuses((*words, "--strength", "0.5"), "out exists")
    done(*words, "--strength", "0.5", "--force")
    assert (tmp_path / "out" / SINGLE).read_bytes() != before
    assert {path.name for path in tmp_path.iterdir()} == {"base", "out"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"config.json", SINGLE}


@pytest.mark.parametrize("text", ["[]", '{"plan": 1, "done": []}', "{", '{"done": {"x": 1}}', "\0"])
def test_an_unfinished_folder_whose_list_was_damaged(tmp_path: Path, text: str):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "loraforge-progress.json").write_text(text)
    done("fuse", model()(tmp_path), ADAPTER, "-o", tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"base", "out"}


@pytest.mark.parametrize("out", ["out", "deep/er/out"])
def test_a_disk_that_is_full(tmp_path: Path, refuses, monkeypatch: pytest.MonkeyPatch, out: str):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    refuses(("fuse", model()(tmp_path), ADAPTER, "-o", tmp_path / out), "100 are free")


@pytest.mark.parametrize("option", ["--backend", "--device"])
def test_a_backend_or_device_that_is_not_there(tmp_path: Path, refuses, option: str):
    words = ("fuse", model()(tmp_path), ADAPTER, "-o", tmp_path / "out", option, "abacus")
    refuses(words, "abacus")
    helps(run(*words))


# twice


def test_an_adapter_that_is_in_the_base_already(tmp_path: Path, refuses):
    base, peft, sat_run = (tmp_path / name for name in ("fused", "peft", "sat"))
    done("fuse", model()(tmp_path), ADAPTER, "-o", base)
    done("convert", ADAPTER, "--to", "peft", "-o", peft)
    done("convert", peft, "--to", "sat", "-o", sat_run, "--lora-only")
    done("convert-base", base, "--to", "sat", "-o", tmp_path / "fused-sat")
    for holder in (base, base / SINGLE, tmp_path / "fused-sat"):
        for again in (ADAPTER, peft):
            refuses(("fuse", holder, again, "-o", tmp_path / "out"), "already", "strength 1")


def test_an_adapter_converted_before_it_was_fused(tmp_path: Path, refuses):
    done("convert", ADAPTER, "--to", "peft", "-o", tmp_path / "peft")
    done("fuse", model()(tmp_path), tmp_path / "peft", "-o", tmp_path / "fused")
    refuses(("fuse", tmp_path / "fused", ADAPTER, "-o", tmp_path / "out"), "already")


def entry(**changes: Any) -> dict[str, str]:
    """What a header claims to hold already."""
    known = {"path": "x", "format": "x", "digests": [], "strength": 1, "scalings": [], "provenance": "", "said": ""}
    return {"loraforge": json.dumps({"fused": [known | changes]})}


def digest() -> str:
    result = json.loads(done("fuse", BASES / "2b", ADAPTER, "-o", "nowhere", "--dry-run", "--json"))
    return str(result["adapters"][0]["digests"][0])


@pytest.mark.parametrize("strength", [10**400, float("nan"), True, "1"], ids=["large", "nan", "true", "text"])
def test_a_claim_with_a_strength_that_is_none(tmp_path: Path, strength: Any):
    """Refused as held already, or not believed; anybody can write a header."""
    base = model(header=entry(digests=[digest()], strength=strength))(tmp_path)
    result = run("fuse", base, ADAPTER, "-o", tmp_path / "out")
    assert isinstance(result.exception, SystemExit | None), repr(result.exception)


@pytest.mark.parametrize("claim", [{"fused": 1}, {"fused": [1, [], {}]}, [], "x"], ids=repr)
def test_a_claim_that_is_none(tmp_path: Path, claim: Any):
    done("fuse", model(header={"loraforge": json.dumps(claim)})(tmp_path), ADAPTER, "-o", tmp_path / "out")


# what must work


def test_links_as_a_cache_has_them(tmp_path: Path):
    real = model()(tmp_path / "blobs")
    base = tmp_path / "snapshot"
    base.mkdir()
    for path in real.iterdir():
        (base / path.name).symlink_to(path)
    before = {path: path.read_bytes() for path in real.iterdir()}
    for more in ((), ("--force",)):
        done("fuse", base, ADAPTER, "-o", tmp_path / "out", *more)
    assert {path: path.read_bytes() for path in real.iterdir()} == before
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("metadata", [None, [1], "x", 4], ids=repr)
def test_an_index_with_odd_metadata(tmp_path: Path, metadata: Any):
    base = sharded(lambda table: table | {"metadata": metadata})(tmp_path)
    done("fuse", base, ADAPTER, "-o", tmp_path / "out")


# convert-base


def without(tensors: Tensors, *parts: str) -> dict[str, np.ndarray]:
    return {key: value for key, value in tensors.items() if not any(part in key for part in parts)}


EXTRA = "model.diffusion_model.transformer.layers.0.attention.mystery.weight"
MIXED = typed("float32", f"{TO_Q}.weight")
CONVERTED = {
    "a key nobody knows": (run_of({**sat_weights(), EXTRA: numbers(4, 4)}), "diffusers", ("mystery",)),
    "no k": (model(without(weights(), "blocks.0.attn1.to_k.weight")), "sat", ("0.attn1.to_k",)),
    "no q, k and v": (run_of(without(sat_weights(), QKV)), "diffusers", ("query_key_value",)),
    "no patch": (model(without(weights(), "patch_embed")), "sat", ("base",)),
    "Diffusers to Diffusers": (model(), "diffusers", ("diffusers already",)),
    "SAT to SAT": (run_of(sat_weights()), "sat", ("sat already",)),
    "mixed types": (model(MIXED), "sat", ("to_q.weight", "BF16", "F32")),
    "NaN": (model(changed("proj_out.weight", 1e5)), "sat --dtype fp16", ("final_layer.linear.weight", "F16")),
}


@pytest.mark.parametrize(("make", "to", "fragments"), **cases(CONVERTED))
def test_a_base_that_cannot_be_converted(tmp_path: Path, refuses, make: Make, to: str, fragments: tuple[str, ...]):
    refuses(("convert-base", make(tmp_path), "-o", tmp_path / "out", "--to", *to.split()), *fragments)


def test_what_helps_with_mixed_types(tmp_path: Path):
    helps(run("convert-base", model(MIXED)(tmp_path), "--to", "sat", "-o", tmp_path / "out"))


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
