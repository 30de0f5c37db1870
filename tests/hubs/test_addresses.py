"""An address is obeyed whole, or refused: branches with a `/`, what a browser adds, what is no model."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from helpers.hub import Hub
from helpers.oracle import DATA
from helpers.pushed import BASE, NAME

FILE = DATA / "diffusers_save_lora_weights_meta" / NAME


def where(hub: Hub, *revisions: str, repo: str = "me/style") -> list[str]:
    return [revision for revision in revisions if NAME in hub.files(repo, revision)]


def lines(text: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in re.findall(r"try: loraforge ([^\n]*)", text)]


@pytest.fixture
def branches(hub: Hub, style: Path) -> Hub:
    hub.add("me/style", {"README.md": b"x"})
    for revision in ("dev", "feature/x", "v1"):
        hub.add("me/style", {"README.md": b"x"}, revision=revision)
    return hub


TO = {
    "hf://me/style@dev": "dev",
    "me/style@dev": "dev",
    "https://huggingface.co/me/style/tree/dev": "dev",
    "huggingface.co/me/style/tree/feature%2Fx": "feature/x",
    "hf://me/style@feature/x": "feature/x",
    "https://huggingface.co/me/style/tree/feature/x": "feature/x",
    "https://huggingface.co/me/style/tree/main": "main",
    "hf://models/me/style": "main",
}


@pytest.mark.parametrize("address", TO)
def test_a_push_goes_where_the_address_says(branches: Hub, style: Path, address: str) -> None:
    done = branches.run("push", style, address, "--dry-run")
    assert done.returncode == 0 and not where(branches, "main", "dev", "feature/x"), done.stderr
    done = branches.run("push", style, address)
    assert done.returncode == 0, done.stderr
    assert where(branches, "main", "dev", "feature/x", "v1") == [TO[address]]


def test_the_same_branch_twice_is_one_and_two_are_a_question(branches: Hub, style: Path) -> None:
    done = branches.run("push", style, "hf://me/style@dev", "--revision", "v1")
    assert done.returncode == 1 and "names the revision dev, and --revision v1: which?" in done.stderr
    assert not where(branches, "main", "dev", "v1")
    first, second = lines(done.stderr)
    assert branches.run(*first).returncode == 0 and where(branches, "main", "dev", "v1") == ["dev"]
    assert branches.run(*second).returncode == 0 and where(branches, "main", "dev", "v1") == ["dev", "v1"]
    assert branches.run("push", style, "me/style@dev", "--revision", "dev").returncode == 0


NOT_A_PLACE = {
    "hf://me/style/style.safetensors": "is the address of a file or folder",
    "hf://me/style@dev/style.safetensors": "is the address of a file or folder",
    "https://huggingface.co/me/style/blob/main/style.safetensors": "is the address of a file or folder",
    "https://huggingface.co/me/style/tree/dev/sub": "is the address of a file or folder",
    "https://huggingface.co/me/style/settings": "is no page of its files",
    "https://huggingface.co/me/style/discussions/1": "is no page of its files",
    "https://huggingface.co/me/style?revision=dev": "what ?revision=dev asks for cannot be had",
    "https://huggingface.co/me/style#dev": "what #dev asks for cannot be had",
    "hf://me/style@dev@v1": "is no revision",
    "hf://me/style@": "no revision follows the @",
    "me/style.git": "is no name of a repository",
    "https://huggingface.co/me/style.git": "is no user/name",
    "hf://datasets/me/style": "it is a dataset",
    "https://huggingface.co/spaces/me/style": "it is a space",
    "https://example.com/me/style": "is not the Hub",
    "me-/style": "is no name of a repository",
    "me/sty--le": "is no name of a repository",
    "me/style@nowhere": "has no revision nowhere",
    "me/style@no/where": "has no revision no/where",
}


@pytest.mark.parametrize("address", NOT_A_PLACE)
def test_what_cannot_be_obeyed_is_refused_dry_or_not(branches: Hub, style: Path, address: str) -> None:
    for dry in ([], ["--dry-run"]):
        done = branches.run("push", style, address, *dry)
        assert done.returncode == 1 and NOT_A_PLACE[address] in done.stderr, done.stderr
        assert not where(branches, "main", "dev", "feature/x", "v1") and not branches.asked("POST")
        for line in lines(done.stderr):
            assert branches.run(*line, *([] if "--help" in line or dry else ["--dry-run"])).returncode == 0, line


def test_convert_takes_the_same_addresses(branches: Hub, tmp_path: Path) -> None:
    words = ["convert", FILE, "--to", "diffusers", "--base-model", BASE, "--architecture", "cogvideox"]
    done = branches.run(*words, "-o", tmp_path / "no", "--push", "hf://me/style/x.safetensors")
    assert done.returncode == 1 and "is the address of a file" in done.stderr and not (tmp_path / "no").exists()
    (line,) = lines(done.stderr)
    assert line[line.index("--push") + 1] == "me/style"
    done = branches.run(*words, "-o", tmp_path / "a", "--push", "me/style@dev")
    assert done.returncode == 0 and where(branches, "main", "dev") == ["dev"], done.stderr


READ = {
    "me/style@feature/x": "feature/x",
    "hf://me/style@feature/x": "feature/x",
    "hf://me/style@feature/x/pytorch_lora_weights.safetensors": "feature/x",
    "https://huggingface.co/me/style/tree/feature/x": "feature/x",
    "https://huggingface.co/me/style/blob/feature/x/pytorch_lora_weights.safetensors": "feature/x",
    "https://huggingface.co/me/style/resolve/feature%2Fx/pytorch_lora_weights.safetensors?download=true": "feature/x",
}


@pytest.mark.parametrize("address", READ)
def test_a_branch_with_a_slash_is_found(hub: Hub, address: str) -> None:
    hub.add("me/style", {"README.md": b"x"})
    hub.add("me/style", {NAME: FILE.read_bytes()}, revision="feature/x")
    done = hub.run("inspect", address)
    assert done.returncode == 0 and "hf://me/style@feature/x" in done.stdout, done.stderr
    assert hub.run("convert", address, "--to", "peft", "-o", hub.home / "o").returncode == 0
    again = hub.run("inspect", address, "--fetch", offline=True)
    assert again.returncode == 0, again.stderr


def test_the_longest_branch_that_fits(hub: Hub) -> None:
    hub.add("me/style", {"x/" + NAME: FILE.read_bytes()}, revision="feature")
    hub.add("me/style", {NAME: FILE.read_bytes()}, revision="feature/x")
    hub.add("me/other", {"x/" + NAME: FILE.read_bytes()}, revision="feature")
    assert "feature/x" in hub.run("inspect", "hf://me/style@feature/x").stdout
    assert hub.run("inspect", "hf://me/other@feature/x").returncode == 0
    done = hub.run("inspect", "hf://me/style@fea/x")
    assert done.returncode == 1 and "has no revision fea/x; it has " in done.stderr
    assert all(hub.run(*line).returncode in (0, 1) for line in lines(done.stderr))
    named = [line for line in lines(done.stderr) if line[-1] == "hf://me/style@feature/x"]
    assert named and hub.run(*named[0]).returncode == 0


@pytest.mark.parametrize("verb", [["inspect"], ["doctor"], ["convert", "--to", "peft"], ["verify", str(FILE)]])
@pytest.mark.parametrize("address", [a for a in NOT_A_PLACE if "://" in a and "address of" not in NOT_A_PLACE[a]])
def test_every_verb_refuses_what_it_cannot_obey(hub: Hub, verb: list[str], address: str, cli) -> None:
    done = cli(*verb, address)
    assert done.exit_code == 1 and NOT_A_PLACE[address] in done.output, done.output


def test_an_iteration_of_a_repository_without_any(hub: Hub) -> None:
    hub.add("me/style", {"other.safetensors": FILE.read_bytes()})
    done = hub.run("inspect", "me/style", "--iteration", "5")
    assert done.returncode == 1 and "--iteration chooses among the checkpoints of a run" in done.stderr
    (line,) = lines(done.stderr)
    assert hub.run(*line).returncode == 0


def test_tags_that_are_one_text_are_kept(hub: Hub, style: Path) -> None:
    hub.add("me/style", {"README.md": b'---\ntags: "anime, disney"\nbase_model: [a/b, c/d]\n---\nown text\n'})
    done = hub.run("push", style, "me/style", "--base-model", BASE)
    assert done.returncode == 0, done.stderr
    text = hub.files("me/style")["README.md"].decode()
    assert "- anime\n- disney\n- lora" in text and "own text" in text
    assert "tags were one text" in done.stderr and "the card said base_model ['a/b', 'c/d']" in done.stderr
