"""Leaves out what the patterns of `--drop` match: modules of an adapter, and other tensors of its file."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from fnmatch import filter as matching

from loraforge.adapter.adapter import Adapter
from loraforge.adapter.differences import suffixes
from loraforge.errors import ConversionError, Try, adding, names_in
from loraforge.files.tensorfile import TensorFile
from loraforge.text import listed

_ENDING = re.compile(
    r"\.(lora(_[AB]|[._](down|up))(\.[^.]+)?\.weight|lora_magnitude_vector(\.[^.]+)?(\.weight)?|matrix_[AB]\.\d+"
    r"|(?P<other>alpha|diff|diff_[bm]|[wb]_norm|lora_B(\.[^.]+)?\.bias|dora_scale|set_weight|weight|bias))$"
)
"""What follows the path of a module in a key."""
_PREFIX = re.compile(r"^(base_model\.model\.|(model\.)?diffusion_model\.|transformer\.(?!layers)|unet\.|lora_unet_)")
COMPONENTS = {"text_encoder": "text encoder", "lora_te": "text encoder", "vae.": "VAE"}
"""How the keys of an adapter for another component begin -> the component."""
_KINDS = {
    "alpha": "alphas",
    "set_weight": "weights that replace the base model's (.set_weight)",
    **{end[1:]: f"{name} differences ({end})" for end, name in suffixes().items()},
}


def left_out(file: TensorFile, patterns: Sequence[str]) -> tuple[TensorFile, tuple[str, ...]]:
    """The file without the tensors whose key or module path matches a pattern, and a note that counts them.

    Raises ConversionError if a pattern matches nothing, or if no tensor is left.
    """
    if not patterns:
        return file, ()
    names = defaultdict[str, set[str]](set)
    for key, name in ((whole, name) for whole in file.tensors for name in _names(whole)):
        names[name].add(key)
    hits = {pattern: _hits(names, pattern) for pattern in patterns}
    for pattern, matched in hits.items():
        if not matched:
            raise _useless(pattern, names, file)
    dropped = {key for matched in hits.values() for name in matched for key in names[name]}
    if dropped >= set(file.tensors):
        raise ConversionError(f"--drop leaves none of the {len(dropped)} tensors of {file.path}.")
    kept = {key: info for key, info in file.tensors.items() if key not in dropped}
    modules = {_module(key) for key in dropped if not _kind(key)}
    kinds = Counter(_kind(key) for key in sorted(dropped) if _kind(key) and _module(key) not in modules)
    note = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    notes = (f"left out, as --drop says: {note}",) if note else ()
    return replace(file, tensors=kept, dropped=tuple(sorted(dropped))), notes


def without(
    adapter: Adapter, patterns: Sequence[str], file: TensorFile | None = None
) -> tuple[Adapter, tuple[str, ...]]:
    """The adapter without the modules that match a pattern, and the modules that were left out here or of `file`.

    Raises ConversionError if a pattern matches nothing, here or when the file was read, or if no module is left.
    """
    file = file or (adapter.source.file if adapter.source else None)
    before = file.dropped if file else ()
    if not patterns and not before:
        return adapter, ()
    seen = {name for key in before for name in _names(key)}
    dropped = {name for pattern in patterns for name in matching(adapter.updates, pattern)}
    for pattern in patterns:
        if not matching(adapter.updates, pattern) and not _hits(seen, pattern):
            raise _useless(pattern, adapter.updates, file)
    kept = {module: delta for module, delta in adapter.modules.items() if module not in dropped}
    whole = {k: d for k, d in adapter.differences.items() if dropped.isdisjoint((k, k.rpartition(".")[0]))}
    if adapter.modules and not kept:
        raise ConversionError(f"--drop leaves none of the {len(adapter.modules)} modules.")
    dropped |= {_module(key) for key in before if not _kind(key)}
    return replace(adapter, modules=kept, differences=whole), tuple(sorted(dropped))


def meets(file: TensorFile, pattern: str) -> bool:
    """Whether a pattern matches a tensor of the file."""
    return bool(_hits({name for key in file.tensors for name in _names(key)}, pattern))


def patterns_for(keys: Iterable[str]) -> list[Try]:
    """The options that leave out these tensors; empty if one is of a kind that cannot be left out."""
    words = dict.fromkeys(_pattern(key) for key in keys)
    if None in words:
        return []
    return [adding(*(part for word in words if word for part in ("--drop", word)), why="convert the rest without them")]


def _pattern(key: str) -> str | None:
    if start := next((start for start in (*COMPONENTS, "bundle_emb") if key.startswith(start)), None):
        return f"{start}*"
    other = match["other"] if (match := _ENDING.search(key)) else None
    whole = f".{other}" in suffixes() or other == "set_weight"
    return f"*.{other}" if whole else key if other == "alpha" else None


def _names(key: str) -> set[str]:
    """What a pattern is compared with: the key, the path of its module, and both without the prefix of all keys.

    Of a whole difference also the parameter that it changes.
    """
    stem, match = _ENDING.sub("", key), _ENDING.search(key)
    changed = suffixes().get(f".{match['other']}") if match else None
    wholes = (key, stem, *([f"{stem}.{changed}"] if changed else []))
    return {name for whole in wholes for name in (whole, _PREFIX.sub("", whole))}


def _hits(names: Iterable[str], pattern: str) -> list[str]:
    # `*diff*` must not match the prefix diffusion_model. of every key; `*.proj_out` must match the dot after it
    free = pattern.startswith("*")
    tails = {name: _PREFIX.sub(lambda prefix: prefix[0][-1], name) if free else name for name in names}
    distinct = set(tails.values())
    # kohya's names have `_` for the dots
    matched = set(matching(distinct, pattern) or matching(distinct, pattern.replace(".", "_")))
    return [name for name, tail in tails.items() if tail in matched]


def _module(key: str) -> str:
    return _PREFIX.sub("", _ENDING.sub("", key))


def _kind(key: str) -> str:
    """The kind of a tensor, in the plural; empty for a factor of a module of the transformer."""
    if start := next((start for start in COMPONENTS if key.startswith(start)), None):
        return f"tensors of the {COMPONENTS[start]}"
    match = _ENDING.search(key)
    ending = match["other"] if match else "other"
    return _KINDS.get(ending, "other tensors") if ending else ""


def _useless(pattern: str, names: Iterable[str], file: TensorFile | None) -> ConversionError:
    one_of_each = {re.sub(r"\d+", "0", name): name for name in sorted(names)}.values()
    wanted = pattern.strip("*.")

    def likeness(name: str) -> float:
        return max(SequenceMatcher(None, wanted, tail).ratio() for tail in (name, *re.findall(r"(?=[.](.+))", name)))

    near = sorted(list(one_of_each)[:500], key=likeness, reverse=True)[:3]
    text = f"--drop {pattern} matches no module and no tensor (the nearest names: {listed(near, 3)})."
    look = [names_in(file.path)] if file else []
    return ConversionError(text, *look)
