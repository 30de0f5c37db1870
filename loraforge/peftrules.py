r"""PEFT's rules of scale: what r, lora_alpha and their patterns mean for one module, and the least that says it.

Sources: peft tuners/lora/layer.py (scaling), tuners/lora/model.py and utils/other.py (patterns are
regular expressions matched as `(.*\.)?(key)$`), diffusers utils/peft_utils.py (unknown keys raise).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from loraforge.errors import ScaleError, Try, shown
from loraforge.scale import Rule, number

_BELIEVE = (Try("--trained-scale 1 --override-scale", "if the strength was right as loaders apply it"),)


def rule(config: Mapping[str, Any], ranks: Mapping[str, int], where: str) -> Rule:
    """What a LoraConfig says of each module's scaling.

    Raises ScaleError when a value has the wrong type, a rank contradicts the tensors, or a pattern
    is not a plain path.
    """
    r, alpha, rslora = number(config.get("r")), number(config.get("lora_alpha")), config.get("use_rslora", False)
    if r is None or alpha is None:
        raise ScaleError(
            f"{where}: r {shown(config.get('r'))}, lora_alpha {shown(config.get('lora_alpha'))} are no numbers.",
            *_BELIEVE,
        )
    exceptions = {}
    for path, rank in ranks.items():
        declared, numerator = (
            _of(config, "rank_pattern", path, r, where),
            _of(config, "alpha_pattern", path, alpha, where),
        )
        if declared != rank:
            raise ScaleError(f"{where} says r {declared:g} for {path}, but its tensors have rank {rank}.", *_BELIEVE)
        exceptions[path] = numerator / (math.sqrt(rank) if rslora else rank)
    said = f"r {r:g}, lora_alpha {alpha:g}{', rslora' if rslora else ''} in {where}"
    return Rule(said, alpha=alpha, exceptions=exceptions)


def config(ranks: Mapping[str, int], scalings: Mapping[str, float]) -> dict[str, Any]:
    """The smallest LoraConfig that gives every module its rank and scaling, and names no other module."""
    alphas = {path: _tidy(scalings[path] * rank) for path, rank in ranks.items()}
    (r, alpha), _ = Counter((ranks[path], alphas[path]) for path in sorted(ranks)).most_common(1)[0]
    least: dict[str, Any] = {"r": r, "lora_alpha": alpha, "target_modules": sorted(ranks)}
    patterns = {
        "rank_pattern": {_anchored(path): rank for path, rank in sorted(ranks.items()) if rank != r},
        "alpha_pattern": {_anchored(path): a for path, a in sorted(alphas.items()) if a != alpha},
    }
    return least | {name: pattern for name, pattern in patterns.items() if pattern}


def _of(config: Mapping[str, Any], name: str, path: str, default: float, where: str) -> float:
    pattern = config.get(name) or {}
    for key, value in pattern.items() if isinstance(pattern, dict) else ():
        if re.fullmatch(r"\^?(\w|-|\.|\\\.)+", key) is None:
            raise ScaleError(f"{where}: {name} has {key!r:.80}, which is not a plain module path.", *_BELIEVE)
        if re.match(rf"(.*\.)?({key})$", path):
            given = number(value)
            if given is None:
                raise ScaleError(f"{where}: {name} gives {key:.80} the value {shown(value)}, not a number.", *_BELIEVE)
            return given
    return default


def _anchored(path: str) -> str:
    return "^" + path.replace(".", r"\.")


def _tidy(alpha: float) -> int | float:
    """lora_alpha as people write it: 1, not 0.9999999999999999."""
    short = float(f"{alpha:.12g}")
    return int(short) if short.is_integer() else short
