"""What is not published, and what is said instead; and base weights with adapters in them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from helpers.hub import Hub
from helpers.oracle import DATA, Case
from helpers.pushed import BASE, NAME, card, last, ours, refused
from safetensors.numpy import save_file

from loraforge.publishing.front_matter import problems
from loraforge.text import hf

COG = ("--architecture", "cogvideox")
"""For files of a test's width in names that other models have too, of which a stated base is no evidence."""


@pytest.mark.parametrize("options", [("--as-loaded",), ("--trained-scale", "1")])
def test_a_stated_base_of_another_width_publishes_nothing(hub: Hub, options: tuple[str, ...]) -> None:
    silent = DATA / "diffusers_save_lora_weights_nometa"
    said = refused(hub, "push", silent, "me/style", "--base-model", BASE, *options)
    assert "nothing shows that it is one" in said and "--architecture cogvideox" in said


def test_a_scale_nobody_knows_is_not_published(hub: Hub, tmp_path: Path) -> None:
    silent = DATA / "diffusers_save_lora_weights_nometa"
    said = refused(hub, "push", silent, "me/style", "--base-model", BASE, *COG)
    assert "by itself, is not what was trained: cannot tell" in said
    lines = [line.split("try: ")[1].partition("   #")[0] for line in said.splitlines() if "try: " in line]
    again = next(line for line in lines if line.startswith("loraforge push "))
    assert again.endswith("--as-loaded") and "--architecture cogvideox" in again
    stated = hub.run("push", silent, "me/loaded", "--base-model", BASE, "--as-loaded", *COG)
    assert stated.returncode == 0, stated.stderr
    text = hub.files("me/loaded")["README.md"].decode()
    assert "No file records the scale of its training" in text and "that is the scale of its training" not in text
    half = next(line for line in lines if "--trained-scale 0.5" in line)
    assert "--push" not in half  # whether it is to be private, and more, stands in what was typed
    hub.log.clear()
    options = ["--base-model", BASE, "-o", tmp_path / "half", "--push", "me/style", "--private", *COG]
    done = hub.run(*half.split()[1:], *options)
    assert done.returncode == 0, done.stderr
    assert hub.files("me/style")[NAME] == (tmp_path / "half" / NAME).read_bytes()
    assert last(done).startswith("me/style is in its new state") and hub.repos["me/style"].private


def test_a_stated_scale_that_the_file_does_not_have(hub: Hub) -> None:
    silent = DATA / "diffusers_save_lora_weights_nometa"
    said = refused(hub, "push", silent, "me/style", "--base-model", BASE, "--trained-scale", "0.5", *COG)
    assert "2x too strong" in said and "--to diffusers --trained-scale 0.5   # then push what it writes" in said


def test_an_assumed_scale_is_not_published_unless_it_is_stated(hub: Hub, tmp_path: Path) -> None:
    run = Case("sat_2b_r4").run(tmp_path)
    bare = tmp_path / "bare.pt"
    bare.write_bytes(next(run.rglob("*.pt")).read_bytes())
    out = tmp_path / "out"
    words = ["convert", bare, "--to", "diffusers", "-o", out, "--base-model", "zai-org/CogVideoX-2b"]
    done = hub.run(*words, "--push", "me/style")
    assert done.returncode == 1 and "the file is written, " in done.stderr and "the scale is assumed" in done.stderr
    assert "me/style" not in hub.repos
    assert hub.run("push", out, "me/style", "--as-loaded").returncode == 0
    done = hub.run(*words, "--force", "--alpha", "1", "--push", "me/other")
    assert done.returncode == 0, done.stderr


REFUSED = {
    ("nowhere.safetensors", "me/style"): "does not exist",
    ("STYLE", "style"): "is no name of a repository",
    ("STYLE", "../style"): "is no name of a repository",
    ("STYLE", "me/style", "--base-model", "./CogVideoX-5b"): "is no Hub id",
    ("STYLE", "me/style", "--sample", "VIDEO"): "each --sample needs the --prompt",
    ("STYLE", "me/style", "--sample", "x.mp4", "--prompt", "p"): "cannot be read",
    ("STYLE", "me/style", "--sample", "STYLE", "--prompt", "p"): "is no video or picture",
    ("hf://me/there", "me/style"): "is on the Hub: what is published comes from this machine",
    ("me/there", "me/style"): "me/there does not exist",
    ("RUN", "me/style"): "is a torch checkpoint, a pickle",
    ("BASE", "me/style"): "is a base model without adapters in it",
}


@pytest.mark.parametrize("words", REFUSED)
def test_refusals(hub: Hub, style: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    video = tmp_path / "x.mp4"
    video.write_bytes(b"\0\0\0\x18ftypisom")
    named = {"VIDEO": video, "STYLE": style, "RUN": next((tmp_path / "run").iterdir()), "BASE": DATA / "bases" / "5b"}
    assert REFUSED[words] in refused(hub, "push", *(named.get(word, word) for word in words))


def test_private_is_for_a_new_repository(hub: Hub, style: Path) -> None:
    hub.add("me/style", {"notes.txt": b"public"})
    said = refused(hub, "push", style, "me/style", "--private")
    assert "me/style exists and is public" in said
    assert hf("repos", "settings", "me/style", "--private", page="me/style/settings") in said
    assert said.splitlines()[-1] == "Nothing was sent; me/style is as it was."


def test_a_branch_of_a_new_repository(hub: Hub, style: Path) -> None:
    assert "a new repository begins with main" in refused(hub, "push", style, "me/new", "--revision", "dev")
    assert "me/new" not in hub.repos
    hub.add("me/old", {"a": b"b"})
    said = refused(hub, "push", style, "me/old", "--revision", "dev")
    assert hf("repos", "branch", "create", "me/old", "dev", page="me/old/branches") in said


def test_a_base_that_the_shapes_speak_against(hub: Hub, tmp_path: Path) -> None:
    wide = {
        f"transformer.transformer_blocks.{n}.attn1.to_q.lora_{x}.weight": s
        for x, s in (("A", (4, 1920)), ("B", (1920, 4)))
        for n in range(30)
    }
    config = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 4, "transformer.target_modules": ["to_q"]})
    file = tmp_path / NAME
    save_file({key: np.ones(shape, np.float32) for key, shape in wide.items()}, file, {"lora_adapter_metadata": config})
    said = refused(hub, "push", file, "me/style", "--base-model", BASE)
    assert f"the adapter is not for {BASE}: its shapes are those of zai-org/CogVideoX-2b" in said
    done = hub.run("push", file, "me/style", "--dry-run", "--architecture", "cogvideox")
    assert "told by the shapes" in done.stderr and "| base_model: zai-org/CogVideoX-2b" in done.stdout


