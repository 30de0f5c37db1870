"""A server that lies, breaks off, or is no Hub: one clear message, nothing on the disk, and no number made up."""

from __future__ import annotations

import json
import re
import shlex
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.hub import Hub
from helpers.hub_api import Answer, Request, reply
from helpers.oracle import DATA
from safetensors.numpy import save_file

META = DATA / "diffusers_save_lora_weights_meta" / "pytorch_lora_weights.safetensors"
ENOUGH = 200_000
Change = Callable[[Any], Any]


class Liar(Hub):
    """A Hub whose answers pass through `lie`."""

    lie: Callable[[Request, Answer], Answer] = staticmethod(lambda _request, answer: answer)

    def answer(self, request: Request) -> Answer:
        return self.lie(request, super().answer(request))


@pytest.fixture
def liar():
    with Liar() as hub:
        hub.add("me/style", {META.name: META})
        yield hub


def listing(change: Change) -> Callable[[Request, Answer], Answer]:
    """Answers about the repository, changed."""

    def lie(request: Request, said: Answer) -> Answer:
        if not re.match(r"/api/models/me/style(\?|/revision/|$)", request.target) or said.status != 200:
            return said
        made = change(json.loads(said.content))
        return Answer(200, made, {"Content-Type": "text/html"}) if isinstance(made, bytes) else reply(made)

    return lie


def content(change: Callable[[Answer], Answer]) -> Callable[[Request, Answer], Answer]:
    """Answers that hold the file, changed."""
    return lambda request, said: change(said) if "/_lfs/" in request.target and request.method == "GET" else said


def sized(size: object) -> Change:
    return lambda said: {**said, "siblings": [{"rfilename": META.name, "size": size}]}


def beside(*names: object, size: object = 10) -> Change:
    more = [{"rfilename": name, "size": size, "blobId": "0" * 40} for name in names]
    return lambda said: {**said, "siblings": [*said["siblings"], *more]}


def refused(hub: Hub, place: Path, *words: object) -> str:
    done = hub.run(*words, cwd=place)
    text = done.stderr if done.stderr.startswith("Error: ") else done.stdout
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-1000:]
    assert "/tmp/" not in done.stdout + done.stderr and hub.token not in done.stdout + done.stderr
    assert not list(place.iterdir())
    for line in re.findall(r"  try: (.*)", done.stderr):
        assert shlex.split(line.partition("   # ")[0])[0] in ("loraforge", "hf", "git"), line
    return text


NO_LISTS: dict[str, Change] = {
    "a size beyond all disks": sized(10**18), "beyond all numbers": sized(10**30), "negative": sized(-5),
    "a text": sized("abc"), "a fraction": sized(1.5), "a list": sized([1]), "no size": sized(None),
    "too small": sized(100), "too large": sized(10**9), "a file that is a folder": beside("a", "a/b"),
    "a folder that is a file": beside("a/b", "a"), "ours as a folder": beside(f"{META.name}/x"),
    "no names": lambda said: {**said, "siblings": [{"size": 1}]},
    "a text for a list": lambda said: {**said, "siblings": "abc"},
    "no list": lambda said: {**said, "siblings": None}, "a web page": lambda _: b"<html>log in</html>",
    "nothing": lambda _: b"",
    "a list for a table": lambda _: [1], "null": lambda _: None, "an empty table": lambda _: {},
    "a hundred thousand brackets": lambda _: b"[" * 100_000,
    "a commit elsewhere": lambda said: {**said, "sha": "../../x"},
}  # fmt: skip


@pytest.mark.parametrize("name", NO_LISTS)
def test_lists_that_cannot_be(liar: Liar, tmp_path: Path, name: str) -> None:
    liar.lie = listing(NO_LISTS[name])
    assert "me/style" in refused(liar, tmp_path, "inspect", "me/style")
    assert liar.sent < ENOUGH


NO_NAMES = [
    "x" * 300, "/".join(["dd"] * 2000), "x\ud800.json", "x\0y", 5, None, ".", "..", "./x", "a/./b", "", "a//b",
    "/etc/x", "C:/x", "~/.ssh/x", "-rf", "x\x1b[2J\n", "a\\..\\b", "ü" * 200,
]  # fmt: skip


def test_names_that_cannot_be_are_passed_over(liar: Liar, tmp_path: Path) -> None:
    liar.lie = listing(beside(*NO_NAMES))
    done = liar.run("convert", "me/style", "--to", "peft", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-1000:]
    found = sorted(p.name for p in tmp_path.rglob("*") if p.is_file())
    assert found == ["adapter_config.json", "adapter_model.safetensors"]


