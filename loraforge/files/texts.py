"""Reads JSON and YAML from untrusted files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from loraforge.errors import FileError, LoraforgeError, ScaleError, Try, absent, adding
from loraforge.foreign import content, reading
from loraforge.text import shown

MOST_BYTES = 1 << 26
"""Of a JSON file, if its reader states no other limit: the index of a model of 500,000 tensors."""


def read_json(
    file: Path, what: str = "JSON", *remedies: Try | str, kind: type[LoraforgeError] = FileError, most: int = MOST_BYTES
) -> dict[str, Any]:
    """The JSON object in a file. Raises `kind` if there is none; `what` it is read as, for the message."""
    with reading(file, what, *remedies, kind=kind):
        value = json.loads(content(file, most).decode("utf-8-sig"))
        if not isinstance(value, dict):
            raise ValueError(f"it holds {shown(value)}, no JSON object")
    return value


def read_yaml(path: Path) -> Any:
    """The document of a training YAML. Raises ScaleError if it is missing, too large or not such a text."""
    if not path.is_file():
        raise absent(path, kind=ScaleError)
    remedy = adding("--alpha", "1", "--override-scale", why="if the run did not set lora_alpha")
    with reading(path, "YAML", remedy, kind=ScaleError):
        return parse_yaml(content(path, 1 << 18))


def parse_yaml(text: str | bytes, *, objects: bool = False) -> Any:
    """One YAML document as plain values. `objects`: read Python objects as the mappings in them; else refuse them.

    Refuses a key that is twice in a mapping, and merge keys (`<<`), which can double a mapping at every level.
    Raises the errors of PyYAML.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            """Refuse repeated keys, and leave merge keys in place: no constructor takes them."""
            once([(key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode)])

        def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
            return super().construct_scalar(node)[:4096]  # a number of a million digits takes long to build

        def held(self, _: str, node: yaml.Node) -> object:
            return self.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else None

    if objects:
        Loader.add_multi_constructor("tag:yaml.org,2002:python/", Loader.held)
    return Loader(text).get_single_data()


def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """The mapping of these pairs. Raises ValueError if a key is there twice."""
    for key, count in Counter(key for key, _ in pairs).items():
        if count > 1:
            raise ValueError(f"one mapping states {shown(key)} twice")
    return dict(pairs)
