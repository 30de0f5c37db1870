"""What is published, in which commit, and what never leaves."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import jsonschema
import pytest
import yaml
from hub import Hub
from oracle import DATA, Case
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from loraforge.cardcheck import problems
from loraforge.frontmatter import fields, split

BASE = "zai-org/CogVideoX-5b"
NAME = "pytorch_lora_weights.safetensors"
SCHEMA = json.loads((Path(__file__).parents[2] / "schemas" / "push.schema.json").read_text())


@pytest.fixture
def style(hub: Hub, tmp_path: Path) -> Path:
    """A file as `convert` leaves it, and the base model's card on the Hub."""
    hub.add(BASE, {"README.md": b"---\nlicense: other\nlicense_link: LICENSE\n---\n# 5B\n"})
    out = tmp_path / "made" / "style"
    run = Case("sat_5b_r8").run(tmp_path / "run")
    done = hub.run("convert", run, "--to", "diffusers", "--base-model", "THUDM/CogVideoX-5b", "-o", out)
    assert done.returncode == 0, done.stderr
    hub.log.clear()
    return out


def card(hub: Hub, repo: str = "me/style") -> dict[str, object]:
    return fields(split(hub.files(repo)["README.md"].decode())[0], repo)


def last(done: object) -> str:
    return done.stdout.splitlines()[-1]  # type: ignore[attr-defined]


def ours(hub: Hub, repo: str = "me/style") -> list[str]:
    return sorted(hub.files(repo).keys() - {".gitattributes"})


def test_create_push_again_and_change_one_field(hub: Hub, style: Path) -> None:
    first = hub.run("push", style, "me/style", "--private")
    assert first.returncode == 0, first.stderr
    assert hub.repos["me/style"].private and ours(hub) == ["README.md", NAME]
    assert hub.files("me/style")[NAME] == (style / NAME).read_bytes()
    commits = hub.commits("me/style")
    assert [c.message for c in commits[1:]] == [f"Add {NAME}"]
    assert last(first) == f"me/style is in its new state, at {commits[-1].sha[:8]}"

    again = hub.run("push", style, "me/style")
    assert again.returncode == 0 and len(hub.commits("me/style")) == 2
    assert last(again) == f"nothing has changed: no commit; me/style is as it was, at {commits[-1].sha[:8]}"

    hub.log.clear()
    changed = hub.run("push", style, "me/style", "--trigger", "DISNEY")
    assert changed.returncode == 0 and len(hub.commits("me/style")) == 3
    assert card(hub)["instance_prompt"] == "DISNEY" and not hub.asked("PUT")
    assert "changed  README.md" in changed.stdout and f"same     {NAME}" in changed.stdout


def test_the_fields_of_the_card(hub: Hub, style: Path, tmp_path: Path) -> None:
    video = tmp_path / "secret name of mine.mp4"
    video.write_bytes(b"\0\0\0\x18ftypisom" + bytes(100))
    done = hub.run("push", style, "me/style", "--sample", video, "--prompt", 'a "panda": plays | it\'s ☕')
    assert done.returncode == 0, done.stderr
    found = card(hub)
    assert found == {
        "license": "other",
        "license_link": f"{hub.endpoint}/{BASE}/blob/main/LICENSE",
        "base_model": BASE,
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-video",
        "tags": ["lora", "diffusers", "text-to-video", "cogvideox", "template:sd-lora"],
        "widget": [{"text": 'a "panda": plays | it\'s ☕', "output": {"url": "samples/1.mp4"}}],
    }
    assert hub.files("me/style")["samples/1.mp4"] == video.read_bytes()
    body = hub.files("me/style")["README.md"].decode()
    assert "<Gallery />" in body and "1/8 = 0.125 (recorded: r 8, lora_alpha not set" in body
    assert "loraforge convert mp_rank_00_model_states.pt --to diffusers" in body
    assert not [b for b in hub.received if b"secret name" in b]


@pytest.mark.parametrize(
    ("card_of_base", "options", "wanted", "note"),
    [
        (b"---\nlicense: apache-2.0\n---\n", (), {"license": "apache-2.0"}, "the licence is the base model's"),
        (b"---\nlicense: other\n---\n", (), {"license": "other", "license_link": f"/{BASE}"}, "the base model's"),
        (b"# no head\n", (), {}, f"the card has no licence (the card of {BASE} names none); --license"),
        (None, (), {}, "the card has no licence (there is no model"),
        (b"---\nlicense: other\n---\n", ("--license", "mit"), {"license": "mit"}, ""),
        (
            b"---\nlicense: mit\n---\n",
            ("--license", "other", "--license-name", "mine", "--license-link", "https://example.com/l"),
            {"license": "other", "license_name": "mine", "license_link": "https://example.com/l"},
            "",
        ),
    ],
)
def test_the_licence_is_the_bases_or_stated_and_never_made_up(
    hub: Hub, style: Path, card_of_base: bytes | None, options: tuple[str, ...], wanted: dict[str, str], note: str
) -> None:
    hub.add(BASE, {"README.md": card_of_base})
    if card_of_base is None:
        del hub.repos[BASE]
    done = hub.run("push", style, "me/style", *options)
    assert done.returncode == 0, done.stderr
    found = {key: value for key, value in card(hub).items() if key.startswith("license")}
    assert found == {k: (hub.endpoint + v if v.startswith("/") else v) for k, v in wanted.items()}
    assert note in done.stderr


