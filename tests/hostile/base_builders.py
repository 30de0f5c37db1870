"""Base models, healthy until a test changes them, and what runs a command on them."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner, Result

from hostile.builders import CHECKPOINT, numbers, safetensors, sat
from loraforge.cli.app import main
from loraforge.files.opening import open_tensors

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


def helps(folder: Path, *words: object) -> None:
    """The first command a refusal proposes works."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    lines = run(*words, "-o", folder / "out").stderr.splitlines()
    shutil.rmtree(folder / "out", ignore_errors=True)
    proposal = next(line for line in lines if line.startswith("  try: ")).removeprefix("  try: ")
    done(*shlex.split(proposal, comments=True)[1:])


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
