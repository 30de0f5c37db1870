"""The commands `fuse` and `convert-base`: what they take, what they print, and backends of other packages."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.oracle import DATA, Case
from safetensors.numpy import load_file

import loraforge
from loraforge.base.retention import lines, retention, summary
from loraforge.files.torch_read import read_torch
from loraforge.fusion.backend import Sums
from loraforge.fusion.choose import backends
from loraforge.plugin.registry import Registry, use

BASE, FILE = DATA / "bases" / "2b", "diffusion_pytorch_model.safetensors"
BACKEND = """
import loraforge
from loraforge.fusion.with_numpy import NumpyBackend

class Doubled(NumpyBackend):
    name, summary = "doubled", "twice the update: a wrong backend"

    def fuse(self, weight, terms, dtype, device):
        return super().fuse(weight, [*terms, *terms], dtype, device)

@loraforge.hookimpl
def loraforge_fusion_backends():
    return [{items}]
"""


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return Case("sat_2b_r4").run(tmp_path)


@pytest.fixture
def forgotten():
    yield
    use(Registry())


def test_a_backend_of_a_plugin_is_used_and_its_faults_are_found(
    tmp_path: Path, adapter: Path, cli, forgotten: None
) -> None:
    """A backend that computes something else is caught by the rows that are read back, and nothing is kept."""
    (tmp_path / "mine.py").write_text(BACKEND.format(items="Doubled()"))
    result = cli(
        "--plugin", tmp_path / "mine.py", "fuse", BASE, adapter, "-o", tmp_path / "out", "--backend", "doubled"
    )
    assert result.exit_code == 1
    assert "did not come out as it should" in result.stderr
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("out")]
    result = cli("--plugin", tmp_path / "mine.py", "plugins", "list")
    assert "fusion backend doubled" in result.stdout


def test_what_is_no_backend_is_named_with_its_plugin(tmp_path: Path, cli, forgotten: None) -> None:
    (tmp_path / "mine.py").write_text(BACKEND.format(items="object(), NumpyBackend()"))
    result = cli("--plugin", tmp_path / "mine.py", "plugins", "list")
    assert "returned object without name, summary, devices, fuse: that is no backend" in result.stderr
    assert "there is a fusion backend 'numpy' already" in result.stderr
    assert list(backends()) == ["numpy", "torch"]


def test_a_dry_run_measures_and_writes_nothing(tmp_path: Path, adapter: Path, cli) -> None:
    words = ["fuse", BASE, adapter, "-o", tmp_path / "out", "--json"]
    dry = json.loads(cli(*words, "--dry-run").stdout)
    assert not (tmp_path / "out").exists()
    wet = json.loads(cli(*words).stdout)
    assert (dry["output"].pop("written"), wet["output"].pop("written")) == (False, True)
    assert dry == wet


def test_strength_zero_changes_nothing_and_strengths_go_by_order(tmp_path: Path, adapter: Path, cli) -> None:
    before = load_file(BASE / FILE)
    report = loraforge.fuse(BASE, [adapter], tmp_path / "none", strength=[0])
    assert report.modules == ()
    after = load_file(tmp_path / "none" / FILE)
    assert all(after[key].tobytes() == before[key].tobytes() for key in before)
    one = cli("fuse", BASE, adapter, adapter, "--strength", 0.25, "--strength", 0.75, "-o", tmp_path / "two")
    assert one.stdout.count("at strength 0.25,") == one.stdout.count("at strength 0.75,") == 1


def test_a_vanishing_update_is_warned_of_with_what_to_do(tmp_path: Path, adapter: Path, cli) -> None:
    result = cli("fuse", BASE, adapter, "--strength", 0.004, "-o", tmp_path / "out")
    assert "--dtype fp32 keeps it" in result.stderr
    result = cli("fuse", BASE, adapter, "--strength", 0.004, "-o", tmp_path / "fine", "--dtype", "fp32")
    assert "keeps it" not in result.stderr


def test_the_other_model_of_a_same_shape_is_noted(tmp_path: Path, adapter: Path, cli) -> None:
    loraforge.convert(adapter, "diffusers", out=tmp_path / "a", base_model="zai-org/CogVideoX-5b-I2V")
    result = cli("fuse", BASE, tmp_path / "a", "-o", tmp_path / "out")
    assert "the adapter is for zai-org/CogVideoX-5b-I2V, and the base has the shapes of" in result.stderr


def test_one_file_in_one_file_out(tmp_path: Path, adapter: Path) -> None:
    loraforge.fuse(BASE / FILE, [adapter], tmp_path / "one.safetensors")
    loraforge.fuse(BASE / FILE, [adapter], tmp_path / "folder.v1")
    assert (tmp_path / "one.safetensors").read_bytes() != (BASE / FILE).read_bytes()
    one, other = load_file(tmp_path / "one.safetensors"), load_file(tmp_path / "folder.v1" / FILE)
    assert all(one[key].tobytes() == other[key].tobytes() for key in one)
    checkpoint = next((BASE / "sat_base").glob("*/*.pt"))
    loraforge.fuse(checkpoint, [adapter], tmp_path / "one.pt")
    loraforge.fuse(BASE / "sat_base", [adapter], tmp_path / "run")
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("one")) == ["one.pt", "one.safetensors"]
    there, alone = read_torch(tmp_path / "run" / "1" / checkpoint.name), read_torch(tmp_path / "one.pt")
    assert all(bytes(there.raw(key)) == bytes(alone.raw(key)) for key in there.tensors)


def test_the_figures_of_edge_cases_are_defined() -> None:
    """Nothing updated, zero weights, everything rounded away."""
    assert retention("x", Sums()).relative_error == 0.0
    gone = retention("x", Sums(4, 4, 1.0, 1e-8, 0.0, 0.0, 1e-8))
    assert (gone.unchanged, gone.relative_error, gone.cosine) == (1.0, 1.0, 0.0)
    assert retention("x", Sums(4, 0, 0.0, 1.0, 1.0, 1.0, 0.0)).relative_size == np.inf
    total, modules = summary({"a": Sums(1, 0, 1.0, 4.0, 4.0, 4.0, 0.0), "b": Sums(1, 1, 1.0, 4.0, 0.0, 0.0, 4.0)})
    assert total.relative_error == pytest.approx(0.5**0.5)
    lost, size = lines(total, modules)
    assert "at worst 100.0%, b" in lost
    assert "drowns the base" in size
    faint, _ = summary({"a": Sums(1, 0, 1e8, 1.0, 1.0, 1.0, 0.0)})
    assert ": faint" in lines(faint, ())[1]


def test_what_hardly_is_a_fuse_is_noted(tmp_path: Path, adapter: Path, cli) -> None:
    """Nothing added, the same adapter twice, an update larger than the weights, a folder called like a file."""
    assert "nothing is added" in cli("fuse", BASE, adapter, "--strength", 0, "-o", tmp_path / "a").stderr
    assert "given more than once" in cli("fuse", BASE, adapter, adapter, "-o", tmp_path / "b").stderr
    assert "times as large as the weights" in cli("fuse", BASE, adapter, "--strength", 50, "-o", tmp_path / "c").stderr
    done = cli("fuse", BASE, adapter, "-o", tmp_path / "d.safetensors")
    assert done.exit_code == 1
    assert "is the name of a file" in done.stderr
    few = cli("fuse", BASE, adapter, adapter, "--strength", 0.5, "-o", tmp_path / "e")
    assert "--strength 0.5 --strength 1" in few.stderr


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, adapter: Path, cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("loraforge.base.job._write", interrupted)
    done = cli("fuse", BASE, adapter, "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert f"Type the same command again to go on; the work is in {tmp_path / 'out'}.partial" in done.stderr
    assert (tmp_path / "out.partial").is_dir()
    monkeypatch.undo()
    assert cli("fuse", BASE, adapter, "-o", tmp_path / "out").exit_code == 0
    assert not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("verb", ["fuse", "convert-base"])
def test_progress_is_bytes_written_and_all_bytes(
    verb: str, tmp_path: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, out = list[tuple[int, int]](), tmp_path / "out"

    def once() -> None:
        calls.clear()
        step = lambda done, total: calls.append((done, total))  # noqa: E731
        if verb == "fuse":
            loraforge.fuse(BASE, [adapter], out, progress=step)
        else:
            loraforge.convert_base(BASE, "sat", out, progress=step)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:  # every file is written, and the folder has no name yet
        patch.setattr("loraforge.files.resume._appear", stopped)
        with pytest.raises(KeyboardInterrupt):
            once()
    done, totals = zip(*calls, strict=True)
    assert len(set(totals)) == 1
    assert list(done) == sorted(done)
    assert done[-1] == totals[0]
    assert len(calls) > 2
    whole = totals[0]
    once()  # what was finished counts at once
    assert calls[-1] == (whole, whole)


def test_a_stated_scale_counts_for_every_adapter(tmp_path: Path) -> None:
    """Each adapter gets the scale by its own rank; where one of the two records another, nothing is written."""
    file = DATA / "diffusers_save_lora_weights_nometa" / "pytorch_lora_weights.safetensors"
    stated = {"alpha": 4, "architecture": "cogvideox"}
    one, two = (loraforge.fuse(BASE, [file] * n, tmp_path / "out", dry_run=True, **stated) for n in (1, 2))
    assert [adapter.scalings for adapter in two.adapters] == [one.adapters[0].scalings] * 2 == [(0.5,)] * 2
    assert two.total.relative_size == pytest.approx(2 * one.total.relative_size, rel=1e-3)
    other = tmp_path / "other.safetensors"
    loraforge.stamp(file, out=other, alpha=8, architecture="cogvideox")
    with pytest.raises(loraforge.LoraforgeError, match="alpha"):
        loraforge.fuse(BASE, [file, other], tmp_path / "out", **stated)
    assert not (tmp_path / "out").exists()


DRAW = """
from loraforge.cli.screen import progress
with progress("fusing", "stopped") as update:
    update(1, 4)
    update(4, 4)