def test_very_many_files(liar: Liar, tmp_path: Path) -> None:
    liar.lie = listing(beside(*(f"d{n % 300}/f{n}.json" for n in range(30_000))))
    assert liar.run("inspect", "me/style", cwd=tmp_path).returncode == 0


def framed(length: int, start: bytes) -> Callable[[Answer], Answer]:
    return lambda said: Answer(206, (struct.pack("<Q", length) + start).ljust(len(said.span), b" "), {})


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123456789\n"
NO_CONTENT: dict[str, tuple[Callable[[Answer], Answer], str]] = {
    "a piece of the piece": (lambda said: Answer(206, said.content, said.headers, said.span[:100]), "sent 100 of"),
    "none of it": (lambda said: Answer(206, b"", {}), "sent 0 of"),
    "another piece": (
        lambda said: Answer(206, said.content, {}, range(5000, 5000 + len(said.span))),
        "neither a safetensors",
    ),
    "a pointer": (lambda said: Answer(200, POINTER, {}), "sent 1"),
    "a web page": (lambda said: Answer(200, b"<html>log in</html>".ljust(1 << 16), {}), "is a web page"),
    "no such range": (lambda said: Answer(416), "HTTP 416"),
    "a circle": (lambda said: Answer(302, b"", {"Location": "/_lfs/x"}), "redirects"),
    "a header of 2**63": (framed(2**63, b"{}"), "neither a safetensors"),
    "a header of 0": (framed(0, b"{}"), "neither a safetensors"),
    "a header longer than is read": (framed(1 << 30, b"{}"), "neither a safetensors"),
    "a header of brackets": (framed(60_000, b'{"a":' + b"[" * 59_000), "as a safetensors file"),
    "a negative shape": (framed(50, b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}'), "safetensors file"),
}


@pytest.fixture
def long(liar: Liar, tmp_path_factory: pytest.TempPathFactory) -> Liar:
    """In the repository a file that is longer than what is fetched of it."""
    file = tmp_path_factory.mktemp("long") / META.name
    rank = np.zeros((64, 3072), np.float32)
    names = [f"transformer.transformer_blocks.{n}.attn1.to_q" for n in range(2)]
    pair = {"lora_A.weight": rank, "lora_B.weight": rank.T.copy()}
    save_file({f"{name}.{key}": value for name in names for key, value in pair.items()}, file)
    liar.add("me/style", {file.name: file})
    return liar


@pytest.mark.parametrize("name", NO_CONTENT)
def test_content_that_is_none(long: Liar, tmp_path: Path, name: str) -> None:
    change, words = NO_CONTENT[name]
    long.lie = content(change)
    for verb in ("inspect", "doctor"):
        assert words in refused(long, tmp_path, verb, "me/style")
    assert not [one for one in long.asked("GET", "_lfs") if "Authorization" in one.headers]


def test_a_server_without_ranges(long: Liar, tmp_path: Path) -> None:
    whole = (META.parent / META.name).read_bytes()
    held = next(file for file in long.repos["me/style"].at("main").files.values() if file.lfs)
    assert held.size > ENOUGH > len(whole)
    long.lie = content(lambda said: Answer(200, said.content, {}, range(held.size)))
    done = long.run("inspect", "me/style", "--json", cwd=tmp_path)
    assert done.returncode == 0 and json.loads(done.stdout)["ranks"] == {"64": 2}, done.stderr


@pytest.mark.parametrize("words", [("inspect",), ("doctor",), ("convert", "--to", "diffusers", "--dry-run")])
def test_alphas_that_were_not_fetched_count_for_nothing(hub: Hub, tmp_path: Path, words: tuple[str, ...]) -> None:
    tensors: dict[str, np.ndarray] = {}
    for n in range(2):
        name = f"lora_unet__transformer_blocks_{n}_attn1_to_q"
        tensors[f"{name}.lora_down.weight"] = np.ones((64, 3072), np.float32)
        tensors[f"{name}.lora_up.weight"] = np.ones((3072, 64), np.float32)
        tensors[f"{name}.alpha"] = np.array(32, np.float32)
    file = tmp_path / "in" / "kohya.safetensors"
    file.parent.mkdir()
    save_file(tensors, file)
    hub.add("me/kohya", {file.name: file})
    done = hub.run(words[0], "me/kohya", *words[1:], cwd=tmp_path)
    assert hub.sent < ENOUGH and "Traceback" not in done.stderr
    said = (done.stdout + done.stderr).lower()
    assert "--fetch" in said and "acts as trained" not in said and not re.search(r"\bnan\b", said), said
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_texts_that_are_no_repository_are_paths(hub: Hub, tmp_path: Path) -> None:
    for text in ("runs/a--b", "runs/x..y", "runs/x.", "runs/-x", "runs/" + "x" * 120, "a/" + "b" * 400):
        said = refused_path(hub, tmp_path, text)
        assert "does not exist" in said or "cannot be looked at" in said, said
    assert not hub.log


def refused_path(hub: Hub, place: Path, text: str) -> str:
    done = hub.run("inspect", text, cwd=place)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-500:]
    return done.stderr


