"""The run over public adapters, tried on a Hub that has two of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import tomli
from helpers.hub import Hub
from helpers.oracle import DATA

WILD = Path(__file__).parents[1] / "wild"
NAME = "pytorch_lora_weights.safetensors"


def run(hub: Hub, list_: Path, place: Path, *words: str, **changed: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, WILD / "wild.py", "--list", list_, "--report", place / "report.json", *words]
    environment = hub.environment(hub.home) | changed
    return subprocess.run(line, env=environment, capture_output=True, text=True, timeout=200, cwd=place)


def test_the_list_is_long_and_each_entry_has_a_source() -> None:
    entries = tomli.loads((WILD / "adapters.toml").read_text("utf-8"))["adapter"]
    assert len({entry["repo"] for entry in entries}) >= 20 and len({entry["writer"] for entry in entries}) >= 8
    assert all(entry["source"].startswith("https://") for entry in entries)


def test_a_run_reports_and_pins(hub: Hub, tmp_path: Path) -> None:
    known = tmp_path / "adapters.toml"
    shutil.copy(WILD / "adapters.toml", known)
    silent = DATA / "diffusers_save_lora_weights_nometa" / NAME
    hub.add("a-r-r-o-w/cogvideox-disney-adamw-3000-0.0003", {NAME: silent})
    hub.add("a-r-r-o-w/cogvideox-disney-adamw-4000-0.0003-constant", {NAME: b"broken"})
    done = run(hub, known, tmp_path, "--only", "a-r-r-o-w/cogvideox-disney-adamw", "--pin")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["repo"].rpartition("-")[2]: row for row in json.loads((tmp_path / "report.json").read_text())}
    good, broken = rows["0.0003"], rows["constant"]
    assert good["convert"] == "written" and good["verify"].startswith("same update")
    assert good["doctor"].startswith("cannot tell") and broken["inspect"].startswith("Error: ")
    pinned = {entry["repo"]: entry.get("revision") for entry in tomli.loads(known.read_text("utf-8"))["adapter"]}
    commit = hub.commits("a-r-r-o-w/cogvideox-disney-adamw-3000-0.0003")[-1].sha
    assert [(repo, sha) for repo, sha in pinned.items() if sha] == [(good["repo"], commit)]


def test_without_a_network_it_says_so(hub: Hub, tmp_path: Path) -> None:
    done = run(hub, WILD / "adapters.toml", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 0 and done.stdout.startswith("skipped: the Hub cannot be reached")
    assert not (tmp_path / "report.json").exists()
