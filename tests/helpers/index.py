"""The index of the built-in architectures: `make index` writes it again after a change of their data."""

from __future__ import annotations

import json

from loraforge.names.bijection import parse
from loraforge.names.catalog import FOLDER
from loraforge.names.index import FILE, Index
from loraforge.tables import package_tables


def text() -> str:
    """The index file as the data of the architectures has it now."""
    every = [parse(data, f"{name}.toml") for name, data in package_tables(FOLDER).items()]
    index = Index({}, {}, {}, {}, {}).adding(every)
    patterns = {one: " ".join(map("/".join, homes)) for one, homes in sorted(index.patterns.items())}
    known = {name: {"title": index.titles[name], "layouts": list(own)} for name, own in index.layouts.items()}
    stored = {"architectures": known, "words": index.words, "repos": index.repos, "patterns": patterns}
    return json.dumps(stored, indent=0, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), "utf-8")
