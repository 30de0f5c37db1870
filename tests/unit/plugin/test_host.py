"""The plugin host: what plugins add works, and what is wrong with one is told and hurts nobody else."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import plugin
from helpers.oracle import DATA
from jsonschema import Draft202012Validator
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.errors import LoraforgeError
from loraforge.format.registry import FORMATS
from loraforge.names.catalog import architecture
from loraforge.plugin import schema_check
from loraforge.plugin.registry import Registry, use
from loraforge.plugin.schema_check import line_of
from loraforge.testing import make_adapter

SCHEMAS = Path(__file__).parents[3] / "schemas"

PACKAGES = {
    "broken": "import a_module_that_is_not_there\n",
    "raising": plugin.HOOK.format(hook="loraforge_formats", body="raise ValueError('no such luck')"),
    "leaving": "raise SystemExit(3)\n",
    "misspelt": plugin.HOOK.format(hook="loraforge_format", body="return []"),
    "empty": "\n",
    "garbage": plugin.HOOK.format(hook="loraforge_formats", body="return 7"),
    "more-garbage": plugin.HOOK.format(hook="loraforge_formats", body="return [object(), 'sat', None]"),
    "duplicate": plugin.HOOK.format(
        hook="loraforge_formats", body="from loraforge.format.sat import SatFormat\n    return [SatFormat()]"
    ),
    "bad-data": plugin.HOOK.format(
        hook="loraforge_formats", body="from importlib.resources import files\n    return [files(__name__) / 'x.toml']"
    ),
    "good": plugin.HOOK.format(
        hook="loraforge_formats", body="from importlib.resources import files\n    return [files(__name__) / 'x.toml']"
    ),
}
SAID = {
    "broken": "a_module_that_is_not_there",
    "raising": "no such luck",
    "leaving": "SystemExit",
    "misspelt": "loraforge_format",
    "empty": "implements no hook",
    "garbage": "'int' object is not iterable",
    "more-garbage": "returned object without name",
    "duplicate": "format 'sat' is already added by loraforge",
    "bad-data": "format lacks",
}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment with a healthy plugin and one of every kind of broken one, built and installed by pip."""
    place = tmp_path_factory.mktemp("plugins")
    files = {"good": {"x.toml": plugin.KOHYA}, "bad-data": {"x.toml": "[format]\nname = 'x'\n"}}
    projects = [plugin.package(place, f"loraforge-{n}", code, files.get(n)) for n, code in PACKAGES.items()]
    return plugin.install(place / "site", *projects)


def test_broken_plugins_are_named_with_their_package_and_how_to_remove_them(installed: dict[str, str]) -> None:
    done = plugin.loraforge(installed, "formats", "--json")
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert {"sat", "diffusers", "peft", "toy-kohya"} <= set(rows)
    assert rows["sat"]["package"] == "loraforge"
    assert rows["toy-kohya"]["package"] == "loraforge-good 1.0"
    warnings = done.stderr.splitlines()
    assert len([line for line in warnings if line.startswith("warning: ")]) == len(SAID)
    for name, words in SAID.items():
        (line,) = [line for line in warnings if f"loraforge-{name} 1.0" in line]
        assert words in line
        assert f"pip uninstall loraforge-{name}" in line
        assert line.count(words) == 1  # each plugin is asked once


def test_the_list_of_plugins_tells_all(installed: dict[str, str]) -> None:
    done = plugin.loraforge(installed, "plugins", "list", "--json")
    host = json.loads(done.stdout)
    Draft202012Validator(json.loads((SCHEMAS / "plugins.schema.json").read_text())).validate(host)
    states = {p["name"]: bool(p["errors"]) for p in host}
    assert states.items() >= {"loraforge": False, **{f"loraforge-{n}": n != "good" for n in PACKAGES}}.items()
    assert next(p for p in host if p["name"] == "loraforge-good")["adds"] == ["format toy-kohya"]
    assert "fine" in plugin.loraforge(installed, "plugins", "list").stdout


def test_only_those_the_variable_names_are_loaded(installed: dict[str, str]) -> None:
    for names, want in (("good", {"toy-kohya"}), ("loraforge-good", {"toy-kohya"}), ("", set()), ("nothing", set())):
        done = plugin.loraforge(installed | {"LORAFORGE_PLUGINS": names}, "formats", "--json")
        assert {row["name"] for row in json.loads(done.stdout)} == {form.name for form in FORMATS} | want
        assert done.stderr == ""
    assert "loraforge-broken" in plugin.loraforge(installed | {"LORAFORGE_PLUGINS": "broken,good"}, "formats").stderr