"""


@pytest.mark.skipif(os.name == "nt", reason="there are no such terminals there")
def test_a_bar_is_drawn_on_a_terminal_alone() -> None:
    import pty

    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-c", DRAW], stderr=theirs, env={**os.environ, "TERM": "xterm"})
    os.close(theirs)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    assert done.returncode == 0
    assert "fusing" in shown
    assert "100%" in shown
    plain = subprocess.run([sys.executable, "-c", DRAW], capture_output=True, text=True)
    assert (plain.returncode, plain.stdout, plain.stderr) == (0, "", "")


def test_the_adapter_is_left_as_it_is(tmp_path: Path, adapter: Path, cli) -> None:
    """Not even --force writes the model over what it is made of."""
    loraforge.convert(adapter, "diffusers", out=tmp_path / "a.safetensors")
    before = (tmp_path / "a.safetensors").read_bytes()
    done = cli("fuse", BASE / FILE, tmp_path / "a.safetensors", "-o", tmp_path / "a.safetensors", "--force")
    assert done.exit_code == 1
    assert "would replace or lie inside" in done.stderr
    assert (tmp_path / "a.safetensors").read_bytes() == before


def test_a_run_without_a_chosen_iteration_is_asked_about_with_lines_that_run(
    tmp_path: Path, adapter: Path, cli
) -> None:
    """fuse has no --iteration: the lines are those of a command that has one."""
    (adapter / "latest").write_text("7")
    done = cli("fuse", BASE, adapter, "-o", tmp_path / "out")
    assert done.exit_code == 1
    tries = [line.partition("try: ")[2] for line in done.stderr.splitlines() if "try: " in line]
    assert tries[0] == f"loraforge inspect {adapter / '1000'}"
    assert all(cli(*shlex.split(line)[1:]).exit_code == 0 for line in tries)
