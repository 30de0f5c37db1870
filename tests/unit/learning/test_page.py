"""The tutorial on learning a layout does what it shows."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import click
from safetensors.numpy import load_file

from loraforge.cli.plugins import layouts

PAGE = Path(__file__).parents[3] / "docs" / "learn-a-layout.md"


def test_the_commands_print_what_is_shown(tmp_path: Path, cli, monkeypatch) -> None:
    """Where nothing is shown, the command works. A table that is printed is appended to the file, as the page says."""
    text = PAGE.read_text("utf-8")
    shutil.copytree(PAGE.parent / "auraflow", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    lines = [
        line
        for block in re.findall(r"```\n(\$.*?)```", text, re.DOTALL)
        for line in re.split(r"^\$ ", block, flags=re.MULTILINE)
    ]
    shown = 0
    for line, _, output in (line.partition("\n") for line in lines if line):
        done = cli(*line.split()[1:])
        assert done.exit_code == 0, done.output
        assert output in ("", done.stdout), line
        shown += bool(output)
        if "[dimensions]" in output:
            with Path("mine.toml").open("a") as file:
                file.write(output[output.index("\n[dimensions]") :])
    assert (shown, len([line for line in lines if line])) == (4, 7)
    assert "double_layers.1.attn.w2q" in str(list(load_file("comfyui.safetensors")))
    seen = cli("--plugin", "mine.toml", "inspect", "lora.safetensors", "--architecture", "mine").stdout
    assert "no released mine is known: its data lists no variants" in seen


def test_options_and_pages_named_exist() -> None:
    text = PAGE.read_text("utf-8")
    commands = [layouts, *layouts.commands.values()]
    known = {option for command in commands for param in command.params for option in param.opts}
    assert set(re.findall(r"--[a-z][a-z_-]+", text)) <= known | {"--plugin", "--to", "--architecture"}
    assert all((PAGE.parent / link).exists() for link in re.findall(r"\]\(([^)#:]+)\)", text))
    for command in layouts.commands.values():
        assert f"loraforge layouts {command.name} " in (command.help or "")
        assert all(param.help for param in command.params if isinstance(param, click.Option))
