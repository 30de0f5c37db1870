"""Which architectures and layouts have modules of which names, without reading them: a table made from their data."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from loraforge.names.layout import Architecture, pattern

FILE = Path(__file__).with_name("index.json")
"""The index of the built-in architectures. A test makes it again and compares."""
Home = tuple[str, str]
"""An architecture and one of its layouts, by name."""


class Index(NamedTuple):
    """What is known of architectures without reading their layouts."""

    patterns: Mapping[str, tuple[Home, ...]]
    """Pattern of a module -> every layout with a module of that pattern."""
    layouts: Mapping[str, tuple[str, ...]]
    """Architecture -> its layouts."""
    titles: Mapping[str, str]
    """Architecture -> its title."""
    words: Mapping[str, str]
    """What headers call an architecture -> the architecture."""
    repos: Mapping[str, str]
    """Repository of a released model -> its architecture."""

    def homes(self, patterns: Iterable[str], used: Collection[Home] | None = None) -> Counter[Home]:
        """Layout (of those `used`) -> how many of these patterns it has."""
        every = (home for one in patterns for home in self.patterns.get(one, ()))
        return Counter(home for home in every if used is None or home in used)

    def adding(self, architectures: Iterable[Architecture]) -> Index:
        """The index with these architectures, or with their new layouts."""
        patterns = {one: dict.fromkeys(homes) for one, homes in self.patterns.items()}
        layouts, titles, words, repos = {**self.layouts}, {**self.titles}, {**self.words}, {**self.repos}
        for arch in architectures:
            layouts[arch.name], titles[arch.name] = tuple(arch.layouts), arch.title
            words |= dict.fromkeys(arch.words or (arch.name.replace("_", ""),), arch.name)
            repos |= {variant.repo: arch.name for variant in arch.variants}
            for home, template in (((arch.name, name), t) for name, own in arch.layouts.items() for t in own.modules):
                patterns.setdefault(pattern(template.text), {})[home] = None
        return Index({one: tuple(homes) for one, homes in patterns.items()}, layouts, titles, words, repos)


@cache
def built_in() -> Index:
    """The index of the built-in architectures."""
    data = json.loads(FILE.read_text("utf-8"))
    split = {one: [home.partition("/") for home in text.split()] for one, text in data["patterns"].items()}
    patterns = {one: tuple((name, layout) for name, _, layout in homes) for one, homes in split.items()}
    layouts = {name: tuple(entry["layouts"]) for name, entry in data["architectures"].items()}
    titles = {name: entry["title"] for name, entry in data["architectures"].items()}
    return Index(patterns, layouts, titles, data["words"], data["repos"])