def test_an_unknown_format_names_the_plugins_that_could_not_be_loaded(installed: dict[str, str]) -> None:
    done = plugin.loraforge(installed, "inspect", DATA / "peft_plain", "--from", "klingon")
    assert done.returncode == 1
    with_python = "import sys; import loraforge; loraforge.convert(sys.argv[1], to='klingon')"
    words = [sys.executable, "-c", with_python, DATA / "peft_plain"]
    ended = subprocess.run(words, env=installed, capture_output=True, text=True)
    assert "loraforge-broken" in ended.stderr


def test_help_loads_no_plugin_however_many_there_are(installed: dict[str, str]) -> None:
    program = "import sys; from loraforge.cli import main; main(['--help'], standalone_mode=False); "
    program += "print(*[name for name in sys.modules if name.startswith(('loraforge_', 'jsonschema', 'numpy'))])"
    ended = subprocess.run([sys.executable, "-c", program], env=installed, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize("after", [False, True], ids=["before the verb", "after the verb"])
def test_a_format_from_a_file_works_both_ways(after: bool, tmp_path: Path, cli) -> None:
    (tmp_path / "kohya.toml").write_text(plugin.KOHYA)
    words = ["convert", DATA / "peft_patterns", "--to", "toy-kohya", "-o", tmp_path / "x.safetensors"]
    option = ["--plugin", tmp_path / "kohya.toml"]
    done = cli(*(words + option if after else option + words))
    assert done.exit_code == 0, done.output
    tensors = load_file(tmp_path / "x.safetensors")
    assert "toy_transformer_blocks_0_attn1_to_out_0.lora_down.weight" in tensors
    alphas = {key: float(tensor) for key, tensor in tensors.items() if key.endswith(".alpha")}
    assert alphas["toy_transformer_blocks_1_attn1_to_v.alpha"] == 16.0
    assert alphas["toy_transformer_blocks_0_attn1_to_out_0.alpha"] == 4.0
    back = cli("convert", tmp_path / "x.safetensors", "--to", "peft", "-o", tmp_path / "back", *option)
    assert back.exit_code == 0, back.output
    assert loraforge.verify(DATA / "peft_patterns", tmp_path / "back").same


def test_a_plugin_of_python_and_the_python_interface(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(plugin.KOHYA)
    body = "from pathlib import Path\n    return [Path(__file__).with_name('x.toml')]"
    (tmp_path / "mine.py").write_text(plugin.HOOK.format(hook="loraforge_formats", body=body))
    assert "toy-kohya" not in loraforge.formats()
    loraforge.use_plugin(tmp_path / "mine.py")
    assert "toy-kohya" in loraforge.formats()
    adapter = loraforge.read(DATA / "peft_dora")
    loraforge.write(adapter, "toy-kohya", tmp_path / "out")
    found = load_file(tmp_path / "out" / "toy-kohya.safetensors")
    assert {t.shape for key, t in found.items() if key.endswith(".dora_scale")} == {(64, 1)}
    assert loraforge.verify(DATA / "peft_dora", tmp_path / "out").same
    with pytest.raises(LoraforgeError, match=r"no \.toml or \.py"):
        loraforge.use_plugin(tmp_path / "missing.toml")


def test_the_users_own_folder_gives_data_only(tmp_path: Path) -> None:
    folder = tmp_path / "loraforge" / "plugins"
    folder.mkdir(parents=True)
    (folder / "mine.toml").write_text(plugin.KOHYA)
    (folder / "code.py").write_text("raise SystemExit('never run')")
    here = {name: value for name, value in os.environ.items() if name != "LORAFORGE_PLUGINS"}
    environment = here | {"XDG_CONFIG_HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path), "HOME": str(tmp_path)}
    done = plugin.loraforge(environment, "plugins", "list", "--json")
    found = {p["name"]: p for p in json.loads(done.stdout)}
    assert "mine" in found
    assert "code" not in found
    assert found["mine"]["remove"].startswith("rm ")


def test_read_and_write_are_the_halves_of_convert(tmp_path: Path) -> None:
    whole = loraforge.convert(DATA / "peft_plain", to="diffusers", out=tmp_path / "a")
    halves = loraforge.write(loraforge.read(DATA / "peft_plain"), "diffusers", tmp_path / "b")
    one, other = (tmp_path / name / "pytorch_lora_weights.safetensors" for name in "ab")
    assert one.read_bytes() == other.read_bytes()
    assert whole.steps == halves.steps


def test_an_adapter_changed_in_python_is_written_and_proved(tmp_path: Path) -> None:
    adapter = loraforge.read(DATA / "peft_plain")
    doubled = {
        path: tuple(dataclasses.replace(w, scaling=2 * w.scaling) for w in delta)
        for path, delta in adapter.modules.items()
    }
    loraforge.write(dataclasses.replace(adapter, modules=doubled), "diffusers", tmp_path / "x.safetensors")
    assert loraforge.verify(DATA / "peft_plain", tmp_path / "x.safetensors").strength == pytest.approx(2)


BAD = {
    "not TOML": ("[format\n", [r"line 1: "]),
    "a missing entry": ("[format]\nname = 'x'\n", [r"line 1: format lacks layouts, spellings, summary"]),
    "an unknown entry": (plugin.KOHYA + "colour = 'red'\n", [r"line \d+: format has no colour\. It has .*spellings"]),
    "a wrong type": (plugin.KOHYA.replace('"_"', '"-"'), [r"line 7: format\.separator is \"-\""]),
    "a layout there is not": (
        plugin.KOHYA.replace('"diffusers"', '"klingon"'),
        [r"line 5: format\.layouts names cogvideox/klingon, which there is not\. There are comfyui, diffsynth, "],
    ),
    "an architecture there is not": (
        plugin.DIFFSYNTH.replace('"cogvideox"', '"nowhere"'),
        [r"line 2: there is no architecture nowhere; there are .*cogvideox"],
    ),
    "a layout that is taken": (plugin.DIFFSYNTH.replace("layouts.toy", "layouts.sat"), [r"has a layout sat already"]),
    "a layout with many faults": (
        plugin.DIFFSYNTH + '"blocks.{j}.attn1.to_q" = ["q"]\n"blocks.{k}.x" = ["nonsense"]\n',
        [
            r"line 9: .*can match the same module",
            r"line 11: .*unknown segment 'nonsense'",
            r"line 9: .*segment 'q' is in",
            r"line 4: .*segment 'k' is in no",
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("text", "wanted"), BAD.values(), ids=BAD)
def test_check_tells_every_problem_with_its_line(text: str, wanted: list[str], tmp_path: Path, cli) -> None:
    (tmp_path / "x.toml").write_text(text)
    done = cli("plugins", "check", tmp_path / "x.toml")
    assert done.exit_code == 1
    for pattern in wanted:
        assert re.search(pattern, done.stdout), done.stdout
    loaded = cli("--plugin", tmp_path / "x.toml", "plugins", "list")
    assert loaded.exit_code == 0
    assert "warning: plugin x" in loaded.stderr


def test_check_says_what_a_sound_file_adds(tmp_path: Path, cli) -> None:
    (tmp_path / "x.toml").write_text(plugin.KOHYA)
    done = cli("plugins", "check", tmp_path / "x.toml")
    assert done.exit_code == 0
    assert done.stdout.strip().endswith("is sound: format toy-kohya")


def test_lines_are_found_in_tables_quoted_keys_and_inline_tables() -> None:
    text = 'a = 1\n[x]\nb = 2\n["q.r"."{i}"]\n"k.{i}.v" = ["q"]\n[[list]]\nz = 1\n'
    assert line_of(text, ["a"]) == 1
    assert line_of(text, ["x", "b"]) == 3
    assert line_of(text, ["q.r", "{i}", "k.{i}.v", 0]) == 5
    assert line_of(text, ["x", "missing"]) == 2
    assert line_of(text, ["nowhere"]) is None


def test_alpha_tensors_that_contradict_are_refused(tmp_path: Path) -> None:
    (tmp_path / "kohya.toml").write_text(plugin.KOHYA)
    loraforge.use_plugin(tmp_path / "kohya.toml")
    loraforge.convert(DATA / "peft_plain", to="toy-kohya", out=tmp_path / "x.safetensors")
    tensors = load_file(tmp_path / "x.safetensors")
    key = next(key for key in tensors if key.endswith(".alpha"))
    some = {name: tensor for name, tensor in tensors.items() if name != key}
    save_file(some, tmp_path / "some.safetensors")
    with pytest.raises(LoraforgeError, match="that is the scale of 7 modules, and 1 have none"):
        loraforge.convert(tmp_path / "some.safetensors", to="peft", out=tmp_path / "o")
    save_file(tensors | {key: np.ones(2, np.float32)}, tmp_path / "two.safetensors")
    with pytest.raises(LoraforgeError, match="not one number"):
        loraforge.convert(tmp_path / "two.safetensors", to="peft", out=tmp_path / "o")
    none = {name: tensor for name, tensor in tensors.items() if not name.endswith(".alpha")}
    save_file(none, tmp_path / "none.safetensors")
    with pytest.raises(LoraforgeError, match="does not record the scale"):
        loraforge.convert(tmp_path / "none.safetensors", to="peft", out=tmp_path / "o")
    whole = {name: np.asarray(4, np.int64) if name.endswith(".alpha") else tensor for name, tensor in tensors.items()}
    save_file(whole, tmp_path / "integers.safetensors")
    assert loraforge.verify(tmp_path / "integers.safetensors", tmp_path / "x.safetensors").same


def test_a_new_plugin_is_ready_in_a_clean_environment(tmp_path: Path, cli, monkeypatch) -> None:
    """Written, built, installed beside loraforge's own wheel, tested, and seen: as its author would do it."""
    monkeypatch.chdir(tmp_path)
    made = cli("plugins", "new", "my-trainer")
    assert made.exit_code == 0
    folder = tmp_path / "loraforge-my-trainer"
    checked = cli("plugins", "check", folder / "loraforge_my_trainer" / "my-trainer.toml")
    assert checked.stdout.endswith("is sound: format my-trainer\n")
    run = functools.partial(subprocess.run, check=True, capture_output=True, text=True)
    wheels = tmp_path / "wheels"
    for project in (Path(__file__).parents[3], folder):
        run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", wheels], cwd=project)
    run([sys.executable, "-m", "venv", tmp_path / "clean"])
    binaries = tmp_path / "clean" / ("Scripts" if os.name == "nt" else "bin")
    constraints = Path(__file__).parents[2] / "constraints.txt"
    pip = [binaries / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", constraints]
    run([*pip, *wheels.glob("*.whl"), "pytest"])
    environment = {name: value for name, value in os.environ.items() if name not in ("LORAFORGE_PLUGINS", "PYTHONPATH")}
    seen = run([binaries / "loraforge", "plugins", "list", "--json"], env=environment)
    assert {p["name"]: p["adds"] for p in json.loads(seen.stdout)}["loraforge-my-trainer"] == ["format my-trainer"]
    tested = run([binaries / "python", "-m", "pytest", "-q", folder / "tests"], env=environment, cwd=folder)
    assert re.search(r"\d+ passed", tested.stdout)


def test_a_new_plugin_takes_no_name_or_folder_that_is_taken(tmp_path: Path, cli, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, words in (("sat", "there is a format sat already"), ("My Trainer", "no name of a format")):
        refused = cli("plugins", "new", name)
        assert refused.exit_code == 1
        assert words in refused.stderr
        line = re.search(r"try: loraforge (plugins new \S+)", refused.stderr)
        assert line is not None
        assert cli(*line[1].split()).exit_code == 0
    (tmp_path / "loraforge-x").mkdir()
    assert cli("plugins", "new", "x").exit_code == 1
    assert list((tmp_path / "loraforge-x").iterdir()) == []


def test_check_does_not_mind_that_the_file_is_installed(tmp_path: Path, cli) -> None:
    text = plugin.DIFFSYNTH.replace('[layouts.toy.modules]\n"blocks.{i}.attn1.to_q" = ["q"]\n', "")
    every = [s for s in architecture("cogvideox").segments if s not in ("ofs1", "ofs2")]
    adapted = [s for s in every if s not in architecture("cogvideox").unadapted]
    blocks = ("q", "k", "v", "o", "ff_in", "ff_out", "mod1_video", "mod2_video", "mod1_text", "mod2_text")
    lines = [f'"{"b.{i}." if s in blocks else ""}{s}" = ["{s}"]' for s in adapted]
    (tmp_path / "x.toml").write_text(text + "\n[layouts.toy.modules]\n" + "\n".join(lines))
    for words in (["plugins", "check"], ["--plugin", tmp_path / "x.toml", "plugins", "check"]):
        done = cli(*words, tmp_path / "x.toml")
        assert done.exit_code == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("A", "B"), [(".lo", ".lo"), (".weight", ".up.weight"), (".up.weight", ".weight")])
def test_suffixes_that_a_key_could_end_in_both_are_refused(A: str, B: str, tmp_path: Path, cli) -> None:
    (tmp_path / "x.toml").write_text(
        plugin.KOHYA.replace('".lora_down.weight"', f'"{A}"').replace('".lora_up.weight"', f'"{B}"')
    )
    done = cli("plugins", "check", tmp_path / "x.toml")
    assert done.exit_code == 1
    assert re.search(r"line 8: the suffix of .* A key could be either", done.stdout), done.stdout


def test_what_we_folded_ourselves_needs_no_statement_to_be_read_again(tmp_path: Path) -> None:
    """A format without a place for the scale: our own header entry says that it stands in the tensors."""
    bare = plugin.KOHYA.replace(', alpha = ".alpha", magnitude = ".dora_scale"', "").replace(
        'magnitude = "column"\n', ""
    )
    (tmp_path / "x.toml").write_text(bare)
    loraforge.use_plugin(tmp_path / "x.toml")
    loraforge.convert(DATA / "peft_plain", to="toy-kohya", out=tmp_path / "a")
    report = loraforge.convert(tmp_path / "a", to="diffusers", out=tmp_path / "b")
    assert report.scale.provenance == "recorded"
    assert "r 8, lora_alpha 4 in adapter_config.json" in report.scale.source
    assert loraforge.verify(DATA / "peft_plain", tmp_path / "b").same


def test_a_stack_that_is_taken_apart_and_put_together_has_the_rank_it_had(tmp_path: Path) -> None:
    text = plugin.DIFFSYNTH.replace('"blocks.{i}.attn1.to_q" = ["q"]', "")
    adapted = architecture("cogvideox")
    rest = [s for s in adapted.segments if s not in adapted.unadapted and s not in ("q", "k", "v", "ofs1", "ofs2")]
    blocks = ("o", "ff_in", "ff_out", "mod1_video", "mod2_video", "mod1_text", "mod2_text")
    lines = ['"b.{i}.qkv" = ["q", "k", "v"]'] + [f'"{"b.{i}." if s in blocks else ""}{s}" = ["{s}"]' for s in rest]
    form = plugin.KOHYA.replace('"diffusers"', '"toy"').replace('separator = "_"\n', "").replace("toy_", "toy.")
    (tmp_path / "x.toml").write_text(text + "\n".join(lines) + form)
    loraforge.use_plugin(tmp_path / "x.toml")
    joined = loraforge.convert(DATA / "peft_plain", to="toy-kohya", out=tmp_path / "a")
    assert {(s.kind, s.rank) for s in joined.steps if ".qkv" in s.module} == {("rank", (8, 24))}
    again = loraforge.convert(tmp_path / "a", to="toy-kohya", out=tmp_path / "b")
    assert {(s.kind, s.rank) for s in again.steps if ".qkv" in s.module} == {("exact", (24, 24))}
    apart = loraforge.convert(tmp_path / "b", to="peft", out=tmp_path / "c")
    assert {s.rank for s in apart.steps if "to_q" in s.module} == {(24, 8)}
    assert loraforge.inspect(tmp_path / "c").ranks == {8: 8}
    assert loraforge.verify(DATA / "peft_plain", tmp_path / "c").same


@pytest.mark.parametrize("factor", ["A", "B", "magnitude"])
def test_an_adapter_made_in_python_is_looked_at_for_nan(factor: str, tmp_path: Path) -> None:
    adapter = make_adapter("cogvideox", "diffusers", dora=True)
    path, (weight,) = next(iter(adapter.modules.items()))
    broken = np.array(getattr(weight, factor))
    broken.reshape(-1)[3] = np.nan
    modules = {**adapter.modules, path: (dataclasses.replace(weight, **{factor: broken}),)}
    with pytest.raises(LoraforgeError, match=rf"NaN or infinity: {re.escape(path)} \({factor}\)"):
        loraforge.write(dataclasses.replace(adapter, modules=modules), "peft", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_sound_file_is_validated_once_and_a_changed_one_again(tmp_path: Path, cli, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "x.toml"
    file.write_text(plugin.KOHYA)
    looked = []
    right = schema_check.look
    monkeypatch.setattr(schema_check, "look", lambda file: looked.append(1) or right(file))
    for _ in range(2):
        assert "toy-kohya" in cli("--plugin", file, "formats").stdout
        use(Registry())
    assert looked == [1]
    file.write_text(plugin.KOHYA + "colour = 'red'\n")
    assert "format has no colour" in cli("--plugin", file, "formats").stderr
    assert looked == [1, 1]
    (tmp_path / "cache").rename(tmp_path / "gone")
    (tmp_path / "cache").write_text("no folder")  # a cache that cannot be written is done without
    file.write_text(plugin.KOHYA)
    use(Registry())
    assert "toy-kohya" in cli("--plugin", file, "formats").stdout
