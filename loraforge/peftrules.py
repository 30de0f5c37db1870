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

from loraforge.errors import ScaleError
from loraforge.scale import Rule


def rule(config: Mapping[str, Any], ranks: Mapping[str, int], where: str) -> Rule:
    """What a LoraConfig says of each module's scaling.

    Raises ScaleError when a value has the wrong type, a rank contradicts the tensors, or a pattern
    is not a plain path.
    """
    r, alpha, rslora = config.get("r"), config.get("lora_alpha"), config.get("use_rslora", False)
    if not _number(r) or alpha is None or not _number(alpha):
        raise ScaleError(f"{where}: r {r!r:.40} and lora_alpha {alpha!r:.40} are not both numbers.")
    exceptions = {}
    for path, rank in ranks.items():
        declared, numerator = (
            _of(config, "rank_pattern", path, r, where),
            _of(config, "alpha_pattern", path, alpha, where),
        )
        if declared != rank:
            raise ScaleError(f"{where} says r {declared:g} for {path}, but its tensors have rank {rank}.")
        exceptions[path] = numerator / (math.sqrt(rank) if rslora else rank)
    return Rule(
        f"r {r}, lora_alpha {alpha}{', rslora' if rslora else ''} in {where}", alpha=float(alpha), exceptions=exceptions
    )


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


def _of(config: Mapping[str, Any], name: str, path: str, default: Any, where: str) -> Any:
    pattern = config.get(name) or {}
    for key, value in pattern.items() if isinstance(pattern, dict) else ():
        if re.fullmatch(r"[\w.^\\-]+", key) is None:
            raise ScaleError(f"{where}: {name} has {key!r:.80}, which is not a plain module path.")
        if re.match(rf"(.*\.)?({key})$", path):
            if not _number(value):
                raise ScaleError(f"{where}: {name} gives {key} the value {value!r:.40}, which is not a number.")
            return value
    return default


def _anchored(path: str) -> str:
    return "^" + path.replace(".", r"\.")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _tidy(alpha: float) -> int | float:
    """lora_alpha as people write it: 1, not 0.9999999999999999."""
    short = float(f"{alpha:.12g}")
    return int(short) if short.is_integer() else short
