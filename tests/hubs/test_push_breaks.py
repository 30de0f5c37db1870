"""A Hub that is busy, refuses or goes away: the repo is the old or the new state, and the last line says which."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from helpers.hub import Hub
from helpers.oracle import Case

NAME = "pytorch_lora_weights.safetensors"
SOON = {"Retry-After": "0"}


@pytest.fixture
def style(hub: Hub, tmp_path: Path) -> Path:
    out = tmp_path / "style"
    run = Case("sat_5b_r8").run(tmp_path / "run")
    words = ["convert", run, "--to", "diffusers", "--base-model", "zai-org/CogVideoX-5b", "-o", out]
    assert hub.run(*words).returncode == 0
    hub.add("me/style", {"notes.txt": b"old"})
    hub.log.clear()
    return out


def state(hub: Hub, style: Path) -> str:
    held = hub.files("me/style")
    new = {NAME, "README.md"} <= held.keys() and held[NAME] == (style / NAME).read_bytes()
    old = not {NAME, "README.md"} & held.keys()
    return "new" if new else "old" if old else "half"


STORMS = {
    "create": ("POST", "/api/repos/create"),
    "look": ("GET", r"/api/models/me/style\?"),
    "check": ("POST", "validate-yaml"),
    "preupload": ("POST", "preupload"),
    "batch": ("POST", "objects/batch"),
    "upload": ("PUT", "_lfs"),
    "commit": ("POST", "/commit/main"),
}


SHORT = {*((429, step) for step in STORMS), (500, "commit"), (503, "upload")}


@pytest.mark.parametrize(
    ("status", "step"),
    [
        pytest.param(status, step, marks=[] if (status, step) in SHORT else pytest.mark.long)
        for status in (429, 500, 503)
        for step in STORMS
    ],
)
def test_a_storm_that_passes(hub: Hub, style: Path, step: str, status: int) -> None:
    if step == "create":
        del hub.repos["me/style"]
    hub.fail(*STORMS[step], [status, status], SOON)
    done = hub.run("push", style, "me/style")
    assert done.returncode == 0, done.stderr
    assert not hub.faults and state(hub, style) == "new"
    assert len(hub.commits("me/style")) == (2 if step == "create" else 3)
    assert done.stdout.splitlines()[-1].startswith("me/style is in its new state")
    if step in ("create", "look", "check", "commit"):
        assert f"note: the Hub is busy (HTTP {status}): trying again in" in done.stderr


@pytest.mark.parametrize("step", ["create", "check", "commit"])
def test_a_storm_that_stays(hub: Hub, style: Path, step: str) -> None:
    if step == "create":
        del hub.repos["me/style"]
    hub.fail(*STORMS[step], [429] * 60, SOON)
    done = hub.run("push", style, "me/style")
    assert done.returncode == 1
    assert "the Hub was too busy for me/style (HTTP 429)" in done.stderr
    last = done.stderr.splitlines()[-1]
    if step == "create":
        assert last == "me/style was not made." and "me/style" not in hub.repos
    else:
        assert last == f"me/style is as it was, at {hub.commits('me/style')[-1].sha[:8]}."
        assert state(hub, style) == "old"


@pytest.mark.parametrize("times", [1, pytest.param(40, marks=pytest.mark.long)])
def test_a_connection_cut_during_the_upload(hub: Hub, style: Path, times: int) -> None:
    hub.cut("PUT", "_lfs", after=10_000, times=times)
    began = time.monotonic()
    done = hub.run("push", style, "me/style")
    if times == 1:
        assert done.returncode == 0 and state(hub, style) == "new", done.stderr
    else:
        assert done.returncode == 1 and state(hub, style) == "old"
        assert "the Hub cannot be reached" in done.stderr and "me/style is as it was, at" in done.stderr
    assert time.monotonic() - began < 110


def test_the_answer_to_the_commit_is_lost(hub: Hub, style: Path) -> None:
    hub.cut_answer("POST", "/commit/main")
    done = hub.run("push", style, "me/style")
    assert done.returncode == 0, done.stderr
    assert state(hub, style) == "new" and len(hub.commits("me/style")) == 3
    assert (
        done.stdout.splitlines()[-1]
        == f"me/style is in its new state, at {hub.commits('me/style')[-1].sha[:8]} (public)"
    )


def test_the_hub_goes_away_after_the_commit(hub: Hub, style: Path) -> None:
    def refuses() -> None:
        while not hub.asked("POST", "/commit/main"):
            time.sleep(0.005)
        hub.fail("POST", "validate-yaml", [400] * 9)

    hub.cut_answer("POST", "/commit/main")
    watcher = threading.Thread(target=refuses)
    watcher.start()
    done = hub.run("push", style, "me/style")
    watcher.join()
    assert state(hub, style) == "new" and len(hub.commits("me/style")) == 3
    assert done.returncode == 0 and done.stdout.splitlines()[-1].startswith("me/style is in its new state"), done.stderr


def test_nobody_can_tell(hub: Hub, style: Path) -> None:
    def goes_away() -> None:
        while not hub.asked("POST", "/commit/main"):
            time.sleep(0.01)
        hub.fail("GET", "/api/models/", [503] * 99, SOON)

    hub.fail("POST", "/commit/main", [500] * 99, SOON)
    watcher = threading.Thread(target=goes_away)
    watcher.start()
    done = hub.run("push", style, "me/style")
    watcher.join()
    assert (
        done.returncode == 1 and "whether the commit arrived in me/style is not known" in done.stderr.splitlines()[-1]
    )


def test_somebody_commits_meanwhile(hub: Hub, style: Path) -> None:
    def commits() -> None:
        while not hub.asked("POST", "preupload"):
            time.sleep(0.005)
        hub.add("me/style", {"theirs.txt": b"theirs"})

    hub.fail("PUT", "_lfs", [429], {"Retry-After": "1"})  # so that there is time
    watcher = threading.Thread(target=commits)
    watcher.start()
    done = hub.run("push", style, "me/style")
    watcher.join()
    assert done.returncode == 1 and "somebody has committed to me/style meanwhile" in done.stderr
    assert state(hub, style) == "old" and "theirs.txt" in hub.files("me/style")
    assert hub.run("push", style, "me/style").returncode == 0 and state(hub, style) == "new"
    assert "theirs.txt" in hub.files("me/style")


def test_large_files_in_parts(hub: Hub, style: Path) -> None:
    hub.chunk_size = 10_000
    hub.fail("PUT", "_lfs", [500, 429], SOON)
    done = hub.run("push", style, "me/style")
    assert done.returncode == 0, done.stderr
    assert state(hub, style) == "new" and len(hub.asked("PUT")) >= 4


def test_no_right_to_write(hub: Hub, style: Path) -> None:
    done = hub.run("push", style, "me/style", token=hub.reader)
    assert done.returncode == 1 and "your token may not do that" in done.stderr and state(hub, style) == "old"
    assert "hf auth login" in done.stderr and "is as it was, at" in done.stderr
    theirs = hub.run("push", style, "them/style")
    assert theirs.returncode == 1 and "them/style was not made" in theirs.stderr and "them/style" not in hub.repos
    nobody = hub.run("push", style, "me/style", token=None)
    assert nobody.returncode == 1 and "hf auth login" in nobody.stderr and state(hub, style) == "old"


def test_a_hub_that_refuses_the_card(hub: Hub, style: Path) -> None:
    hub.fail("POST", "validate-yaml", [400])
    done = hub.run("push", style, "me/style")
    assert done.returncode == 1 and "Traceback" not in done.stderr and state(hub, style) == "old"
    assert "is as it was" in done.stderr
