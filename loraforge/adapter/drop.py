"""Leaves out what the user names with `--drop`: modules of an adapter, and any other tensor of its file."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from fnmatch import filter as matching
from typing import TypeVar

from loraforge.adapter.adapter import Adapter
from loraforge.errors import ConversionError, Try, adding
from loraforge.files.tensorfile import TensorFile
from loraforge.text import command, listed

_ENDING = re.compile(
    r"\.(lora(_[AB]|[._](down|up))(\.[^.]+)?\.weight|lora_magnitude_vector(\.[^.]+)?(\.weight)?|matrix_[AB]\.\d+"
    r"|(?P<other>alpha|diff|diff_b|dora_scale|weight|bias))$"
)
"""What follows a module's path in a key."""
_PREFIX = re.compile(
    r"^(base_model\.model\.|diffusion_model\.|model\.diffusion_model\.|transformer\.(?!layers)|lora_unet_)"
)
COMPONENTS = {"text_encoder": "text encoder", "lora_te": "text encoder", "vae.": "VAE"}
"""How the keys of an adapter of another component begin."""
_KINDS = {"diff": "weight differences (.diff)", "diff_b": "bias differences (.diff_b)", "alpha": "alphas"}
T = TypeVar("T", bound=TensorFile)


def left_out(file: T, patterns: Sequence[str]) -> tuple[T, tuple[str, ...]]:
    """The file without the tensors whose key, or whose module's path, matches a pattern, and a note that counts them.

    Raises ConversionError where a pattern matches none of them, or nothing is left.
    """
    if not patterns:
        return file, ()
    names = defaultdict[str, set[str]](set)
    for key in file.tensors:
        for name in _names(key):
            names[name].add(key)
    hits = {pattern: _hits(names, pattern) for pattern in patterns}
    for pattern, found in hits.items():
        if not found:
            raise _useless(pattern, names, file)
    gone = {key for found in hits.values() for name in found for key in names[name]}
    if gone >= set(file.tensors):
        raise ConversionError(f"--drop leaves none of the {len(gone)} tensors of {file.path}.")
    kept = {key: info for key, info in file.tensors.items() if key not in gone}
    whole = {_module(key) for key in gone if not _kind(key)}
    others = Counter(kind for key in sorted(gone) if (kind := _kind(key)) and _module(key) not in whole)
    note = ", ".join(f"{count} {kind}" for kind, count in others.items())
    notes = (f"left out, as --drop says: {note}",) if note else ()
    return file.hiding(tensors=kept, dropped=tuple(sorted(gone))), notes


def without(
    adapter: Adapter, patterns: Sequence[str], file: TensorFile | None = None
) -> tuple[Adapter, tuple[str, ...]]:
    """The adapter without the modules that match a pattern, and what was left out of it, or of `file`.

    Raises ConversionError where a pattern matches nothing, here or when its file was read, or nothing is left.
    """
    file = file or (adapter.source.file if adapter.source else None)
    before = file.dropped if file else ()
    seen = {name for key in before for name in _names(key)}
    dropped = {module for pattern in patterns for module in matching(adapter.modules, pattern)}
    for pattern in patterns:
        if not matching(adapter.modules, pattern) and not _hits(seen, pattern):
            raise _useless(pattern, adapter.modules, file)
    if adapter.modules and len(dropped) == len(adapter.modules):
        raise ConversionError(f"--drop leaves none of the {len(dropped)} modules.")
    kept = {module: delta for module, delta in adapter.modules.items() if module not in dropped}
    return replace(adapter, modules=kept), tuple(sorted(dropped | {_module(key) for key in before if not _kind(key)}))


def meets(file: TensorFile, pattern: str) -> bool:
    """Whether a pattern means any of the file."""
    return bool(_hits({name for key in file.tensors for name in _names(key)}, pattern))


def patterns_for(keys: Iterable[str]) -> list[Try]:
    """The options that leave out these tensors, where all of them are of kinds that are no factors of a LoRA."""
    words = dict.fromkeys(_pattern(key) for key in keys)
    if None in words:
        return []
    return [adding(*(part for word in words if word for part in ("--drop", word)), why="convert the rest without them")]


def _pattern(key: str) -> str | None:
    start = next((start for start in COMPONENTS if key.startswith(start)), None)
    match = _ENDING.search(key)
    if start:
        return f"{start}*"
    if key.startswith("bundle_emb"):
        return "bundle_emb*"
    if match and match["other"] in ("diff", "diff_b"):
        return f"*.{match['other']}"
    return key if match and match["other"] == "alpha" else None


def _names(key: str) -> set[str]:
    """What a pattern may mean: the key, the path of its module, and both without what stands before all of them."""
    return {name for whole in (key, _ENDING.sub("", key)) for name in (whole, _PREFIX.sub("", whole))}


def _hits(names: Iterable[str], pattern: str) -> list[str]:
    # `*diff*` does not mean the diffusion_model. that stands before every key; `*.proj_out` means the . behind it
    tails = {name: _behind(name) if pattern.startswith("*") else name for name in names}
    seen = set(tails.values())
    hits = set(
        matching(seen, pattern) or matching(seen, pattern.replace(".", "_"))
    )  # kohya's names have `_` for the dots
    return [name for name, tail in tails.items() if tail in hits]


def _behind(name: str) -> str:
    """A name without what stands before every key, but the dot that ends that."""
    found = _PREFIX.match(name)
    return f"{found[0][-1]}{name[found.end() :]}" if found else name


def _module(key: str) -> str:
    return _PREFIX.sub("", _ENDING.sub("", key))


def _kind(key: str) -> str:
    """What a tensor is that is no factor of a module of the transformer; empty where it is one."""
    if start := next((start for start in COMPONENTS if key.startswith(start)), None):
        return f"tensors of the {COMPONENTS[start]}"
    match = _ENDING.search(key)
    if match is None or match["other"]:
        return _KINDS.get(match["other"] if match else "", "other tensors")
    return ""


def _useless(pattern: str, names: Iterable[str], file: TensorFile | None) -> ConversionError:
    kinds = {re.sub(r"\d+", "0", name): name for name in sorted(names)}.values()  # of many blocks, one
    want = pattern.strip("*.")

    def likeness(name: str) -> float:
        return max(SequenceMatcher(None, want, tail).ratio() for tail in (name, *re.findall(r"(?=[.](.+))", name)))

    near = sorted(list(kinds)[:500], key=likeness, reverse=True)[:3]
    return ConversionError(
        f"--drop {pattern} matches no module and no tensor (they are called like {listed(near, 3)}).",
        *([Try(command("loraforge", "inspect", "--skeleton", file.path), "every name")] if file else []),
    )
