"""The core is light: a whole conversion, in this full environment, loads no torch; `--help` loads no numpy."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from oracle import Case

HEAVY = ("torch", "diffusers", "transformers", "peft", "accelerate", "huggingface_hub")


def loaded_after(statement: str, *names: str) -> set[str]:
    program = f"import sys\n{statement}\nprint(*(set({names!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


def run_cli(*words: object) -> str:
    return f"from loraforge.cli import main\nmain({[str(word) for word in words]!r}, standalone_mode=False)"


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["convert", "--help"],
        ["fuse", "--help"],
        ["inspect", "--help"],
        ["formats"],
        ["explain", "D7"],
        ["explain"],
        ["--version"],
    ],
)
def test_help_and_formats_do_not_load_numpy(command: list[str]) -> None:
    assert loaded_after(run_cli(*command), "numpy", "ml_dtypes", "yaml", "safetensors", *HEAVY) == set()


def test_a_conversion_and_an_inspection_do_not_load_torch(tmp_path: Path) -> None:
    run = Case("sat_2b_r4").run(tmp_path)
    both = (
        run_cli("convert", run, "--to", "diffusers", "-o", tmp_path / "out")
        + "\n"
        + run_cli("inspect", tmp_path / "out")
    )
    assert loaded_after(both, "numpy", *HEAVY) == {"numpy"}
    assert (tmp_path / "out" / "pytorch_lora_weights.safetensors").exists()


def test_a_fuse_and_a_conversion_of_a_base_do_not_load_torch(tmp_path: Path) -> None:
    run = Case("sat_2b_r4").run(tmp_path)
    both = run_cli("fuse", run, run, "-o", tmp_path / "a") + "\n"
    both += run_cli("convert-base", tmp_path / "a", "--to", "diffusers", "-o", tmp_path / "b")
    assert loaded_after(both, "numpy", *HEAVY) == {"numpy"}
    assert (tmp_path / "b" / "config.json").exists()


LAYERS = """
errors half hookspecs effect _version
hubaddress hubclient frontmatter cardcheck private acting livestate
dtypes dimensions layout lora tensorfile pickledata threads output plugins console givensettings symptoms clips
fusion
fusion.with_numpy fusion.with_torch partial directfile videofile metrics sheet
adapter torchfile torchwrite shards
drop
keys patterns plugindata picture
catalog lookalike
kinds scale source graph scan base fit settings hubrepo
snippet
card
basegraph
report peftrules runfolders trainingconfig proof loaders
hubsource hubbase
provenance
formats
runs recorded
formats.lorafile formats.satwrite
formats.sat formats.diffusers formats.peft formats.data
formats.builtin basemodel
registry fusion.choose runtimes checks
asin measured knownnames merge baseplace basewrite fusedorigin retention positions baseconfig
shown
baseproof
basejob
read write inspect verify stamp plugincheck plugintemplate
convert fuse convertbase verdict outgoing pipeline runplan
doctor hubcommit probe running
published compared manifest
push run
testing cli_options cli_plugins cli_explain
cli_base cli_doctor cli_hub cli_run
cli
"""
"""Every module may import those in lines above its own, and their types in its own line; nothing below."""


def test_modules_import_one_way() -> None:
    package = Path(__file__).parents[2] / "loraforge"
    level = {name: n for n, line in enumerate(LAYERS.split("\n")) for name in line.split()}
    for path in package.rglob("*.py"):
        name = ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__")
        if name == "__init__":
            continue
        assert name in level, f"{name} has no place in the layers"
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "loraforge":
                inner = (node.module or "").removeprefix("loraforge").lstrip(".")
                targets = [inner] if inner else [alias.name for alias in node.names if alias.name in level]
                for target in targets:
                    assert level[target] <= level[name] and target != name, (
                        f"{name} imports {target}, which stands below it"
                    )
