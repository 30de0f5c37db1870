"""TODO."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml

from loraforge.errors import FileError, ScaleError, adding
from loraforge.text import command


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object in a file. Raises FileError where there is none."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{file} cannot be read as JSON: {error}.", command("ls", "-l", file)) from error
    if not isinstance(found, dict):
        raise FileError(f"{file} holds no JSON object.", command("ls", "-l", file))
    return found


def read_yaml(path: Path) -> Any:
    class Loader(yaml.SafeLoader):
        """Without merge keys (`<<`), which OmegaConf never writes and which can double a mapping at every level."""

        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            """Leave the merge key in place, where nothing can construct it."""

    if not path.is_file():
        raise ScaleError(f"{path} does not exist.", command("ls", "-l", path.parent))
    try:
        if path.stat().st_size > 1 << 18:
            raise ScaleError(f"{path} has more than 256 kB: it is no training YAML.", command("ls", "-l", path))
        return Loader(path.read_bytes()).get_single_data()
    except (OSError, yaml.YAMLError, RecursionError, ValueError) as error:
        raise ScaleError(
            f"{path} cannot be read as YAML: {str(error).splitlines()[0] if str(error) else type(error).__name__}.",
            adding("--alpha", "1", "--override-scale", why="if the run did not set lora_alpha"),
        ) from error
