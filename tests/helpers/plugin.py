"""Small plugin packages, installed for real into a folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HOOK = "from loraforge import hookimpl\n\n\n@hookimpl\ndef {hook}():\n    {body}\n"

KOHYA = """
[format]
name = "toy-kohya"
summary = "kohya's names, for a test"
layouts = { cogvideox = "diffusers" }
prefixes = ["toy_"]
separator = "_"
spellings = [{ A = ".lora_down.weight", B = ".lora_up.weight", alpha = ".alpha", magnitude = ".dora_scale" }]
magnitude = "column"
"""

DIFFSYNTH = """
architecture = "cogvideox"

[layouts.toy]
lora_only = true
absent = ["ofs1", "ofs2"]

[layouts.toy.modules]
"blocks.{i}.attn1.to_q" = ["q"]
"""


def package(place: Path, name: str, module: str, files: dict[str, str] | None = None) -> Path:
    """A project whose one module is `module`; its entry point is called after it."""
    folder = place / name
    inner = folder / name.replace("-", "_")
    inner.mkdir(parents=True)
    (inner / "__init__.py").write_text(module)
    for file, text in (files or {}).items():
        (inner / file).write_text(text)
    (folder / "pyproject.toml").write_text(
        f'[build-system]\nrequires = ["hatchling"]\nbuild-backend = "hatchling.build"\n'
        f'[project]\nname = "{name}"\nversion = "1.0"\n'
        f'[project.entry-points.loraforge]\n{name.removeprefix("loraforge-")} = "{inner.name}"\n'
        f'[tool.hatch.build.targets.wheel]\npackages = ["{inner.name}"]\n'
    )
    return folder


def install(place: Path, *projects: Path) -> dict[str, str]:
    """Install projects into the folder `place`, and give the environment in which Python sees them."""
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    words += ["--disable-pip-version-check", "--no-index", "--target", str(place), *map(str, projects)]
    subprocess.run(words, check=True, capture_output=True, text=True)
    every = {name: value for name, value in os.environ.items() if name != "LORAFORGE_PLUGINS"}
    return every | {"PYTHONPATH": os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")])}


def loraforge(environment: dict[str, str], *words: object) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    program = "import sys; from loraforge.cli import main; main(sys.argv[1:])"
    texts = [str(word) for word in words]
    return subprocess.run(
        [sys.executable, "-c", program, *texts], env=environment, capture_output=True, encoding="utf-8"
    )