def test_a_cache_that_cannot_be_written(hub: Hub, tmp_path: Path) -> None:
    hub.add("me/style", {META.name: META})
    hub.home.rmdir()
    hub.home.write_text("in the way")
    done = hub.run("convert", "me/style", "--to", "peft", "-o", "out", cwd=tmp_path)
    hub.home.unlink()
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr[-500:]
    assert "cache" in done.stderr and not list(tmp_path.iterdir())


BOMB = b"a: &a [x,x,x,x,x,x,x,x,x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (new, new, b",".join([b"*%c" % old] * 9))
    for old, new in zip(b"abcdefg", b"bcdefgh", strict=True)
)
CARDS = {
    "no UTF-8": (b"---\nlicense: mit\n---\n# caf\xe9\n", "is no UTF-8"),
    "too long": (b"# x\n" + b"y" * (10 << 20), "is too long"),
    "a bomb": (b"---\n" + BOMB + b"---\n", "too large"),
}  # fmt: skip


@pytest.mark.parametrize("name", CARDS)
def test_a_card_that_cannot_be_kept_is_not_touched(hub: Hub, name: str) -> None:
    card, words = CARDS[name]
    hub.add("me/style", {"README.md": card})
    done = hub.run("push", META, "me/style", "--base-model", "zai-org/CogVideoX-2b")
    assert done.returncode == 1 and words in done.stderr, done.stderr[-500:]
    assert hub.files("me/style") == hub.files("me/style") | {"README.md": card} and not hub.asked("POST")


NO_TEXTS: dict[str, tuple[str, Change]] = {
    "a name that is a list": (r"/api/models/me/style\?", beside(["a"])),
    "a name that is a number": (r"/api/models/me/style\?", beside(5)),
    "a hash that is a list": (r"/api/models/me/style\?", lambda said: {**said, "siblings": [{"rfilename": "a",
        "blobId": [1]}]}),
    "a commit that is a number": (r"/api/models/me/style\?", lambda said: {**said, "sha": 7}),
    "a new commit that is none": (r"/commit/main", lambda said: {**said, "commitOid": None}),
    "a new commit that is a number": (r"/commit/main", lambda said: {**said, "commitOid": 7}),
    "a file of the base model that is a list": ("CogVideoX-2b", lambda said: {**said,
        "siblings": [{"rfilename": ["a"]}]}),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_TEXTS)
def test_a_push_to_a_server_with_something_else_than_texts(liar: Liar, name: str) -> None:
    """Found by tests/fuzz/hub.py."""
    where, change = NO_TEXTS[name]
    liar.add("zai-org/CogVideoX-2b", {"README.md": b"---\nlicense: other\n---\n"})

    def lie(request: Request, said: Answer) -> Answer:
        changes = re.search(where, request.target) and said.status == 200
        return reply(change(json.loads(said.content))) if changes else said

    liar.lie = lie
    done = liar.run("push", META, "me/style", "--base-model", "zai-org/CogVideoX-2b", "--architecture", "cogvideox")
    assert done.returncode in (0, 1) and ("me/style" in done.stderr + done.stdout), done.stderr


@pytest.mark.parametrize("odd", [None, 5, ["a"]])
def test_branches_that_are_no_texts(liar: Liar, tmp_path: Path, odd: object) -> None:
    def lie(request: Request, said: Answer) -> Answer:
        if not request.target.endswith("/refs"):
            return said
        branches = [{"name": name, "ref": "x", "targetCommit": "0" * 40} for name in ("main", odd)]
        return reply({**json.loads(said.content), "branches": branches})

    liar.lie = lie
    refused(liar, tmp_path, "inspect", "hf://me/style@other")
    refused(liar, tmp_path, "inspect", "hf://me/style@a/b")
