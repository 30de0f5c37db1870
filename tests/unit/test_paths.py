"""Paths that do not exist, folders of any content: what is said, what is taken, and what the Hub never hears of."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.oracle import DATA
from hostile.builders import checkpoint
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.errors import SeveralError, absent
from loraforge.hub import client
from loraforge.hub.address import address

SILENT = DATA / "diffusers_save_lora_weights_nometa" / "pytorch_lora_weights.safetensors"
PACKAGE = Path(loraforge.__file__).parent


def lines(output: str) -> list[list[str]]:
    return [shlex.split(line, comments=True) for line in re.findall(r"try: loraforge ([^\n]*)", output)]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with runs, which is the current one."""
    for run in ("lora-disney-11-20-10-00",):
        (tmp_path / "runs" / run).mkdir(parents=True)
        shutil.copy(SILENT, tmp_path / "runs" / run)
    for name in ("style-a.safetensors", "style-b.safetensors", "other.safetensors"):
        shutil.copy(SILENT, tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    return tmp_path


MISSING = {
    "runs/lora-typo": ("runs has lora-disney-11-20-10-00", "runs/lora-disney-11-20-10-00"),
    "runs/lora-disney-11-20-10-01": ("runs has lora-disney-11-20-10-00", "runs/lora-disney-11-20-10-00"),
    "./runs/lora-disney/": ("runs has lora-disney-11-20-10-00", "runs/lora-disney-11-20-10-00"),
    "style-c.safetensors": ("this folder has style-a.safetensors", "style-a.safetensors"),
    "STYLE-B.safetensor": ("this folder has style-b.safetensors", "style-b.safetensors"),
    "nothing-like-it-at-all": ("this folder has ", None),
    "runs/x/y": ("nor does runs/x; runs has lora-disney-11-20-10-00", None),
    "empty/x": ("empty/x does not exist.", None),
    "link": ("it is a link to nothing", None),
    "style-a.safetensors/x": ("style-a.safetensors is no folder", None),
}


@pytest.mark.parametrize("typed", MISSING)
@pytest.mark.parametrize("verb", ["inspect", "doctor", "convert", "fuse"])
def test_a_missing_path_is_said_with_the_nearest_name(verb: str, typed: str, here: Path, cli, monkeypatch) -> None:
    monkeypatch.setattr("loraforge.hub.folder.open_repo", lambda _: pytest.fail("the Hub was asked"))
    said, nearest = MISSING[typed]
    if verb == "fuse" and nearest and not nearest.startswith("runs"):
        pytest.skip("an adapter is no base model")
    words = {"convert": ["--to", "peft", "--trained-scale", "1"], "fuse": [SILENT, "-o", "o"]}.get(verb, [])
    done = cli(verb, typed, *words)
    assert done.exit_code == 1 and "does not exist" in done.output and said in done.output
    first = [line for line in lines(done.output) if not any("hf://" in word for word in line)]
    assert first[:1] == ([[verb, nearest, *map(str, words)]] if nearest else [])
    if nearest and verb == "inspect":
        assert cli(*first[0]).exit_code == 0
    assert " ls " not in done.output and "--help" not in done.output


ASKED = {  # typed -> whether the Hub may be asked
    "nobody/style": True, "nobody/style@v1": True, "hf://runs/style": True,
    "https://huggingface.co/runs/style": True,
    "runs/style": False, "runs/lora@v1": False, "style-a.safetensors/x": False, "link/x": False,
    "./nobody/style": False, "~/style": False, "/nobody/style": False, "nobody/style/deeper": False,
    "nobody/style.safetensors": False, "style": False,
}  # fmt: skip


def test_the_hub_is_asked_for_what_can_be_no_path(here: Path) -> None:
    assert {typed: address(typed) is not None for typed in ASKED} == ASKED
    assert address(Path("nobody/style")) is None


def test_a_name_in_a_folder_of_this_machine_is_offered_but_not_sent(here: Path, cli) -> None:
    done = cli("inspect", "runs/private-name")
    assert ["inspect", "hf://runs/private-name"] in lines(done.output)


def test_it_is_said_that_the_hub_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told = list[str]()
    monkeypatch.setattr(client, "waiting", told.append)
    monkeypatch.setattr(client, "_SILENCE", 0.05)
    with client.asking("me/style", "hf://me/style"):
        time.sleep(0.3)
    assert told == ["waiting for the Hub, for hf://me/style"]
    with client.asking("me/style"):
        pass
    time.sleep(0.1)
    assert len(told) == 1


def torch_file(path: Path, *, adapter: bool) -> None:
    held = load_file(SILENT) if adapter else {"exp_avg": np.ones((4, 4), np.float32)}
    path.write_bytes(checkpoint(held))


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            shutil.copy(SILENT, folder / name)
        else:
            torch_file(folder / name, adapter="optimizer" not in name)
    return folder


TAKEN = {
    "a torch file": (["my.pt"], "my.pt"),
    "a .bin beside an optimizer's": (["my.bin", "optimizer.bin"], "my.bin"),
    "a torch file beside another model's": (["my.ckpt", "x/notes/optimizer.pt"], "my.ckpt"),
    "in a subfolder": (["sub/my.safetensors"], "sub/my.safetensors"),
    "torch in a subfolder": (["sub/my.pth", "sub/optimizer.bin", "logs/optimizer.pt"], "sub/my.pth"),
}


@pytest.mark.parametrize("name", TAKEN)
def test_the_one_adapter_is_taken_with_a_note(name: str, tmp_path: Path) -> None:
    names, taken = TAKEN[name]
    found = loraforge.inspect(put(tmp_path / "d", *names))
    assert Path(found.path) == tmp_path / "d" / taken and found.format == "diffusers"
    assert any(note.startswith("took ") for note in found.notes)


SEVERAL = {
    "safetensors and torch": ["one.safetensors", "two.pt"],
    "of one name": ["one.safetensors", "one.bin"],
    "in subfolders": ["a/my.safetensors", "b/my.pt"],
    "two in each subfolder": ["a/x.safetensors", "a/y.safetensors"],
}


@pytest.mark.parametrize("name", SEVERAL)
@pytest.mark.parametrize("verb", ["inspect", "doctor", "convert"])
def test_several_have_a_line_each_of_the_command_that_was_typed(verb: str, name: str, tmp_path: Path, cli) -> None:
    folder = put(tmp_path / "d", *SEVERAL[name])
    words = ["--to", "peft", "-o", str(tmp_path / "o")] if verb == "convert" else []
    done = cli(verb, folder, *words)
    assert done.exit_code == 1 and "Which?" in done.output and "broken" not in done.output
    offered = lines(done.output)
    assert len(offered) == (1 if name.startswith("two in") else 2)
    assert all(line[0] == verb and line[2:] == words and Path(line[1]).exists() for line in offered)


def test_a_folder_without_any_says_what_is_in_it(tmp_path: Path, cli) -> None:
    (tmp_path / "d" / "x" / "y").mkdir(parents=True)
    put(tmp_path / "d" / "x" / "y", "my.safetensors")
    done = cli("inspect", tmp_path / "d")
    assert done.exit_code == 1 and "no adapter was found in" in done.output and "it holds x" in done.output
    assert "try:" not in done.output


def test_no_remedy_lists_a_folder_or_guesses_at_a_file() -> None:
    """`ls -l` and `file` mend nothing, and Windows has neither."""
    sources = [path for root in (PACKAGE, PACKAGE.parent / "plugins") for path in root.rglob("*.py")]
    assert [str(path) for path in sources if re.search(r'command\("(ls|file)"', path.read_text("utf-8"))] == []


def test_an_error_without_a_fix_prints_none(tmp_path: Path, cli) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"")
    done = cli("inspect", tmp_path / "x.safetensors")
    assert done.exit_code == 1 and done.stderr.count("\n") == 1 and "download it again" in done.stderr