def test_a_bad_name_is_told_before_anything_is_converted(hub: Hub, tmp_path: Path) -> None:
    run = Case("sat_5b_r8").run(tmp_path / "run")
    done = hub.run("convert", run, "--to", "diffusers", "-o", tmp_path / "out", "--push", "style")
    assert done.returncode == 1 and "is no name of a repository" in done.stderr and not (tmp_path / "out").exists()


@pytest.mark.pipelines
def test_a_fused_model_with_an_assumed_scale(hub: Hub, tmp_path: Path, pipelines) -> None:
    bare = tmp_path / "bare.pt"
    bare.write_bytes(next(Case("sat_2b_r4").run(tmp_path).rglob("*.pt")).read_bytes())
    out = tmp_path / "fused"
    assert hub.run("fuse", pipelines("2b"), bare, "-o", out).returncode == 0
    words = ["push", out, "me/fused", "--base-model", "zai-org/CogVideoX-2b"]
    assert "at a scale that was only assumed" in refused(hub, *words)
    assert hub.run(*words, "--as-loaded").returncode == 0


@pytest.mark.pipelines
def test_a_fused_model(hub: Hub, tmp_path: Path, pipelines) -> None:
    run = Case("sat_2b_r4").run(tmp_path)
    out = tmp_path / "fused"
    assert hub.run("fuse", pipelines("2b"), run, "-o", out).returncode == 0
    config = json.loads((out / "transformer" / "config.json").read_text())
    (out / "transformer" / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/somebody/x"}))
    (out / "optimizer.pt").write_bytes(b"no")
    (out / "transformer" / "optimizer.safetensors").write_bytes(b"no")
    (out / "transformer" / "token.txt").write_bytes(b"no")
    done = hub.run("push", out, "me/fused", "--base-model", "zai-org/CogVideoX-2b")
    assert done.returncode == 0, done.stderr
    assert card(hub, "me/fused")["base_model_relation"] == "merge"
    sent = ours(hub, "me/fused")
    assert not [name for name in sent if "optimizer" in name or "token.txt" in name]
    for name in ("model_index.json", "transformer/diffusion_pytorch_model.safetensors", "vae/config.json"):
        assert name in sent
    assert "_name_or_path" not in json.loads(hub.files("me/fused")["transformer/config.json"])
    assert "nothing has changed" in hub.run("push", out, "me/fused", "--base-model", "zai-org/CogVideoX-2b").stdout


BAD_CARDS = {
    "base_model: /home/me/CogVideoX-5b\nbase_model_relation: child": ["no id of a repository", "base_model_relation"],
    "license: My own licence\nlicense_name: mine\ntags: lora": ["license is", "license_name", "tags is"],
    "license: other\npipeline_tag: text2video\nwidget: video.mp4": ["license is other", "pipeline_tag", "widget is"],
}


@pytest.mark.parametrize("front", BAD_CARDS)
def test_bad_cards_are_told_before_anything_is_sent(hub: Hub, style: Path, front: str) -> None:
    said = list(problems(yaml.safe_load(front)))
    assert len(said) == len(BAD_CARDS[front])
    for sentence, words in zip(said, BAD_CARDS[front], strict=True):
        assert words in sentence
    if "widget" in front or "tags: lora" in front:
        hub.add("me/style", {"README.md": f"---\n{front}\n---\n".encode()})
        before = len(hub.commits("me/style"))
        done = hub.run("push", style, "me/style")
        assert done.returncode == 1 and "would not be a right one" in done.stderr, done.stdout
        assert len(hub.commits("me/style")) == before and not hub.asked("POST")


def test_a_card_that_is_no_yaml_is_left_to_its_owner(hub: Hub, style: Path) -> None:
    hub.add("me/style", {"README.md": b"---\ntags: [a\n---\nhello"})
    done = hub.run("push", style, "me/style")
    assert done.returncode == 1 and "cannot be read as YAML" in done.stderr
    assert hub.files("me/style")["README.md"] == b"---\ntags: [a\n---\nhello"


def test_a_base_model_that_nobody_released_is_asked_for(hub: Hub, tmp_path: Path) -> None:
    """A trainer writes what it was started with: that may be the name of a folder, or of a private repository."""
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / name).write_bytes((DATA / "peft_plain" / name).read_bytes())
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for base in ("acme/CogVideoX-5b-internal", "runs/base"):
        (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": base}))
        refused(hub, "push", tmp_path, "me/style")
        assert not [one for one in hub.log if base.encode() in one.path.encode() + one.body]
    stated = hub.run("push", tmp_path, "me/style", "--base-model", "acme/CogVideoX-5b-internal")
    assert stated.returncode == 0 and card(hub)["base_model"] == "acme/CogVideoX-5b-internal", stated.stderr
