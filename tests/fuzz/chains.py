"""Fuzzes chains of conversions: formats, element types, places of the scale; an own reader judges every step."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any

import ml_dtypes
import numpy as np
from hostile.builders import NAMES, framed

import loraforge
from fuzz import reader, seeds
from fuzz.guided import watched
from loraforge.errors import LoraforgeError, VerificationError

TYPES = {"float32": np.float32, "float16": np.float16, "float64": np.float64, "bfloat16": ml_dtypes.bfloat16}
SLACK, PLAIN = 4, 1e-9
"""A step may be off by so many times the error that it reports, and by what float64 and 12 digits of alpha cost."""
BACK = "peft"
"""The format that a chain begins and ends with."""
Shapes = dict[str, tuple[tuple[int, ...], tuple[int, ...]]]
"""Module -> the shapes of A and B, without the rank."""

counts: dict[str, int] = {}
"""Format -> steps that wrote it; `refused`: steps that were refused."""


@cache
def models() -> dict[str, Shapes]:
    """Architecture -> its modules in Diffusers' names with the shapes of a tiny model: from the recorded adapters."""
    import tempfile

    found: dict[str, Shapes] = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            *(seeds.DATA / "architectures").glob("*/adapter.safetensors"),
            seeds.DATA / "peft_plain",
            seeds.DATA / "sat_2b_full_r4" / "sat_ckpt",
        ]
        for n, path in enumerate(sorted(paths)):
            try:
                report = loraforge.convert(
                    path, to="peft", out=Path(folder) / f"{n}", trained_scale=1.0, override_scale=True
                )
            except LoraforgeError:
                continue
            whole = reader.checker.safetensors(Path(folder) / f"{n}" / "adapter_model.safetensors")[0]
            shapes = found.setdefault(report.architecture, {})
            for key, (tensor, _) in whole.items():
                if key.endswith(".lora_A.weight"):
                    name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                    B = whole[key.replace("lora_A", "lora_B")][0]
                    shapes[name] = tensor.shape[1:], (B.shape[0], *B.shape[2:])
    return found


def begun(rng: Random, place: Path) -> tuple[str, Path]:
    """A new adapter in a PEFT folder, by our own hand; its architecture."""
    name = rng.choice([*sorted(models()), "cogvideox", "cogvideox"])
    shapes = models()[name]
    block = rng.choice(sorted(shapes))
    stem = re.sub(r"\d+", r"\\d+", re.escape(block).replace(r"\.", r"\.")).rpartition(r"\.")[0]
    near = [path for path in shapes if re.match(stem, path)]
    paths = sorted(
        {
            block,
            *rng.sample(near, min(len(near), rng.randint(1, 4))),
            *rng.sample(sorted(shapes), min(len(shapes), rng.randint(0, 3))),
        }
    )
    numbers = np.random.default_rng(rng.getrandbits(32))
    kind = rng.choice(["float32"] * 4 + ["float16", "bfloat16", "float64"])
    dora, several = rng.random() < 0.1, rng.random() < 0.3
    rank = rng.choice((1, 2, 3, 4, 8))
    ranks = {path: rng.choice((1, 2, 3, 4)) if several else rank for path in paths}
    alpha = rng.choice((1, 2, 4, 8, 0.5, rank, 0.7, 64, 1e-3, 3))
    alphas = {path: rng.choice((1, 2, 5, 0.3)) if rng.random() < 0.2 else alpha for path in paths}
    size = 10 ** rng.uniform(-3, 0.5), 10 ** rng.uniform(-3, 0.5)
    tensors: dict[str, np.ndarray] = {}
    for path in paths:
        (inputs, rows), r = shapes[path], ranks[path]
        stem = f"base_model.model.{path}"
        tensors[f"{stem}.lora_A.weight"] = (size[0] * numbers.standard_normal((r, *inputs))).astype(TYPES[kind])
        tensors[f"{stem}.lora_B.weight"] = (size[1] * numbers.standard_normal((rows[0], r, *rows[1:]))).astype(
            TYPES[kind]
        )
        if dora:
            tensors[f"{stem}.lora_magnitude_vector"] = (numbers.random(rows[0]) + 0.5).astype(TYPES[kind])
    config: dict[str, Any] = {
        "peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": paths, "use_dora": dora,
        "use_rslora": rng.random() < 0.1,
        "rank_pattern": {f"^{re.escape(path)}": r for path, r in ranks.items() if r != rank},
        "alpha_pattern": {f"^{re.escape(path)}": a for path, a in alphas.items() if a != alpha},
    }  # fmt: skip
    return name, _written(place, tensors, kind, config)


