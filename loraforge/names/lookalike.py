"""What an adapter looks like if no format reads its names: another model's, or a known one's with an odd word."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from typing import Any

from loraforge.names.catalog import architectures
from loraforge.names.layout import pattern
from loraforge.tables import package_table

_FACTOR = re.compile(
    r"(?P<path>.+?)(?P<word>\.lora_[AaBb]|\.lora_(?:down|up)|[._]lora\.(?:down|up)|\.lora_magnitude_vector|\.(?:down|up)(?=\.weight)"
    r"|\.hada_[wt]\d\w*|\.lokr_[wt]\d\w*|\.oft_\w+|\.matrix_[AB]|\.dora_scale|\.diff(?:_b)?|\.alpha)(?P<rest>\..*)?",
    re.DOTALL,
)


def lora_paths(keys: Iterable[str]) -> dict[str, str]:
    """Key -> its module path with any prefix, for the keys that end like an adapter's."""
    return {key: match["path"] for key in keys if (match := _FACTOR.fullmatch(key))}


_NAMES = {
    "diffusers": ("diffusers",),
    "comfyui": ("comfyui", "diffusers"),
    "original": ("original", "comfyui", "diffusers"),
}
"""The kinds of names in the table of other models -> where they stand: in the first list that a model has."""


def models() -> Mapping[str, Mapping[str, Any]]:
    """The table of other models, by title."""
    return package_table("names/othermodels")


@cache
def _pattern(title: str, names: str, sep: str) -> re.Pattern[str] | None:
    """The names of a model's modules; None if it has no names of that kind."""
    modules = models()[title].get(names, ())
    text = "|".join(modules).replace("{i}", r"\d+").replace(".*", "\0").replace(".", sep).replace("\0", ".*")
    return re.compile(f"(?:{text})") if modules else None


def sharing(paths: Collection[str], sep: str = ".") -> dict[str, frozenset[str]]:
    """Each model that has all of these modules -> the kinds of names that they are: of `diffusers`, `comfyui`, ..."""
    tried, flat = _kinds(path.replace(".", sep) for path in paths), re.escape(sep)

    def has(title: str, names: str) -> bool:
        known = next((one for kind in _NAMES[names] if (one := _pattern(title, kind, flat))), None)
        return known is not None and all(map(known.fullmatch, tried))

    every = {title: frozenset(names for names in _NAMES if has(title, names)) for title in _others()}
    return {title: kinds for title, kinds in every.items() if kinds}


def _kinds(paths: Iterable[str]) -> set[str]:
    """The paths, one for all blocks."""
    return {re.sub(r"(?<=[._])\d+(?=[._])", "0", path) for path in paths}


def other_model(paths: Iterable[str], *, tied: bool = False) -> str | None:
    """The other model with the most of these module kinds, and at least half; None if an architecture has as many.

    With `tied`: None only if an architecture has more; so it is for a model that is `common`.
    """
    kinds = _kinds(paths)
    each = ((title, [_pattern(title, names, "[._]") for names in _NAMES]) for title in _others())
    ends = {title: [re.compile(rf"(?:^|[._])(?:{p.pattern})$") for p in lists if p] for title, lists in each}
    counts = {title: sum(any(end.search(path) for end in lists) for path in kinds) for title, lists in ends.items()}
    most, ours = max(counts.values(), default=0), sum(map(_known, kinds))
    best = [title for title, count in counts.items() if count == most]
    if not kinds or 2 * most < len(kinds) or most < ours:
        return None
    return " or ".join(best) if most > ours or tied or any(models()[one].get("common") for one in best) else None


def _others() -> list[str]:
    """The titles of the models that are no architecture here."""
    return [title for title in models() if title not in architectures().index.titles.values()]


def of_repo(repo: str) -> str | None:
    """The model in a repository, by what its name begins with, the longest; None if not known."""
    starts = {start.lower(): title for title, model in models().items() for start in model.get("repos", ())}
    return starts.get(max((start for start in starts if repo.lower().startswith(start)), key=len, default=""))


def of_words(text: str) -> str | None:
    """The title of the model that a header entry names, by the longest word; None if it names none that is known."""
    name, index = re.sub(r"[^a-z0-9]", "", text.lower()), architectures().index
    words = {word: title for title, model in models().items() for word in model.get("words", ())}
    words |= {word: index.titles[arch] for word, arch in index.words.items()}
    return words[max(hits, key=len)] if (hits := [word for word in words if name.startswith(word)]) else None


def _known(path: str) -> bool:
    """Whether an architecture has a module at the end of this path, by its pattern."""
    words, patterns = pattern(path).split("."), architectures().index.patterns
    return any(".".join(words[n:]) in patterns for n in range(min(len(words), 6)))
