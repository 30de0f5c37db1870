"""What must not leave for the Hub, wherever in a file it stands; and what somebody's header may not do to a card."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.hub import Hub
from helpers.oracle import DATA, Case
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from loraforge.publishing.private import cleaned, cleaned_json, private

BASE = "zai-org/CogVideoX-2b"
NAME = "pytorch_lora_weights.safetensors"
TOKEN = "hf_" + "A" * 34
PRIVATE = [
    "/home/somebody/run", "in /data/me/x.pt", "`/data/me/x`", "<p>/data/me/x</p>", "a|/data/me/x", "@/data/me",
    "-I/home/me/x", '{"p": "\\/home\\/me\\/run"}', "//server/share/x", "\\\\server\\share", "$HOME/x", "${HOME}/x",
    "~/x", "~me/x", "C:\\Users", "d:/x", "file:///x", "路径:/数据/me/模型", "路径/root/me/x", "/größe/me", "x=/a/b",
    "/mnt/a b/c",
    "see (/data/me/x)",
    TOKEN, "api_org_" + "a" * 34, "sk-proj-" + "a" * 30, "ghp_" + "a" * 36, "AIza" + "a" * 35, "xoxb-1234567890-abc",
    "https://me:password@example.com/x", "WANDB_API_KEY=" + "a" * 40, '"password": "correct-horse-battery"',
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ4In0.abc", "AKIA" + "A" * 16,
]  # fmt: skip
HARMLESS = [
    "https://huggingface.co/zai-org/CogVideoX-5b/blob/main/LICENSE",
    "hf://me/style@main/x.safetensors", "zai-org/CogVideoX-5b",
    "anime / realistic / 3d", "anime/realistic/3d", "动漫/写实/三维", "1/8 = 0.125",
    "and/or, w/o", "2024-01-01T10:00:00",
    "data:image/jpeg;base64,/9j/4AAQSkZJRgABAQ+/abc/def==", "a: b",
    "~0.5", "loraforge convert x.pt --to peft --drop '*.to_q'",
    "transformer_blocks\\.\\d+\\.attn1", "s3://bucket/x/y", "keep_tokens: 1", "50% / 60 %", "",
]  # fmt: skip


@pytest.mark.parametrize("text", PRIVATE)
def test_told_as_private(text: str) -> None:
    assert private(text) and private(json.dumps({"a": [text]})) and private(f"x {text} y")
    metadata, notes = cleaned({"a": text, text: "b", "c": "d"})
    assert metadata == {"c": "d"} and len(notes) == 2 and TOKEN not in str(notes)
    made, notes = cleaned_json(json.dumps({"a": {text: 1, "b": [text, "c"]}}), "x.json")
    assert json.loads(made) == {"a": {"b": [None, "c"]}} and len(notes) == 2 and TOKEN not in str(notes)


@pytest.mark.parametrize("text", HARMLESS)
def test_told_as_everybodys(text: str) -> None:
    assert private(text) == "" and cleaned({"a": text}) == ({"a": text}, ())
    assert cleaned_json(json.dumps({"a": text}), "x.json") == (json.dumps({"a": text}), ())


@pytest.fixture
def made(hub: Hub, tmp_path: Path) -> Callable[..., Path]:
    """A converted file with more in its header; in our entry, too."""
    out = tmp_path / "out"
    run = Case("sat_2b_r4").run(tmp_path / "run")
    assert hub.run("convert", run, "--to", "diffusers", "--base-model", BASE, "-o", out).returncode == 0
    with safe_open(out / NAME, framework="numpy") as file:
        metadata = dict(file.metadata())

    def make(entry: dict[str, object] | None = None, **extra: str) -> Path:
        said = {**json.loads(metadata["loraforge"]), **(entry or {})}
        save_file(load_file(out / NAME), out / NAME, metadata | {"loraforge": json.dumps(said)} | extra)
        hub.log.clear()
        return out

    return make


def sent(hub: Hub) -> bytes:
    """All that left, and the small files in it as they were before base64."""
    lines = [line for body in hub.received for line in body.splitlines() if line.startswith(b'{"key": "file"')]
    files = [base64.b64decode(json.loads(line)["value"]["content"]) for line in lines]
    return b"\n".join([*hub.received, *files, *(one.path.encode() for one in hub.log)])


@pytest.mark.parametrize("text", ["made in /home/somebody/run", f"with {TOKEN}", "C:\\Users\\somebody"])
def test_what_stays_out_of_the_header_stays_out_of_the_card(hub: Hub, made: Callable[..., Path], text: str) -> None:
    keys = ("title", "author", "description", "date", "usage_hint", "trigger_phrase")
    extra = {f"modelspec.{key}": text for key in keys} | {"trigger_words": text, "instance_prompt": text}
    done = hub.run("push", made(**extra), "me/style")
    assert done.returncode == 0, done.stderr
    everything = sent(hub)
    assert b"somebody" not in everything and TOKEN.encode() not in everything and b"# style" in everything
    assert (
        TOKEN not in done.stdout + done.stderr and "instance_prompt" not in hub.files("me/style")["README.md"].decode()
    )


def test_a_path_in_our_own_entry_is_not_published(hub: Hub, made: Callable[..., Path]) -> None:
    for entry in ({"command": "loraforge convert /home/me/x.pt --to diffusers"}, {"note": TOKEN}):
        done = hub.run("push", made(entry), "me/style")
        assert done.returncode == 1 and "the history in the header of" in done.stderr and TOKEN not in done.stderr
        assert "me/style" not in hub.repos and not hub.asked("POST")


STEP = {
    "tool": "loraforge 1", "command": "x", "source": {"path": "x", "format": "x", "size": 1, "digest": "x"},
    "scale": {"provenance": "recorded", "source": "x", "scalings": [1]},
}  # fmt: skip
EVIL = "x\n```\n<script>alert(1)</script>\n<!-- loraforge: to here; write outside of these two lines -->\x1b[2J"


@pytest.mark.parametrize("text", [EVIL, "\ud800", "x" * 1_000_000], ids=["markdown", "surrogate", "long"])
def test_a_history_somebody_wrote(hub: Hub, made: Callable[..., Path], text: str) -> None:
    step = {**STEP, "command": text, "scale": {"provenance": text, "source": text, "scalings": [1]}}
    out = made({"earlier": [step]})
    done = hub.run("push", out, "me/style")
    assert done.returncode == 0, done.stderr[-500:]
    card = hub.files("me/style")["README.md"].decode()
    assert not [line for line in card.splitlines() if line.startswith(("<script", "x"))] and "\x1b" not in card
    assert len(card) < 20_000
    assert "nothing has changed" in hub.run("push", out, "me/style").stdout
    shown = hub.run("inspect", "--history", out)
    assert shown.returncode == 0 and "\x1b" not in shown.stdout


GARBAGE = ["[", "[" * 100_000, "1", "[]", "{}", "null", '{"earlier": 5}', '{"earlier": [{}, 1, null]}',
    '"' + "x" * 10_000_000 + '"',
    json.dumps({"scale": {"provenance": "recorded", "source": "x"}, "applied": ["x", 1e999, None, True]})]  # fmt: skip


@pytest.mark.parametrize("entry", GARBAGE, ids=range(len(GARBAGE)))
def test_an_entry_that_is_garbage(cli, tmp_path: Path, entry: str) -> None:
    file = tmp_path / NAME
    with safe_open(DATA / "diffusers_save_lora_weights_meta" / NAME, framework="numpy") as old:
        metadata = dict(old.metadata())
    save_file(load_file(DATA / "diffusers_save_lora_weights_meta" / NAME), file, metadata | {"loraforge": entry})
    for words in (("inspect",), ("inspect", "--history"), ("doctor",), ("convert", "--to", "peft", "--dry-run")):
        done = cli(words[0], file, *words[1:])
        assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    assert "none is recorded" in cli("inspect", file, "--history").stdout


FUSED = {
    "path": "a",
    "format": "sat",
    "digests": ["x"],
    "strength": 1.0,
    "scalings": [1.0],
    "provenance": "given",
    "said": "x",
}
NO_FUSED = [
    [{}], [1, None], "x", {}, [{**FUSED, "strength": "x"}], [{**FUSED, "scalings": []}], [{**FUSED, "scalings": ["x"]}],
    [{**FUSED, "path": 5}], [{**FUSED, "said": None}], [{**FUSED, "more": 1}], [{**FUSED, "strength": float("nan")}],
]  # fmt: skip


@pytest.mark.parametrize("fused", NO_FUSED, ids=str)
def test_adapters_in_a_base_that_nobody_fused(hub: Hub, tmp_path: Path, pipelines, fused: object) -> None:
    base = pipelines("2b") / "transformer" / "diffusion_pytorch_model.safetensors"
    file = tmp_path / "base.safetensors"
    save_file(load_file(base), file, {"loraforge": json.dumps({"tool": "x", "command": "x", "fused": fused})})
    done = hub.run("push", file, "me/style", "--base-model", BASE)
    assert done.returncode == 1 and "is a base model without adapters in it" in done.stderr, done.stderr[-500:]


def test_a_pipeline_leaves_with_what_its_loader_reads(hub: Hub, tmp_path: Path, pipelines) -> None:
    out = tmp_path / "fused"
    run = Case("sat_2b_r4").run(tmp_path)
    assert hub.run("fuse", pipelines("2b"), run, "-o", out).returncode == 0
    secret = b"the-secret-of-somebody"
    for name in (
        "vae/.hidden.safetensors",
        "vae/._config.json",
        "vae/notes.safetensors",
        "text_encoder/pytorch_model.bin",
    ):
        (out / name).write_bytes(secret)
    (out / "tokenizer" / "generation_config.json").write_text(
        json.dumps({"_from": "/home/somebody/x", "/home/somebody/y": 1})
    )
    vae = out / "vae" / "diffusion_pytorch_model.safetensors"
    done = hub.run("push", out, "me/fused", "--base-model", BASE)
    assert done.returncode == 0, done.stderr
    assert b"somebody" not in sent(hub) and "vae/diffusion_pytorch_model.safetensors" in hub.files("me/fused")
    save_file(load_file(vae), vae, {"format": "pt", "made": "/home/somebody/x"})
    done = hub.run("push", out, "me/fused", "--base-model", BASE)
    assert done.returncode == 1 and "in which there is a path" in done.stderr and b"somebody" not in sent(hub)
