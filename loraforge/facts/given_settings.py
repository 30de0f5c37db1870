"""Settings as users give them: words KEY=VALUE, or a JSON file."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from loraforge.errors import LoraforgeError, Try, adding
from loraforge.foreign import content, reading
from loraforge.tables import package_table
from loraforge.text import shown

Value: TypeAlias = bool | int | float | str | tuple[str, ...]
Settings: TypeAlias = Mapping[str, Value]

MOST_BYTES = 1 << 20
"""The largest JSON file that is read."""


def parse(items: Sequence[str | Path] | Path) -> Settings:
    """Settings from words KEY=VALUE and paths of JSON files with one object each.

    Raises FileError if a file cannot be read, LoraforgeError as `checked` does.
    """
    pairs: list[tuple[str, Any]] = []
    for item in [items] if isinstance(items, str | Path) else items:
        if isinstance(item, Path) or "=" not in item:
            pairs += _file(Path(item))
        else:
            key, _, value = item.partition("=")
            pairs.append((key.strip(), value))
    return checked(pairs)


def checked(pairs: Iterable[tuple[str, Any]]) -> Settings:
    """The pairs as settings. Raises LoraforgeError if a key is unknown or repeated, or a value is of a wrong type."""
    settings: dict[str, Value] = {}
    for key, value in pairs:
        if key not in KEYS:
            near = (difflib.get_close_matches(key, KEYS, 1) or ["num_frames"])[0]
            raise LoraforgeError(f"there is no setting {shown(key)}; there are {', '.join(KEYS)}.", _example(near))
        if key in settings:
            raise LoraforgeError(f"{key} is given twice.", _example(key))
        read = KINDS[KEYS[key]][0](value.strip() if isinstance(value, str) else value)
        if read is None:
            raise LoraforgeError(f"{key} is {KEYS[key]}, not {shown(value)}.", _example(key))
        settings[key] = read
    return settings


def _example(key: str) -> Try:
    return adding("--settings", f"{key}={KINDS[KEYS[key]][1]}")


def _file(path: Path) -> list[tuple[str, Any]]:
    """The pairs of a JSON object, with repeated keys. Raises FileError if there is none in the file."""
    with reading(path, "KEY=VALUE, or a file of settings in JSON", _example("num_frames")):
        pairs = json.loads(content(path, MOST_BYTES), object_pairs_hook=tuple)
        if not isinstance(pairs, tuple):
            raise ValueError("it holds no JSON object")
    return list(pairs)


def _number(value: object) -> float | None:
    """The value as a finite number, or None. Text may also be a fraction: 1/128."""
    try:
        if isinstance(value, str):
            numerator, _, denominator = value.partition("/")
            value = float(numerator) / float(denominator or 1)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        return float(value) if math.isfinite(value) else None
    except (ValueError, ZeroDivisionError, OverflowError):
        return None


def _whole(value: object, least: int = 1) -> int | None:
    if isinstance(value, str):
        value = int(value) if re.fullmatch(r"[0-9]{1,20}", value) else None
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if least <= value < 1 << 64 else None


def _dtype(value: object) -> str | None:
    names = {"fp16": "float16", "half": "float16", "bf16": "bfloat16", "fp32": "float32", "float": "float32"}
    text = value.lower().removeprefix("torch.") if isinstance(value, str) else ""
    text = names.get(text, text)
    return text if text in names.values() else None


def _components(value: object) -> tuple[str, ...] | None:
    if isinstance(value, str):
        value = [part.strip().strip("'\"") for part in value.strip("[]()").split(",")]
    if not isinstance(value, list | tuple) or not value or not all(isinstance(part, str) and part for part in value):
        return None
    return tuple(value)


def _matching(pattern: str) -> Callable[[object], str | None]:
    return lambda value: value if isinstance(value, str) and re.fullmatch(pattern, value) else None


def _yes_no(value: object) -> bool | None:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    return words.get(value.lower()) if isinstance(value, str) else value if isinstance(value, bool) else None


KINDS: dict[str, tuple[Callable[[Any], Value | None], str]] = {
    "a positive whole number": (_whole, "49"),
    "a whole number from 0": (lambda value: _whole(value, 0), "42"),
    "a number": (_number, "1.0"),
    "true or false": (_yes_no, "true"),
    "the name of a class": (_matching(r"[A-Za-z_]\w{0,99}"), "CogVideoXDPMScheduler"),
    "leading, linspace or trailing": (_matching("leading|linspace|trailing"), "trailing"),
    "float16, bfloat16 or float32": (_dtype, "bfloat16"),
    "cpu, cuda or cuda:N": (_matching(r"(cpu|mps|xpu|npu|cuda)(:[0-9]{1,3})?"), "cpu"),
    "names of components": (_components, "transformer"),
}
"""What a value must be, in words -> the reader of such a value (None if it is not one), and an example."""

KEYS: Mapping[str, str] = package_table("facts/variants")["kinds"]
"""Every setting -> what its value must be, in words."""


def words(value: Value | None) -> str:
    """A value as users type it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:g}"
    return ",".join(value) if isinstance(value, tuple) else str(value)
