"""What is said to type when the Hub does not have something, or refuses it, is typed against the test Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.hub import Hub
from hostile.base_builders import ADAPTER
from hostile.builders import safetensors
from hostile.refusals import lora
from hostile.remedies import Ended, ended, faults

CARD = b"---\nlicense: other\nlicense_name: cogvideox\nlicense_link: https://example.org\n---\n"
NAME = "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="module")
def hub():
    with Hub() as made:
        adapter = ADAPTER.read_bytes()
        made.add("me/style", {NAME: adapter, "README.md": CARD})
        made.add("me/style", {}, revision="dev")
        made.add("me/several", {"a.safetensors": adapter, "b.safetensors": adapter})
        made.add("me/empty", {"notes.txt": b"none"})
        made.add("me/locked", {"README.md": CARD})
        made.add("me/oddcard", {"README.md": b"\xff\xfe"})
        made.add("theirs/open", {NAME: adapter})
        made.add("theirs/gated", {NAME: adapter}, gated=True)
        made.add("theirs/private", {NAME: adapter}, private=True)
        made.add("zai-org/CogVideoX-5b", {"README.md": CARD})
        yield made


BASE = ("--base-model", "zai-org/CogVideoX-5b", "--architecture", "cogvideox")
REFUSED = [
    ("inspect", "hf://me/nothing"),
    ("inspect", "hf://me/style@nowhere"),
    ("inspect", "hf://me/style/nowhere.safetensors"),
    ("inspect", "hf://me/several"),
    ("inspect", "hf://me/empty"),
    ("inspect", "hf://theirs/gated"),
    ("inspect", "hf://theirs/private"),
    ("inspect", "me/styl"),
    ("convert", "me/style", "--to", "diffuser"),
    ("convert", "hf://me/several", "--to", "diffusers"),
    ("doctor", "hf://me/style"),
    ("verify", "hf://me/several", "hf://me/style"),
    ("push", "x.safetensors", "me/style", "--revision", "nowhere", *BASE),
    ("push", "x.safetensors", "me/new", "--revision", "dev", *BASE),
    ("push", "x.safetensors", "me/style", "--private", *BASE),
    ("push", "x.safetensors", "me/style@dev", "--revision", "main", *BASE),
    ("push", "x.safetensors", "me/style/sub", *BASE),
    ("push", "x.safetensors", "theirs/open", *BASE),
    ("push", "x.safetensors", "me/oddcard", *BASE),
    ("push", "x.safetensors", "me/style", "--license", "My Licence", *BASE),
    ("push", "bare.safetensors", "me/style", *BASE),
    ("push", "hf://me/style", "me/style", *BASE),
]


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_what_a_refusal_of_the_hub_says_to_type_helps(words: tuple[str, ...], hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "x.safetensors").write_bytes(ADAPTER.read_bytes())
    (folder / "bare.safetensors").write_bytes(safetensors(lora(width=64), {"format": "pt"}))

    def run(typed: list[str]) -> Ended:
        judging = typed[:1] == ["doctor"]
        done = hub.run(*typed, *(["--json"] if judging else []), cwd=folder)
        return ended(done.returncode, done.stdout, done.stderr, judging=judging)

    _, walk = faults(list(words), folder, run)
    assert not walk.faults, "\n\n".join(walk.faults)


@pytest.mark.parametrize("token", [None, "hf_of_nobody", Hub.reader])
def test_without_a_right_token_it_says_how_to_get_one(token: str | None, hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "x.safetensors").write_bytes(ADAPTER.read_bytes())

    def run(typed: list[str]) -> Ended:
        done = hub.run(*typed, token=token, cwd=tmp_path / "here")
        return ended(done.returncode, done.stdout, done.stderr)

    refused, walk = faults(["push", "x.safetensors", "me/locked", *BASE], tmp_path / "here", run)
    assert any("hf auth login" in line for line in refused.lines), refused
    assert not walk.faults, "\n\n".join(walk.faults)
