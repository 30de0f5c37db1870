"""The core is light: a whole conversion, in this full environment, loads no torch; `--help` loads no numpy."""

from __future__ import annotations

import ast
import itertools
import os
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.oracle import Case

import loraforge

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
        ["explain", "D7"],
        ["explain"],
        ["--version"],
    ],
)
def test_help_does_not_load_numpy(command: list[str]) -> None:
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


@pytest.mark.parametrize("verb", ["convert", "verify", "doctor", "fuse", "convert-base"])
def test_the_process_is_settled_before_numpy_is_there(verb: str, tmp_path: Path) -> None:
    """Threads of BLAS beside ours take twice the CPU; their number is read when numpy is loaded."""
    run = Case("sat_2b_r4").run(tmp_path)
    words = {
        "convert": [run, "--to", "diffusers", "-o", tmp_path / "out"],
        "verify": [run, run], "doctor": [run], "fuse": [run, run, "-o", tmp_path / "out"],
        "convert-base": [run, "--to", "diffusers", "-o", tmp_path / "out"],
    }[verb]  # fmt: skip
    program = f"""
import os, sys
class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            print("threads", os.environ.get("OPENBLAS_NUM_THREADS"))
sys.meta_path.insert(0, Watch())
from loraforge.cli import main
main({[verb, *map(str, words)]!r}, standalone_mode=False)
"""
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert "threads 1\n" in done.stdout, done.stderr


LAYERS = (
    "text numbered _version threads document tables < errors < foreign < algebra facts plugin < files names fusion < "
    "scale hub media < adapter < format < programs < conversion < base < live diagnosis learning < "
    "publishing < __init__ settings < cli testing < __main__"
)
"""A folder imports from its own and from those left of its own `<`, types and deferred imports included."""

PACKAGE = Path(__file__).parents[2] / "loraforge"


def imports() -> dict[str, dict[str, bool]]:
    """Module -> the modules of ours that it imports, and whether for types alone."""
    paths = [*PACKAGE.rglob("*.py"), PACKAGE / "__init__.pyi"]  # what the front door loads when it is asked for
    names = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in paths}
    found = dict[str, dict[str, bool]]()
    for name, path in names.items():
        tree = ast.parse(path.read_text("utf-8"))
        typed = {
            id(inner)
            for node in ast.walk(tree)
            if path.suffix == ".pyi" or (isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING")
            for inner in ast.walk(node)
        }
        found[name] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "loraforge":
                inner = (node.module or "").removeprefix("loraforge").lstrip(".")
                for alias in node.names:
                    whole = f"{inner}.{alias.name}".lstrip(".")
                    target = whole if whole in names else inner or "__init__"
                    found[name][target] = found[name].get(target, True) and id(node) in typed
            elif isinstance(node, ast.Import) and any(a.name.partition(".")[0] == "loraforge" for a in node.names):
                found[name]["__init__"] = False
    return found


def test_folders_import_one_way() -> None:
    level = {name: n for n, line in enumerate(LAYERS.split(" < ")) for name in line.split()}
    for name, targets in imports().items():
        room = name.partition(".")[0]
        assert room in level, f"{room} has no place in the layers"
        for target in targets:
            other = target.partition(".")[0]
            assert other == room or level[other] < level[room], f"{name} imports {target}, which stands above it"


def test_no_modules_import_each_other() -> None:
    """Deferred imports included; types are not run."""
    graph = {name: [target for target, typed in to.items() if not typed] for name, to in imports().items()}
    done, path = set[str](), list[str]()

    def walk(name: str) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done or name not in graph:
            return
        path.append(name)
        for target in graph[name]:
            walk(target)
        done.add(path.pop())

    for name in graph:
        walk(name)


def test_no_module_bears_the_name_of_an_export() -> None:
    """`import loraforge.convert as c` would be a function at one time and a module at another."""
    assert not {module.name for module in pkgutil.iter_modules(loraforge.__path__)} & set(loraforge.__all__)


def test_rooms_are_small() -> None:
    folders = itertools.groupby(sorted(PACKAGE.rglob("*.py"), key=lambda path: path.parent), lambda path: path.parent)
    for folder, files in folders:
        assert len(list(files)) <= 20, folder
    for path in PACKAGE.rglob("*.py"):
        assert len(path.read_text("utf-8").splitlines()) <= 400, path


OPTIONAL = {
    "torch",
    "diffusers",
    "transformers",
    "peft",
    "huggingface_hub",
    "PIL",
    "skimage",
    "imageio_ffmpeg",
    "psutil",
    "yaml",
}
"""What may be imported inside a function: heavy, or of an extra."""


def test_what_waits_inside_a_function_is_heavy_or_for_a_command() -> None:
    """Our own modules wait in cli/ alone, and where the validator of JSON (100 ms) is needed."""
    own = list[str]()
    for path in PACKAGE.rglob("*.py"):
        for function in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for node in ast.walk(function):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                for name in names:
                    first, where = name.partition(".")[0], path.relative_to(PACKAGE).as_posix()
                    assert first in {*sys.stdlib_module_names, *OPTIONAL, "loraforge"}, f"{where} defers {name}"
                    own += [f"{where}: {name}"] if first == "loraforge" else []
    assert all(line.startswith("cli/") or line.endswith("schema_check") for line in own), own
    assert len(own) <= 25