def test_the_index_of_an_adapter_and_its_files(tmp_path: Path, cli) -> None:
    """Each difference is said as what it is; no cause is made up."""
    held = load_file(SILENT)
    first, *_ = places = {key: f"x-{1 + n % 2:05d}-of-00002.safetensors" for n, key in enumerate(held)}
    for name in set(places.values()):
        save_file({key: held[key] for key in held if places[key] == name}, tmp_path / name)

    def said(table: dict[str, str]) -> tuple[int, str]:
        (tmp_path / "x.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
        done = cli("inspect", tmp_path)
        return done.exit_code, done.output

    assert said(places)[0] == 0
    code, text = said({**places, "more.weight": places[first]})
    assert code == 1 and "more.weight (in none of them)" in text
    code, text = said({key: name for key, name in places.items() if key != first})
    assert code == 0 and f"does not name {first}, which the files beside it hold" in text
    code, text = said({**places, first: "x-00002-of-00002.safetensors"})
    assert code == 1 and f"{first} (x-00001-of-00002.safetensors)" in text


def test_absent_is_for_any_option_and_kind() -> None:
    error = absent("nowhere/at/all", what="--image", kind=SeveralError)
    assert isinstance(error, SeveralError) and str(error).startswith("--image nowhere/at/all does not exist")
