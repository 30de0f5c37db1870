"""What the READMEs show is what the program prints, and every option and word they name exists."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli
from helpers.oracle import DATA, Case

import loraforge
import loraforge.facts.variants
from loraforge.cli.app import main
from loraforge.cli.plugins import layouts
from loraforge.settings import table

ROOT = Path(__file__).parents[2]
READMES = ("README.md", "README_zh.md")


@pytest.mark.parametrize("name", READMES)
def test_shown_output_is_real(name: str, tmp_path: Path, cli, monkeypatch) -> None:
    here = tmp_path / "here"  # what lies beside it is no other test's
    subprocess.run([sys.executable, ROOT / "docs" / "demo.py", here], check=True, capture_output=True)
    monkeypatch.chdir(here)
    text = (ROOT / name).read_text("utf-8")
    assert cli("inspect", "lora-disney-11-20-10-00").stdout in text
    done = cli("convert", "lora-disney-11-20-10-00", "--to", "diffusers")
    assert done.stderr + done.stdout in text
    assert cli("convert", "pytorch_lora_weights.safetensors", "--to", "diffusers").stderr in text
    compared = cli("verify", "lora-disney-11-20-10-00", "pytorch_lora_weights.safetensors")
    assert compared.stderr + compared.stdout in text
    assert cli("doctor", "pytorch_lora_weights.safetensors", "--alpha", "1").stdout.rstrip() in text
    fused = cli("fuse", "base", "lora-disney-11-20-10-00", "-o", "base-disney")
    assert fused.stderr + fused.stdout in text


@pytest.mark.parametrize("name", READMES)
def test_python_example_runs(name: str, tmp_path: Path, monkeypatch, capsys) -> None:
    Case("sat_2b_r4").run(tmp_path)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / name).read_text("utf-8"), re.DOTALL)
    scope: dict = {}
    exec(code, scope)
    printed = capsys.readouterr().out.splitlines()
    comments = re.findall(r"print\(.*\)  # (.*)", code)
    for line, comment in zip(printed, comments, strict=True):
        assert line.startswith(comment.removesuffix(" ..."))
    assert scope["loraforge"].inspect("disney").ranks == {4: 8}


@pytest.mark.parametrize(
    "name",
    [
        *READMES,
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "docs/record-the-scale.md",
        "docs/fuse.md",
        "docs/tutorial-doctor.md",
    ],
)
def test_options_and_files_named_exist(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    every = [main, *main.commands.values(), *layouts.commands.values()]
    known = {option for command in every for parameter in command.params for option in parameter.opts}
    foreign = {"--help", "--lora_alpha", "--lora_r"}  # the last two of load_cogvideox_lora.py
    assert set(re.findall(r"--[a-z][a-z_-]+", text)) <= known | foreign
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / name).parent / link).exists(), link


def test_every_command_has_help_with_an_example() -> None:
    for name, command in main.commands.items():
        assert command.help, name
        assert name == "formats" or f"loraforge {name}" in command.help
    assert all(
        parameter.help
        for command in main.commands.values()
        for parameter in command.params
        if parameter.opts[0].startswith("-")
    )


def test_the_package_says_its_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", loraforge.__version__)


def test_the_formats_of_the_howto_are_sound(tmp_path: Path, cli) -> None:
    text = (ROOT / "docs" / "add-a-format.md").read_text("utf-8")
    form, layout, *_ = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my-format.toml").write_text(form)
    assert cli("plugins", "check", tmp_path / "my-format.toml").stdout.endswith("is sound: format my-format\n")
    line = re.search(r"loraforge (--plugin .*)", text)
    assert line is not None
    shutil.copy(
        DATA / "diffusers_save_lora_weights_meta" / "pytorch_lora_weights.safetensors", tmp_path / "a.safetensors"
    )
    words = line[1].replace("adapter.safetensors", str(tmp_path / "a.safetensors"))
    words = words.replace("my-format.toml", str(tmp_path / "my-format.toml"))
    assert cli(*words.split(), "-o", tmp_path / "out").exit_code == 0
    (tmp_path / "layout.toml").write_text(layout)
    problems = cli("plugins", "check", tmp_path / "layout.toml").stdout  # the other lines are left to the reader
    assert "segment 'ff_in' is in no module" in problems
    assert "segment 'q'" not in problems
    assert "segment 'o'" not in problems


@pytest.mark.parametrize(("number", "name"), [(2, "hunyuanvideo"), (3, "sdxl")])
def test_the_architecture_of_the_howto_is_the_built_in_one(number: int, name: str) -> None:
    text = (ROOT / "docs" / "add-a-format.md").read_text("utf-8")
    shown = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)[number]
    folder = ROOT / "loraforge" / "names" / "architectures"

    def among(part: object, whole: object) -> bool:
        if isinstance(part, dict):
            return isinstance(whole, dict) and all(among(value, whole.get(key)) for key, value in part.items())
        return part == whole or (isinstance(whole, list) and part == whole[: len(part)])

    assert among(tomli.loads(shown), tomli.loads((folder / f"{name}.toml").read_text("utf-8")))


def test_the_python_page_names_what_there_is(tmp_path: Path, monkeypatch) -> None:
    text = (ROOT / "docs" / "python.md").read_text("utf-8")
    named = set(re.findall(r"`loraforge\.(\w+)", text))
    assert named - {"LoraforgeError"} == {
        name for name in loraforge.__all__ if name.islower() and name not in ("__version__", "hookimpl")
    }
    shutil.copytree(DATA / "diffusers_meta_patterns", tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    scope: dict = {}
    exec(code, scope)
    assert len(scope["report"].steps) == 8


def test_the_tutorial_does_what_it_says(tmp_path: Path, cli, monkeypatch) -> None:
    text = (ROOT / "docs" / "tutorial-format.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    shutil.copy(DATA / "diffusers_save_lora_weights_meta" / "pytorch_lora_weights.safetensors", tmp_path)
    (form,), (test,) = (re.findall(rf"```{kind}\n(.*?)```", text, re.DOTALL) for kind in ("toml", "python"))
    (tmp_path / "acme.toml").write_text(form)
    (tmp_path / "test_acme.py").write_text(test)
    for line in re.findall(r"^\$ loraforge (.*)$", text, re.MULTILINE):
        done = cli(*line.split())
        assert done.exit_code == 0, f"{line}: {done.output}"
        shown = text.partition(f"$ loraforge {line}\n")[2].partition("\n")[0]
        assert shown.startswith(("$", "```")) or shown == done.stdout.rstrip("\n")
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_acme.py"]
    ended = subprocess.run(words, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout
    assert re.search(r"^\d\d+ passed", ended.stdout, re.MULTILINE)


def docs_script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_table_of_trainers_is_what_the_data_gives() -> None:
    script = docs_script("trainers")
    text = script.PAGE.read_text("utf-8")
    assert script.renewed(text) == text, "run: python docs/trainers.py"
    assert text.count("\n| ") == len(script.rows()) + len(script.runs()) + 4


@pytest.mark.parametrize("name", ["training-and-inference.md", "training-and-inference_zh.md"])
def test_the_settings_page_is_what_the_data_gives(name: str, capsys) -> None:
    script = docs_script("settings")
    text = (ROOT / "docs" / name).read_text("utf-8")
    assert script.renewed(text, script.PAGES[name]) == text, "run: python docs/settings.py"
    for variant in table()["variants"]:
        assert f"| {variant} |" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, {})
    assert capsys.readouterr().out.splitlines() == re.findall(r"^# (.*)", code, re.MULTILINE)
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / "docs" / link).exists(), link
