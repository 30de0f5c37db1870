"""Reads keys of any spelling whose parts are known (spellings.toml), and says what was stripped and who writes it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from loraforge.format.keys import Hit, KeyStyle, Spelling
from loraforge.format.sorting import ending, parts_of, spelled_as
from loraforge.names.catalog import architectures
from loraforge.names.layout import pattern
from loraforge.names.lookalike import lora_paths
from loraforge.tables import package_table

_IN_BLOCK = re.compile(r"[._]\d+[._]")
_MOST_WORDS = 5
"""How many words before a module's path are looked at."""


@dataclass(frozen=True, slots=True)
class Grammar(KeyStyle):
    """The style of every key whose module is one of a known architecture, whatever stands around it."""

    def _readings(self, key: str) -> tuple[Hit, ...]:
        return next(iter(self.every(key).values()), ())

    def every(self, key: str) -> dict[tuple[str, str], tuple[Hit, ...]]:
        """Every reading of a key, by path and factor: those with a listed prefix; if none has, with another one.

        Behind another prefix only the modules of blocks are read: `proj_out` behind `x.` or `audio_` may as well be
        the end of another model's `x.proj_out` or `audio_proj_out`.
        """
        readings = dict[tuple[str, str], tuple[Hit, ...]]()
        for suffix, factor, words in _endings():
            if match := ending(suffix).fullmatch(key):
                for prefix, path, sep, stripped in _cuts(match["path"], words):
                    if (path, factor) not in readings and all(_known(part, sep) for part in parts_of(path, sep)):
                        spelled = spelled_as(prefix, words, factor, match)
                        hits = (Hit(part, factor, 0, spelled, prefix, sep, stripped) for part in parts_of(path, sep))
                        readings[path, factor] = tuple(hits)
        listed = {found: hits for found, hits in readings.items() if _prefixes().fullmatch(hits[0].prefix)}
        return listed or {found: hits for found, hits in readings.items() if _IN_BLOCK.search(found[0])}


def grammar() -> Grammar:
    """The grammar of spellings.toml."""
    return Grammar(tuple(Spelling(one["A"], one["B"]) for one in _table()["factors"]))


def _table() -> dict[str, Any]:
    return package_table("format/spellings")


def wrappers() -> frozenset[str]:
    """Words that wrappers of training put anywhere into a path."""
    return frozenset(_table()["wrappers"])


@cache
def _prefixes() -> re.Pattern[str]:
    """Listed prefixes, in any number and order."""
    return re.compile(f"(?:{'|'.join(map(re.escape, _table()['prefixes']))})*")


@cache
def _endings() -> list[tuple[str, str, str]]:
    """What ends a key, the factor that it names, and the word of its A; the longest first."""
    pairs = [(one[factor], factor, one["A"]) for one in _table()["factors"] for factor in ("A", "B")]
    more = [(suffix, factor, suffix) for suffix, factor in _table()["more"].items()]
    return sorted(pairs + more, key=lambda entry: -len(entry[0]))


def _cuts(stem: str, words: str) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    """Each way to cut what stands before the factor: prefix, module path, its separator, the words that were stripped.

    Of prefixes, the shortest first: `transformer.` is also how some layouts begin.
    """
    every = stem.split(".")
    for around in (wrappers(), frozenset[str]()):
        bare = [word for word in every if word not in around]
        stripped = tuple(dict.fromkeys(word for word in every if word in around))
        if around and not stripped:
            continue
        for n in range(min(len(bare), _MOST_WORDS)):
            prefix, path = "".join(f"{word}." for word in bare[:n]), ".".join(bare[n:])
            if re.search(r"\d", prefix):
                break
            yield prefix, path, ".", stripped
            if words.startswith("_") and path.endswith(".to_out"):  # Diffusers' processors have no .0 there
                yield prefix, f"{path}.0", ".", stripped
        if len(bare) == 1:
            ends = [0, *(match.end() for match in re.finditer("_", bare[0]))][: _MOST_WORDS + 1]
            for end in ends:
                prefix, path = bare[0][:end], bare[0][end:]
                yield prefix, path, "_", stripped
                if path.endswith("_"):  # as a conversion of TheLastBen's writes (Comfy-Org/ComfyUI#4347)
                    yield prefix, path.rstrip("_"), "_", (*stripped, "_ after the module")


def _known(path: str, sep: str) -> str | None:
    """The first architecture that has this module; None if none has it."""
    homes = architectures().index.homes([pattern(path)])
    having = (name for name, layout in homes if architectures()[name].layouts[layout].locate(path, sep) is not None)
    return next(having, None)


def odd_words(keys: Iterable[str]) -> tuple[str, str] | None:
    """The title of the architecture of the modules in the keys, and what follows the modules, which is not read.

    None if the modules of fewer than half of the keys are known.
    """
    paths = lora_paths(keys)
    every = {key: [_known(cut[1], cut[2]) for cut in _cuts(path, "")] for key, path in paths.items()}
    known = {key: name for key, names in every.items() if (name := next(filter(None, names), None))}
    if not known or 2 * len(known) < len(paths):
        return None
    words = dict.fromkeys(key[len(paths[key]) :] for key in known)
    return architectures().index.titles[next(iter(known.values()))], ", ".join(f"`{word}`" for word in words)


def described(hits: Iterable[Hit]) -> str:
    """What the spelling of these keys is, what was stripped, and who is known to write it, in one line."""
    every, table = list(hits), _table()
    first = next((hit for hit in every if hit.factor in ("A", "B")), every[0])
    prefix, words = first.prefix, first.spelled.removeprefix(f"{first.prefix}...")
    stripped = dict.fromkeys(word for hit in every for word in hit.stripped)
    meanings = {**table["wrappers"], "_ after the module": "Comfy-Org/ComfyUI#4347"}
    parts = [f"keys like {prefix}MODULE{words}"]
    parts += [f"`{word}` taken out, of {meanings[word]}" for word in stripped]
    kind = f"{prefix}*{_generic(words)}"
    parts.append(
        f"as in {table['seen'][kind]}"
        if kind in table["seen"]
        else "an unusual spelling: no program known here writes it"
    )
    return "; ".join(parts)


def _generic(words: str) -> str:
    """The words of A with {name} for an adapter's name."""
    suffixes = (suffix for suffix, factor, _ in _endings() if factor == "A" and ending(suffix).fullmatch(f"x{words}"))
    return next(suffixes, words)