def test_peft_leaves_with_its_configuration_and_nobodys_path(hub: Hub, tmp_path: Path) -> None:
    place = tmp_path / "peft"
    place.mkdir()
    (place / "adapter_model.safetensors").write_bytes((DATA / "peft_plain" / "adapter_model.safetensors").read_bytes())
    config = json.loads((DATA / "peft_plain" / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "/home/somebody/models/CogVideoX-5b"
    (place / "adapter_config.json").write_text(json.dumps(config))
    done = hub.run("push", place, "me/style", "--base-model", BASE)
    assert done.returncode == 0, done.stderr
    assert ours(hub) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    sent = json.loads(hub.files("me/style")["adapter_config.json"])
    assert sent == {**config, "base_model_name_or_path": BASE}
    assert card(hub)["library_name"] == "peft" and "somebody" in done.stderr
    assert not [body for body in hub.received if b"somebody" in body]


def test_nothing_that_lies_beside_it_leaves(hub: Hub, style: Path, tmp_path: Path) -> None:
    secret = b"the-secret-of-" + os.urandom(8).hex().encode()
    (style / "token").write_bytes(b"hf_" + secret)
    (style / ".env").write_bytes(b"HF_TOKEN=hf_" + secret)
    (style / "optimizer.pt").write_bytes(secret * 10)
    (style / "optimizer.safetensors").write_bytes(secret * 10)
    (style / "training.pt").write_bytes(secret * 10)
    (style / "random_states_0.pkl").write_bytes(secret)
    (style / "passwd").symlink_to("/etc/passwd")
    (style / "adapter_config.json").symlink_to("/etc/passwd")
    (style / ".git").mkdir()
    (style / ".git" / "config").write_bytes(secret)
    (style / "samples").mkdir()
    (style / "samples" / "1.mp4").write_bytes(secret)
    done = hub.run("push", style, "me/style")
    assert done.returncode == 0, done.stderr
    assert ours(hub) == ["README.md", NAME]
    everything = b"".join(hub.received)
    assert len(everything) > 30_000
    for hidden in (secret, b"root:", str(tmp_path).encode(), os.environ.get("HOME", "/nowhere").encode() + b"/"):
        assert hidden not in everything, hidden


def test_a_link_in_the_place_of_a_file_that_would_leave(hub: Hub, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden.json"
    hidden.write_bytes((DATA / "peft_plain" / "adapter_config.json").read_bytes())
    place = tmp_path / "peft"
    place.mkdir()
    (place / "adapter_model.safetensors").write_bytes((DATA / "peft_plain" / "adapter_model.safetensors").read_bytes())
    (place / "adapter_config.json").symlink_to(hidden)
    done = hub.run("push", place, "me/style", "--base-model", BASE)
    assert done.returncode == 1 and "is a link that leads out of its folder" in done.stderr
    assert "me/style" not in hub.repos


def test_paths_and_tokens_in_a_header_stay_here(hub: Hub, style: Path, tmp_path: Path) -> None:
    with safe_open(style / NAME, framework="numpy") as file:
        metadata = dict(file.metadata())
    tensors = load_file(style / NAME)
    token = "hf_" + "A" * 34
    extra = {
        "modelspec.title": "Disney",
        "modelspec.trigger_phrase": "DISNEY",
        "ss_output_name": "disney",
        "ss_sd_model_name": "/home/somebody/models/base.safetensors",
        "ss_dataset_dirs": json.dumps({"D:\\pictures\\somebody": {"n_repeats": 1}}),
        "notes": f"pushed with {token}",
    }
    private = tmp_path / NAME
    save_file(tensors, private, metadata | extra)
    done = hub.run("push", private, "me/style")
    assert done.returncode == 0, done.stderr
    sent = tmp_path / "sent.safetensors"
    sent.write_bytes(hub.files("me/style")[NAME])
    with safe_open(sent, framework="numpy") as file:
        kept = dict(file.metadata())
    assert kept == metadata | {
        key: extra[key] for key in ("modelspec.title", "modelspec.trigger_phrase", "ss_output_name")
    }
    back = load_file(sent)
    assert back.keys() == tensors.keys() and all((back[key] == tensors[key]).all() for key in tensors)
    for key in ("ss_sd_model_name", "ss_dataset_dirs", "notes"):
        assert f"left out of the header: {key}" in done.stderr
    everything = b"".join(hub.received) + done.stderr.encode() + done.stdout.encode()
    assert token.encode() not in everything and b"somebody" not in everything
    assert card(hub)["instance_prompt"] == "DISNEY"
    hub.log.clear()
    assert "nothing has changed" in hub.run("push", private, "me/style").stdout


def test_no_token_is_printed_or_sent_in_a_body(hub: Hub, style: Path) -> None:
    for token in (hub.token, hub.reader, "hf_" + "y" * 34):
        done = hub.run("push", style, "me/style", token=token)
        assert token not in done.stdout + done.stderr and not [b for b in hub.received if token.encode() in b]


OWNER = """---
# my own notes, which stay
license: mit   # chosen with care
base_model: /data/models/CogVideoX-5b
tags:
  - mine
  - lora
datasets: [me/clips]
widget:
- text: mine
  output:
    url: mine.mp4
my_field: {a: 1}
---
# My style

Words of mine, with ümlauts.

---
A rule above, and a table | of | mine
"""


def test_an_owners_card_keeps_what_it_says(hub: Hub, style: Path) -> None:
    hub.add("me/style", {"README.md": OWNER.encode(), "mine.mp4": b"x"})
    done = hub.run("push", style, "me/style")
    assert done.returncode == 0, done.stderr
    text = hub.files("me/style")["README.md"].decode()
    front, body = split(text)
    had = yaml.safe_load(split(OWNER)[0])
    assert card(hub) == {
        **had,
        "base_model": BASE,
        "tags": ["mine", "lora", "diffusers", "text-to-video", "cogvideox"],
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-video",
    }
    for line in ("# my own notes, which stay", "license: mit   # chosen with care", "my_field: {a: 1}"):
        assert line in front
    assert body.startswith(split(OWNER)[1].rstrip()) and "mine.mp4" in hub.files("me/style")
    again = hub.run("push", style, "me/style")
    assert "nothing has changed" in again.stdout
    hub.add("me/style", {"README.md": text.replace("Words of mine", "New words").encode()})
    hub.run("push", style, "me/style", "--trigger", "D")
    assert "New words of" not in text and "New words" in hub.files("me/style")["README.md"].decode()


def test_a_card_that_is_no_yaml_is_left_to_its_owner(hub: Hub, style: Path) -> None:
    hub.add("me/style", {"README.md": b"---\ntags: [a\n---\nhello"})
    done = hub.run("push", style, "me/style")
    assert done.returncode == 1 and "is no YAML" in done.stderr
    assert hub.files("me/style")["README.md"] == b"---\ntags: [a\n---\nhello"


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


def test_a_dry_run_sends_nothing_and_shows_all(hub: Hub, style: Path) -> None:
    done = hub.run("push", style, "me/style", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert {one.method for one in hub.log} <= {"GET", "HEAD"} and "me/style" not in hub.repos
    assert hashlib.sha256((style / NAME).read_bytes()).hexdigest()[:16] in done.stdout
    for shown in ("  | base_model: zai-org/CogVideoX-5b", f"commit   Add {NAME}", "a new public repository"):
        assert shown in done.stdout
    offline = hub.run("push", style, "me/style", "--dry-run", offline=True)
    assert offline.returncode == 0 and "what me/style holds is not known" in offline.stderr


def test_json(hub: Hub, style: Path) -> None:
    for words, state in (("--dry-run", "planned"), ("--private", "committed"), ("--dry-run", "unchanged")):
        document = json.loads(hub.run("push", style, "me/style", words, "--json").stdout)
        jsonschema.validate(document, SCHEMA, jsonschema.Draft202012Validator)
        assert document["state"] == state
    assert document["visibility"] == "private" and not document["created"]


def test_a_pull_request_and_a_branch(hub: Hub, style: Path) -> None:
    hub.add("me/style", {"notes.txt": b"mine"})
    done = hub.run("push", style, "me/style", "--create-pr", "--commit-message", "Mine")
    assert done.returncode == 0, done.stderr
    assert ours(hub) == ["notes.txt"] and last(done).startswith("me/style is as it was; the change waits in http")
    assert hub.commits("me/style", "refs/pr/1")[-1].message == "Mine"
    hub.add("me/style", {}, revision="tuned")
    done = hub.run("push", style, "me/style", "--revision", "tuned")
    assert done.returncode == 0 and NAME in hub.files("me/style", "tuned") and ours(hub) == ["notes.txt"]
    missing = hub.run("push", style, "me/style", "--revision", "nowhere")
    assert missing.returncode == 1 and "has no revision nowhere" in missing.stderr


def test_stale_weights_are_pointed_out(hub: Hub, style: Path) -> None:
    hub.add("me/style", {"old.safetensors": b"x", "pytorch_lora_weights.bin": b"y", "sub/other.safetensors": b"z"})
    done = hub.run("push", style, "me/style")
    assert "stale    old.safetensors, pytorch_lora_weights.bin: a loader may take it" in done.stdout
    assert "hf repos delete-files me/style old.safetensors pytorch_lora_weights.bin" in done.stdout
    assert {"old.safetensors", "sub/other.safetensors"} <= set(ours(hub))


def refused(hub: Hub, *words: object) -> str:
    done = hub.run(*words)
    assert done.returncode == 1, done.stdout
    assert not [one for one in hub.log if one.method not in ("GET", "HEAD")]
    return str(done.stderr)


def test_a_scale_nobody_knows_is_not_published(hub: Hub, tmp_path: Path) -> None:
    silent = DATA / "diffusers_save_lora_weights_nometa"
    said = refused(hub, "push", silent, "me/style", "--base-model", BASE)
    assert "by itself, is not what was trained: cannot tell" in said
    lines = [line.split("try: ")[1].partition("   #")[0] for line in said.splitlines() if "try: " in line]
    assert f"loraforge push {silent} me/style --base-model {BASE} --as-loaded" in lines
    stated = hub.run("push", silent, "me/loaded", "--base-model", BASE, "--as-loaded")
    assert stated.returncode == 0, stated.stderr
    text = hub.files("me/loaded")["README.md"].decode()
    assert "No file records the scale of its training" in text and "acts as it did in training" not in text
    half = next(line for line in lines if "--trained-scale 0.5" in line)
    hub.log.clear()
    done = hub.run(*half.split()[1:], "--base-model", BASE, "-o", tmp_path / "half")
    assert done.returncode == 0, done.stderr
    assert hub.files("me/style")[NAME] == (tmp_path / "half" / NAME).read_bytes()
    assert last(done).startswith("me/style is in its new state")


def test_a_stated_scale_that_the_file_does_not_have(hub: Hub) -> None:
    silent = DATA / "diffusers_save_lora_weights_nometa"
    said = refused(hub, "push", silent, "me/style", "--base-model", BASE, "--trained-scale", "0.5")
    assert "2x too strong" in said and "--to diffusers --trained-scale 0.5 --push me/style" in said


def test_an_assumed_scale_is_not_published_unless_it_is_stated(hub: Hub, tmp_path: Path) -> None:
    run = Case("sat_2b_r4").run(tmp_path)
    bare = tmp_path / "bare.pt"
    bare.write_bytes(next(run.rglob("*.pt")).read_bytes())
    out = tmp_path / "out"
    words = ["convert", bare, "--to", "diffusers", "-o", out, "--base-model", "zai-org/CogVideoX-2b"]
    done = hub.run(*words, "--push", "me/style")
    assert done.returncode == 1 and "is written. " in done.stderr and "the scale is assumed" in done.stderr
    assert "me/style" not in hub.repos
    assert hub.run("push", out, "me/style", "--as-loaded").returncode == 0
    done = hub.run(*words, "--force", "--alpha", "1", "--push", "me/other")
    assert done.returncode == 0, done.stderr


REFUSED = {
    ("nowhere.safetensors", "me/style"): "does not exist",
    ("STYLE", "style"): "is no name of a repository",
    ("STYLE", "../style"): "is no name of a repository",
    ("STYLE", "me/style", "--base-model", "./CogVideoX-5b"): "is no Hub id",
    ("STYLE", "me/style", "--sample", "x.mp4"): "each --sample needs the --prompt",
    ("STYLE", "me/style", "--sample", "x.mp4", "--prompt", "p"): "cannot be read",
    ("STYLE", "me/style", "--sample", "STYLE", "--prompt", "p"): "is no video or picture",
    ("hf://me/there", "me/style"): "is on the Hub already",
    ("RUN", "me/style"): "is a torch checkpoint, a pickle",
    ("BASE", "me/style"): "is a base model without adapters in it",
}


@pytest.mark.parametrize("words", REFUSED)
def test_refusals(hub: Hub, style: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    named = {"STYLE": style, "RUN": next((tmp_path / "run").iterdir()), "BASE": DATA / "bases" / "5b"}
    assert REFUSED[words] in refused(hub, "push", *(named.get(word, word) for word in words))


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
    assert json.loads(hub.files("me/fused")["transformer/config.json"])["_name_or_path"] is None
    assert "nothing has changed" in hub.run("push", out, "me/fused", "--base-model", "zai-org/CogVideoX-2b").stdout
