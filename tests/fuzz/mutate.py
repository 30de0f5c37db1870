"""Random changes of bytes, texts and trees of values that leave most of their structure whole."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from copy import deepcopy
from random import Random
from typing import Any

MARK = "fuzzmark"
"""The name of a module that does not exist: nothing may try to import it."""

NUMBERS = (
    0, 1, -1, 2, 3, 7, 8, 64, 127, 128, 255, 256, 65535, 1 << 20, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 48), 1 << 53,
    (1 << 63) - 1, 1 << 63, 1 << 64, 10**30, -(1 << 63), 0.0, -0.0, 0.5, 1.5, 1e-8, 5e-324, 1e30, 1e200, 1e308,
    float("inf"), float("-inf"), float("nan"),
)  # fmt: skip
TEXTS = (
    "", " ", "0", "1", "-1", "x", "nan", "inf", "1e999", "none", "null", "true", "True", "auto", "dynamic", "[/x]",
    "{}",
    "[]", "../../x", "/etc/passwd", "a/b", "..", ".", "\x00", "\x1b[31m", "\u202e", "\x9b", "\ud800", "\ufeff", "é",
    "模型",
    "(a+)+$", ".*", "^", "[", "(?", "\\", "*", "?", "$(x)", "`x`", "a" * 300, "9" * 5000, "to_q", "transformer", "F32",
    "F16",
    "BF16", "F8_E4M3", "I64", "U8", "C64", "LORA", "hf://a/b", "https://x.invalid/y",
)  # fmt: skip
WORDS = (
    "lora_alpha", "alpha", "r", "rank", "lora_rank", "network_alpha", "network_dim", "use_rslora", "use_dora", "rslora",
    "alpha_pattern", "rank_pattern", "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern",
    "modules_to_save", "peft_type", "bias", "lora_bias", "init_lora_weights", "base_model_name_or_path",
    "fan_in_fan_out",
    "lora_config", "params", "value", "desc", "adapter", "type", "output_dir", "output_path", "transformer",
    "loraforge",
    "lora_adapter_metadata", "ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args", "format",
    "modelspec.architecture", "training_config", "weight_map", "metadata", "__metadata__", "dtype", "shape",
    "data_offsets", "module", "state_dict", "model", "sample_width", "sample_height", "sample_frames", "patch_size",
    "tags", "license", "license_name", "license_link", "base_model", "widget", "language", "pipeline_tag",
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": None}, *NUMBERS, *TEXTS)


def changed(change: Callable[[Random, bytes], bytes], rng: Random, data: bytes) -> bytes:
    """The data changed; as bytes, if an earlier change made it too odd for `change` itself."""
    try:
        return change(rng, data)
    except Exception:
        return of_bytes(rng, data)


def of_bytes(rng: Random, data: bytes) -> bytes:
    """One to four changes: bits, bytes, spans, integers, the end."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not out:
            return bytes(rng.randrange(256) for _ in range(rng.randrange(40)))
        at, length = rng.randrange(len(out)), rng.choice((1, 1, 2, 4, 8, 16, rng.randint(1, 64)))
        match rng.randrange(8):
            case 0:
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                out[at] = rng.choice((0, 1, 0x20, 0x7F, 0x80, 0xFF, rng.randrange(256)))
            case 2:
                del out[at : at + length]
            case 3:
                out[at:at] = bytes(rng.randrange(256) for _ in range(length))
            case 4:
                out[at:at] = out[at : at + length]
            case 5:
                del out[at:]
            case 6:
                size = rng.choice((2, 4, 8))
                out[at : at + size] = (rng.choice(NUMBERS[:20]) % (1 << 8 * size)).to_bytes(size, "little")
            case 7:
                start = rng.randrange(len(out))
                out[at : at + length] = out[start : start + length]
    return bytes(out)


