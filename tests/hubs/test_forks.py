"""The commands of these tests run in forks of one process (helpers/forks.py), which is as good as new ones."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import forks
from helpers.hub import Hub
from helpers.oracle import DATA

pytestmark = pytest.mark.skipif(not forks.POSSIBLE, reason="every command runs in a new process")
LORA = "pytorch_lora_weights.safetensors"
ADAPTER = DATA / "diffusers_save_lora_weights_meta" / LORA


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (("--help",), {}),
        (("inspect", "me/style"), {}),
        (("inspect", "me/style", "--json"), {"offline": True}),
        (("inspect", "me/nothing"), {}),
        (("push", ADAPTER, "me/new", "--dry-run"), {"token": None}),
        (("push", ADAPTER), {}),
        (("inspect", "\udcff"), {}),
    ],
)
def test_a_fork_is_as_good_as_a_process(hub: Hub, tmp_path: Path, words: tuple[object, ...], options: dict) -> None:
    hub.add("me/style", {LORA: ADAPTER})
    fresh, fork = (hub.run(*words, cwd=tmp_path, forked=forked, **options) for forked in (False, True))
    assert (fork.returncode, fork.stdout, fork.stderr) == (fresh.returncode, fresh.stdout, fresh.stderr)
    assert fork.stdout or fork.stderr


def test_nothing_is_left_of_an_earlier_command(hub: Hub, tmp_path: Path) -> None:
    """Neither the client's addresses and folders, which it takes from the environment, nor plugins, nor a folder."""
    hub.add("me/style", {LORA: ADAPTER})
    plugin = tmp_path / "toy.toml"
    plugin.write_text("[format]\n")
    assert "toy.toml" in hub.run("--plugin", plugin, "formats", cwd=tmp_path).stderr
    with Hub() as other:
        done = other.run("inspect", "me/style")
        assert done.returncode == 1 and "toy.toml" not in done.stderr
        assert other.log and not hub.log
    done = hub.run("convert", "me/style", "--to", "peft", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0 and (tmp_path / "out").is_dir(), done.stderr
    assert list(hub.home.rglob(LORA))