def saved(place: Path, shapes: Mapping[str, tuple[int, int]], rank: int = 2) -> Path:
    """A PEFT folder of these modules (inputs, rows), with random numbers, at scale 1."""
    numbers, tensors = np.random.default_rng(0), dict[str, np.ndarray]()
    for path, (inputs, rows) in shapes.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = numbers.standard_normal((rank, inputs), np.float32)
        tensors[f"base_model.model.{path}.lora_B.weight"] = numbers.standard_normal((rows, rank), np.float32)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": sorted(shapes)}
    return _written(place, tensors, "float32", config)


def _written(place: Path, tensors: Mapping[str, np.ndarray], kind: str, config: Mapping[str, Any]) -> Path:
    place.mkdir()
    header, data = dict[str, Any](), b""
    for key, tensor in tensors.items():
        start, data = len(data), data + tensor.tobytes()
        header[key] = {"dtype": NAMES[kind], "shape": list(tensor.shape), "data_offsets": [start, len(data)]}
    (place / "adapter_model.safetensors").write_bytes(framed(json.dumps(header).encode(), data))
    (place / "adapter_config.json").write_text(json.dumps(config))
    return place


def step(rng: Random, to: str) -> dict[str, Any]:
    """The options of one conversion."""
    options: dict[str, Any] = {"to": to}
    if rng.random() < 0.3:
        options["dtype"] = rng.choice(("fp16", "bf16", "fp32"))
    if to == "diffusers" and rng.random() < 0.4:
        options["scale_in"] = "metadata"
    if to in ("diffusers", "peft") and rng.random() < 0.2:
        options["pad_ranks"] = True
    if to == "sat":
        options |= {"lora_only": True} | ({"target_alpha": rng.choice((1, 2, 8, 0.5))} if rng.random() < 0.4 else {})
    return options


def part(place: Path, rng: Random, go_on: Callable[[], bool]) -> Iterator[list[dict[str, Any]]]:
    """What run.py calls."""
    watch, number = watched(place.parent), 0
    models()
    while go_on():
        number += 1
        folder = place / f"{number}"
        folder.mkdir()
        said, wrong = list[dict[str, Any]](), list[str]()
        carry_out = partial(_chain, rng, folder, said)
        fault = watch.faults(lambda wrong=wrong, steps=carry_out: wrong.extend(steps()), 1 << 22)
        yield [
            {"what": f"chain: {line.replace(str(folder), '')}", "words": said, "folder": folder}
            for line in [*wrong, *fault]
        ]
        shutil.rmtree(folder)


part.counts = {"steps": counts}  # type: ignore[attr-defined]


def _chain(rng: Random, folder: Path, said: list[dict[str, Any]]) -> Iterator[str]:
    """Carry out one chain, and yield what is wrong with it. `said`: gets the options of its steps."""
    name, at = begun(rng, folder / "0")
    first = last = reader.read(at)
    lost, length = 0.0, rng.randint(2, 6)
    written = [to for to, form in loraforge.formats().items() if form.writer is not None and name in form.layouts]
    for n in range(1, length + 1):
        to = BACK if n == length else rng.choice(written)
        options = step(rng, to)
        said.append(options)
        out = folder / f"{n}"
        try:
            report = loraforge.convert(at, out=out, architecture=name, **options)
        except VerificationError as error:  # our own fault, by our own word
            yield f"{to}: {error.message[:200]}"
            return
        except LoraforgeError:
            counts["refused"] = counts.get("refused", 0) + 1
            if out.exists():
                yield f"{to}: refused, and left a result"
            continue
        counts[to] = counts.get(to, 0) + 1
        now = reader.read(out)
        error = max((one.error for one in report.steps), default=0.0)
        off = reader.by_rows(last, now)
        if not off <= SLACK * error + PLAIN:
            yield f"{name}: {options} is off by {off:.1e}, and reports {error:.1e}"
        lost = math.expm1(math.log1p(lost) + math.log1p(error))
        at, last = out, now
        if to == BACK and not (whole := reader.by_names(first, now)) <= SLACK * lost + PLAIN:
            yield f"{name}: back in {BACK} it is off by {whole:.1e}, and the steps report {lost:.1e}"
