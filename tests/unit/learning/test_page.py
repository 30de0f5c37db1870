"""The tutorial on learning a layout does what it shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click

from loraforge.cli.layouts import layouts

PAGE = Path(__file__).parents[3] / "docs" / "learn-a-layout.md"


def test_the_commands_print_what_is_shown(tmp_path: Path, cli, monkeypatch) -> None:
    text = PAGE.read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    for name, code in re.findall(r"```python\n# (\S+)\n(.*?)```", text, re.DOTALL):
        Path(name).write_text(code)
    shown = 0
    for block in re.findall(r"```\n(\$.*?)```", text, re.DOTALL):
        for line, output in re.findall(r"^\$ (.*)\n((?:[^$].*\n|\n)*)", block, re.MULTILINE):
            program, *words = line.split()
            if program == "python":
                subprocess.run([sys.executable, *words], check=True)
            else:
                assert cli(*words).stdout == output, line
                shown += 1
    assert shown == 4


def test_options_and_pages_named_exist() -> None:
    text = PAGE.read_text("utf-8")
    commands = [layouts, *layouts.commands.values()]
    known = {option for command in commands for param in command.params for option in param.opts}
    assert set(re.findall(r"--[a-z][a-z_-]+", text)) <= known | {"--plugin", "--to"}
    assert all((PAGE.parent / link).exists() for link in re.findall(r"\]\(([^)#:]+)\)", text))
    for command in layouts.commands.values():
        assert f"loraforge layouts {command.name} " in (command.help or "")
        assert all(param.help for param in command.params if isinstance(param, click.Option))
