"""Writes a ready plugin package: a data file, three lines of Python, a conformance test."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from loraforge.errors import LoraforgeError, OutputError, Try
from loraforge.format.registry import formats
from loraforge.text import command

_FILES = {
    "pyproject.toml": """\
[build-system]
requires = ["hatchling>=1.27"]
build-backend = "hatchling.build"

[project]
name = "loraforge-$name"
version = "0.1.0"
description = "The LoRA format $name for loraforge"
requires-python = ">=3.11"
dependencies = ["loraforge"]

[project.optional-dependencies]
test = ["pytest"]

[project.entry-points.loraforge]
$name = "$module"

[tool.hatch.build.targets.wheel]
packages = ["$module"]
""",
    "README.md": """\
# loraforge-$name

The LoRA format `$name` for loraforge.

```
pip install .
loraforge formats
loraforge convert ADAPTER --to $name
```

The names stand in `$module/$name.toml`. After a change:

```
loraforge plugins check $module/$name.toml
pip install '.[test]' && pytest
```
""",
    "$module/__init__.py": '''\
"""The LoRA format $name for loraforge."""

from importlib.resources import files

from loraforge import hookimpl


@hookimpl
def loraforge_formats():
    """The data file beside this one."""
    return [files(__name__) / "$name.toml"]
''',
    "$module/$name.toml": """\
# How $name spells the tensors of a module. What each entry means: docs/add-a-format.md of loraforge.
[format]
name = "$name"
summary = "what $name writes"
layouts = { cogvideox = "diffusers" } # whose module names: see `loraforge layouts`
prefixes = ["$name."]                 # what stands before a module's path; the first is written
spellings = [{ A = ".lora_down.weight", B = ".lora_up.weight", alpha = ".alpha" }]
load = "{path}, with strength 1.0"
""",
    "tests/test_$test.py": '''\
"""The format does what every format must."""

from loraforge.testing import FormatConformance


class TestFormat(FormatConformance):
    format = "$name"
''',
}


def new_plugin(name: str, out: str | Path | None = None) -> Path:
    """Write the package of a format called `name` and return its folder.

    Raises LoraforgeError when the name is no format's name or taken, and OutputError when the folder exists.
    """
    if re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) is None:
        raise LoraforgeError(
            f"{name!r} is no name of a format: small letters, digits, hyphens.",
            command("loraforge", "plugins", "new", re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "my-format"),
        )
    if name in formats():
        other = command("loraforge", "plugins", "new", f"my-{name}")
        raise LoraforgeError(f"there is a format {name} already.", Try(other, "another name"))
    folder = Path(out) if out else Path(f"loraforge-{name}")
    if folder.exists():
        again = Path(f"{folder}-2")
        raise OutputError(f"{folder} exists.", command("loraforge", "plugins", "new", name, "-o", again))
    module = f"loraforge_{name.replace('-', '_')}"
    words = {"name": name, "module": module, "test": name.replace("-", "_")}
    try:
        for place, text in _FILES.items():
            file = folder / Template(place).substitute(words)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(Template(text).substitute(words), "utf-8")
    except OSError as error:
        raise OutputError(
            f"{folder} cannot be written: {error.strerror}.", command("ls", "-ld", folder.parent)
        ) from error
    return folder
