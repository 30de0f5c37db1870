"""Which architectures and layouts have modules of which names, without reading them: a table made from their data."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from loraforge.names.layout import Architecture

FILE = Path(__file__).with_name("index.json")
"""The index of the built-in architectures. A test makes it again and compares."""
Home = tuple[str, str]
"""An architecture and one of its layouts, by name."""
_NUMBER = re.compile(r"(?<![^._])(?:\d+|\{\w+\})(?![^._])")


def pattern(path: str) -> str:
    """A module path, or a template of one, without its numbers; alike whether dots or underscores join its words."""
    return _NUMBER.sub("#", path).replace("_", ".")


@dataclass(frozen=True, slots=True)
class Index:
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
            for layout in arch.layouts.values():
                for template in layout.modules:
                    patterns.setdefault(pattern(template.text), {})[arch.name, layout.name] = None
        return Index({one: tuple(homes) for one, homes in patterns.items()}, layouts, titles, words, repos)

    def stored(self) -> dict[str, Any]:
        """The index as its file has it: each pattern with `architecture/layout`."""
        patterns = {one: " ".join(map("/".join, homes)) for one, homes in sorted(self.patterns.items())}
        known = {name: {"title": self.titles[name], "layouts": list(self.layouts[name])} for name in self.layouts}
        return {"architectures": known, "words": self.words, "repos": self.repos, "patterns": patterns}


EMPTY = Index({}, {}, {}, {}, {})


@cache
def built_in() -> Index:
    """The index of the built-in architectures."""
    data = json.loads(FILE.read_text("utf-8"))
    known = data["architectures"]

    def home(text: str) -> Home:
        name, _, layout = text.partition("/")
        return name, layout

    return Index(
        {one: tuple(map(home, text.split())) for one, text in data["patterns"].items()},
        {name: tuple(entry["layouts"]) for name, entry in known.items()},
        {name: entry["title"] for name, entry in known.items()},
        data["words"],
        data["repos"],
    )
