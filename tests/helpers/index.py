"""The index of the built-in architectures: `make index` writes it again after a change of their data."""

from __future__ import annotations

import json

from loraforge.names.bijection import parse
from loraforge.names.catalog import FOLDER
from loraforge.names.index import EMPTY, FILE
from loraforge.tables import package_tables


def text() -> str:
    """The index file as the data of the architectures has it now."""
    every = [parse(data, f"{name}.toml") for name, data in package_tables(FOLDER).items()]
    return json.dumps(EMPTY.adding(every).stored(), indent=0, sort_keys=True) + "\n"


if __name__ == "__main__":
    FILE.write_text(text(), "utf-8")
