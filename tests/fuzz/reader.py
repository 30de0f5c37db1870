"""An own reader of what chains write: updates, whatever a format calls the modules. It imports nothing of loraforge.

Formats call modules as they like, stack some and pad with zeros, but a row of an update stays a row. So two files make
the same update if they have the same rows, in whatever order: with a vector per width, every row becomes a number,
and sorted numbers are as near to each other as the rows that they came from.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import checker
import numpy as np
import yaml

FACTOR = re.compile(
    r"(.+?)\.(?:lora_?(A|B|down|up|magnitude_vector)|lora\.(down|up)|(alpha|dora_scale))(?:\.weight|\.default)*$"
)
XLABS = re.compile(r"_(lora\d?)\.(down|up)\.weight$")
WRAPS = re.compile(r"^(base_model\.model\.|transformer\.|unet\.)+")
VECTORS = 3


class Update(NamedTuple):
    """What one module adds."""

    rows: np.ndarray
    """s B A, float64."""
    lengths: np.ndarray
    """DoRA's; empty without."""


def read(path: Path) -> dict[str, Update]:
    """Module, as the file calls it -> its update."""
    source = checker.located(path)
    tensors, said = checker.safetensors(source) if source.suffix == ".safetensors" else (checker.torch_file(source), {})
    config: dict[str, Any] = json.loads(said.get("lora_adapter_metadata", "{}"))
    config = {WRAPS.sub("", key): value for key, value in config.items()}
    if (beside := source.with_name("adapter_config.json")).is_file():
        config = json.loads(beside.read_text())
    parts = defaultdict[str, dict[str, np.ndarray]](dict)
    for key, (tensor, _) in tensors.items():
        if sat := checker.SAT.match(key):
            parts[f"{sat[1]}.{sat[2]}.{sat[4]}"][sat[3]] = tensor
        elif match := FACTOR.match(XLABS.sub(r"_\1.lora.\2.weight", key)):
            role = match[2] or match[3] or match[4]
            parts[match[1]][{"down": "A", "up": "B", "dora_scale": "magnitude_vector"}.get(role, role)] = tensor
        else:
            raise ValueError(f"{key} is no factor")
    if any(map(checker.SAT.match, tensors)):
        run = next(
            place / "training_config.yaml" for place in source.parents if (place / "training_config.yaml").is_file()
        )
        params = yaml.safe_load(run.read_text())["model"]["network_config"]["params"]["modules"]["lora_config"][
            "params"
        ]
        config = {"lora_alpha": params.get("lora_alpha", 1)}
    return {name: _update(name, part, config) for name, part in parts.items()}


def _update(name: str, part: dict[str, np.ndarray], config: dict[str, Any]) -> Update:
    A, B = part["A"].reshape(len(part["A"]), -1), part["B"].reshape(len(part["B"]), -1)
    plain = WRAPS.sub("", name)
    s = (
        float(part["alpha"].reshape(())) / len(A)
        if "alpha" in part
        else checker.declared(config, plain, len(A))
        if config
        else 1.0
    )
    return Update(s * (B @ A), part.get("magnitude_vector", np.zeros(0)).reshape(-1))


def by_names(one: dict[str, Update], other: dict[str, Update]) -> float:
    """The largest difference of modules of one name, as a share of the first; infinite if names or shapes differ."""
    first, second = (
        {WRAPS.sub("", name): u for name, u in side.items() if u.rows.any() or u.lengths.size} for side in (one, other)
    )
    if first.keys() != second.keys():
        return np.inf
    worst = 0.0
    for name, update in first.items():
        for a, b in zip(update, second[name], strict=True):
            if a.shape != b.shape:
                return np.inf
            worst = max(worst, float(np.linalg.norm(a - b) / (np.linalg.norm(a) or 1.0)))
    return worst


def by_rows(one: dict[str, Update], other: dict[str, Update]) -> float:
    """The largest difference of sorted rows, as a share of the largest update of their width in the first."""
    first, second = _numbers(one), _numbers(other)
    if first.keys() != second.keys():
        return np.inf
    worst = 0.0
    for width, (norm, rows) in first.items():
        length = max(rows.shape[1], second[width][1].shape[1])
        a, b = (
            np.sort(np.pad(side, ((0, 0), (0, length - side.shape[1]))), axis=1) for side in (rows, second[width][1])
        )
        worst = max(worst, float(np.abs(a - b).max() / norm))
    return worst


def _numbers(side: dict[str, Update]) -> dict[int, tuple[float, np.ndarray]]:
    """Width (0: lengths) -> the norm of the largest update of it, and its rows as numbers, one line per vector."""
    found = defaultdict[int, list[np.ndarray]](list)
    for update in side.values():
        if update.rows.any():
            found[update.rows.shape[1]].append(update.rows)
        if update.lengths.size:
            found[0].append(update.lengths[:, None])
    out = {}
    for width, blocks in found.items():
        vectors = np.random.default_rng(width).standard_normal((blocks[0].shape[1], VECTORS))
        vectors /= np.linalg.norm(vectors, axis=0)
        out[width] = max(float(np.linalg.norm(block)) for block in blocks), np.concatenate(blocks).dot(vectors).T
    return out
