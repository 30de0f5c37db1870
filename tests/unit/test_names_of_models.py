"""What is known of a model stands in its TOML: no decision of the core names an architecture, or a class of one."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from loraforge.names.catalog import architectures

PACKAGE = Path(__file__).parents[2] / "loraforge"
MAY_NAME = ("live/", "format/sat", "base/as_stored")
"""Where one architecture is meant: its pipelines are run here, and SAT is its own software."""
EXAMPLES = {
    "facts/given_settings.py": {"CogVideoXDPMScheduler"},  # of a class, in a message
    "scale/split_qkv.py": {"sd-scripts", "sd-scripts-split-qkv"},  # a trainer's name
}


def naming(text: str) -> Iterator[str]:
    """The strings, names and imports of a program that name an architecture or a class of one.

    Repositories in messages, and prose that speaks of a model, are no decisions; docstrings and comments are not seen.
    """
    names = rf"(?<![A-Za-z])(?i:{'|'.join(architectures())})(?![a-z])"  # `wan` is none of `wanted`
    word = re.compile(rf"{names}[\w-]*")
    of_a_class = re.compile(rf"{names}\w*?(?:Transformer|Pipeline|Scheduler)\w*")
    tree = ast.parse(text)
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            yield from [node.value] if word.fullmatch(node.value) else of_a_class.findall(node.value)
        for said in (getattr(node, field, None) for field in ("id", "attr", "name", "arg", "module")):
            if isinstance(said, str) and word.search(said):
                yield said


def test_no_decision_names_an_architecture() -> None:
    found = dict[str, set[str]]()
    for path in sorted(PACKAGE.rglob("*.py")):
        where = path.relative_to(PACKAGE).as_posix()
        if not where.startswith(MAY_NAME) and (said := set(naming(path.read_text("utf-8")))):
            found[where] = said
    assert found == EXAMPLES


@pytest.mark.parametrize(
    "program",
    [
        'if adapter.architecture != "cogvideox": raise ValueError',
        'name = matching(paths) or "cogvideox"',
        "from diffusers import CogVideoXTransformer3DModel as kind",
        'TASKS = {"CogVideoXPipeline": "text-to-video"}',
        'lines += [f"pipe = CogVideoXPipeline.from_pretrained({repo})"]',
        "from diffusers.pipelines import cogvideox",
        'x.startswith("CogVideoX")',
        "wan_shapes = {}",
    ],
)
def test_such_decisions_are_seen(program: str) -> None:
    assert list(naming(program))


@pytest.mark.parametrize(
    "program",
    [
        '"""CogVideoXPipeline is what it runs."""',
        'Try("--base zai-org/CogVideoX-5b")',
        "# cogvideox\nx = 1",
        "wanted = swan",
    ],
)
def test_examples_and_prose_are_not(program: str) -> None:
    assert not list(naming(program))