def of_text(rng: Random, text: str, more: tuple[str, ...] = ()) -> str:
    """One to four changes of words, numbers, lines and their order. `more`: texts of its language."""
    for _ in range(rng.randint(1, 4)):
        lines = text.split("\n")
        n = rng.randrange(len(lines))
        tokens = list(re.finditer(r"[\w.-]+|\S", lines[n]))
        match rng.randrange(9):
            case 0 if len(lines) > 1:
                del lines[n]
            case 1:
                lines.insert(n, rng.choice(lines))
            case 2:
                lines.insert(n, rng.choice(more or TEXTS))
            case 3:
                lines[n] = rng.choice(("  ", "\t", "- ", "# ", "    ")) + lines[n]
            case 4:
                lines[n] = lines[n].lstrip() if rng.random() < 0.5 else lines[n][: rng.randint(0, len(lines[n]))]
            case 5:
                m = rng.randrange(len(lines))
                lines[n], lines[m] = lines[m], lines[n]
            case _ if tokens:
                token = rng.choice(tokens)
                new = rng.choice((*(more or TEXTS), rng.choice(TEXTS), rng.choice(WORDS), repr(rng.choice(NUMBERS))))
                lines[n] = lines[n][: token.start()] + new + lines[n][token.end() :]
        text = "\n".join(lines)
    return text


def of_tree(rng: Random, tree: Any, words: tuple[str, ...] = WORDS) -> Any:
    """The tree of JSON values with one to three places changed: value, type, key, order, depth."""
    root = {"": json.loads(json.dumps(tree))}
    for _ in range(rng.randint(1, 3)):
        holder, key = rng.choice(_places(root))
        value = holder[key]
        match rng.randrange(10):
            case 0 | 1 | 2:
                holder[key] = deepcopy(rng.choice(ODD_VALUES))
            case 3 if isinstance(value, int | float) and not isinstance(value, bool):
                holder[key] = rng.choice((value + 1, value * 2, -value, str(value), rng.choice(NUMBERS)))
            case 4 if isinstance(value, str):
                holder[key] = _of_string(rng, value, words)
            case 5 if isinstance(holder, dict) and key != "":
                del holder[key]
            case 6 if isinstance(holder, dict) and key != "":
                holder[rng.choice((*words, *TEXTS))] = holder.pop(key)
            case 7 if isinstance(value, dict):
                value[rng.choice(words)] = deepcopy(rng.choice(ODD_VALUES))
            case 7 if isinstance(value, list):
                value.insert(rng.randint(0, len(value)), deepcopy(rng.choice((*ODD_VALUES, *value))))
            case 8:
                other, place = rng.choice(_places(root))
                holder[key] = json.loads(json.dumps(other[place]))
            case 9:
                holder[key] = rng.choice(([value], {"value": value}, {rng.choice(words): value}, [value] * 20))
    return root[""]


def _of_string(rng: Random, value: str, words: tuple[str, ...]) -> str:
    """Another text; JSON within it is changed as such."""
    if value[:1] in "{[" and rng.random() < 0.8:
        try:
            return json.dumps(of_tree(rng, json.loads(value), words))
        except (ValueError, RecursionError):
            pass
    return rng.choice((value + rng.choice(TEXTS), value[: len(value) // 2], of_text(rng, value), rng.choice(words)))


def _places(root: Any) -> list[tuple[Any, Any]]:
    """Every container in a tree with every key in it, at most 2,000."""
    found, queue = list[tuple[Any, Any]](), [root]
    while queue and len(found) < 2000:
        node = queue.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            found.append((node, key))
            if isinstance(node[key], dict | list):
                queue.append(node[key])
    return found


def of_json(rng: Random, data: bytes, words: tuple[str, ...] = WORDS) -> bytes:
    """The JSON text changed as a tree, or as text; written in one of the ways that JSON is."""
    if rng.random() < 0.12:
        return of_bytes(rng, data)
    try:
        tree = of_tree(rng, json.loads(data), words)
        text = json.dumps(tree, ensure_ascii=rng.random() < 0.7, indent=rng.choice((None, None, 2)))
    except (ValueError, RecursionError):
        return of_bytes(rng, data)
    match rng.randrange(24):
        case 0:
            text = "\ufeff" + text
        case 1:
            text += rng.choice((",", "}", "\n{}", "\x00"))
        case 2 if text.startswith("{") and len(text) > 2:
            text = f'{{"{rng.choice(words)}": {rng.choice(("1", "null", "NaN"))}, {text[1:]}'  # may repeat a key
        case 3:
            depth = rng.choice((70, 2_000))
            text = '{"a":' * depth + text + "}" * depth
        case 4:
            return text.encode("utf-16", "surrogatepass")
    return text.encode("utf-8", "surrogatepass")
