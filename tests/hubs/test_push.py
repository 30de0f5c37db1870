"""What is published, in which commit, and what never leaves."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import jsonschema
import pytest
import yaml
from helpers.hub import Hub
from helpers.oracle import DATA
from helpers.pushed import BASE, NAME, card, last, ours
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from loraforge.publishing.front_matter import split
from loraforge.text import hf

SCHEMA = json.loads((Path(__file__).parents[2] / "schemas" / "push.schema.json").read_text())


def test_create_push_again_and_change_one_field(hub: Hub, style: Path) -> None:
    first = hub.run("push", style, "me/style", "--private")
    assert first.returncode == 0, first.stderr
    assert hub.repos["me/style"].private and ours(hub) == ["README.md", NAME]
    assert hub.files("me/style")[NAME] == (style / NAME).read_bytes()
    commits = hub.commits("me/style")
    assert [c.message for c in commits[1:]] == [f"Add {NAME}"]
    assert last(first) == f"me/style is in its new state, at {commits[-1].sha[:8]} (private)"

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
    found, sample = card(hub), f"samples/{hashlib.sha256(video.read_bytes()).hexdigest()[:8]}.mp4"
    assert found == {
        "license": "other",
        "license_link": f"https://huggingface.co/{BASE}/blob/main/LICENSE",
        "base_model": BASE,
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-video",
        "tags": ["lora", "diffusers", "text-to-video", "cogvideox", "template:sd-lora"],
        "widget": [{"text": 'a "panda": plays | it\'s ☕', "output": {"url": sample}}],
    }
    assert hub.files("me/style")[sample] == video.read_bytes()
    body = hub.files("me/style")["README.md"].decode()
    assert "<Gallery />" in body and "1/8 = 0.125 (recorded: r 8, lora_alpha not set" in body
    assert "loraforge convert mp_rank_00_model_states.pt --to diffusers" in body
    assert not [b for b in hub.received if b"secret name" in b]


@pytest.mark.parametrize(
    ("card_of_base", "options", "wanted", "note"),
    [
        (b"---\nlicense: apache-2.0\n---\n", (), {"license": "apache-2.0"}, "the licence is the base model's"),
        (b"---\nlicense: other\n---\n", (), {"license": "other", "license_link": f"/{BASE}"}, "the base model's"),
        (b"# no head\n", (), {}, f"the card names no licence, as the card of {BASE} names none. --license"),
        (None, (), {}, "the card names no licence, as there is no model"),
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
    assert found == {k: (f"https://huggingface.co{v}" if v.startswith("/") else v) for k, v in wanted.items()}
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
    assert kept == metadata | {key: extra[key] for key in ("modelspec.title", "modelspec.trigger_phrase")}
    back = load_file(sent)
    assert back.keys() == tensors.keys() and all((back[key] == tensors[key]).all() for key in tensors)
    stay = f"4 entries of the header of {NAME} stay at home: notes, ss_dataset_dirs, ss_output_name"
    assert stay in done.stderr
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
    names = ("old.safetensors", "pytorch_lora_weights.bin")
    assert hf("repos", "delete-files", "me/style", *names, page="me/style/tree/main") in done.stdout
    assert {"old.safetensors", "sub/other.safetensors"} <= set(ours(hub))


def test_a_card_stays_as_good_as_it_was(hub: Hub, style: Path, tmp_path: Path) -> None:
    """A push without the words of an earlier one changes nothing; a new sample is beside the old one."""
    first, second = tmp_path / "a.mp4", tmp_path / "b.mp4"
    for n, path in enumerate((first, second)):
        path.write_bytes(b"\0\0\0\x18ftypisom" + bytes([n]) * 50)
    words = ["push", style, "me/style"]
    assert hub.run(*words, "--trigger", "DISNEY", "--sample", first, "--prompt", "DISNEY a cat").returncode == 0
    text = hub.files("me/style")["README.md"].decode()
    assert "Its prompts have `DISNEY` in them." in text and "prompt='DISNEY a cat'" in text
    assert "nothing has changed" in hub.run(*words).stdout
    assert hub.run(*words, "--sample", second, "--prompt", "DISNEY a dog").returncode == 0
    urls = [entry["output"]["url"] for entry in card(hub)["widget"]]  # type: ignore[attr-defined]
    assert len(set(urls)) == 2 and {first.read_bytes(), second.read_bytes()} == {hub.files("me/style")[u] for u in urls}
    assert hub.run(*words, "--sample", first, "--prompt", "DISNEY a black cat").returncode == 0
    assert sorted(entry["text"] for entry in card(hub)["widget"]) == ["DISNEY a black cat", "DISNEY a dog"]  # type: ignore[attr-defined]
    assert hub.run(*words, "--prompt", "no trigger").returncode == 0
    assert card(hub)["instance_prompt"] == "DISNEY"


def test_the_example_has_the_trigger_words(hub: Hub, style: Path) -> None:
    assert hub.run("push", style, "me/style", "--trigger", "DISNEY").returncode == 0
    assert "prompt='DISNEY a panda" in hub.files("me/style")["README.md"].decode()


def test_another_licence_takes_the_old_ones_words_along(hub: Hub, style: Path) -> None:
    assert hub.run("push", style, "me/style").returncode == 0 and "license_link" in card(hub)
    assert hub.run("push", style, "me/style", "--license", "mit").returncode == 0
    assert card(hub)["license"] == "mit" and "license_link" not in card(hub)
    words = ["--license", "other", "--license-name", "mine", "--license-link", "https://example.com/l"]
    assert hub.run("push", style, "me/style", *words).returncode == 0
    assert hub.run("push", style, "me/style", "--license-name", "ours").returncode == 0
    assert (card(hub)["license_name"], card(hub)["license_link"]) == ("ours", "https://example.com/l")


def test_the_repository_may_be_an_address(hub: Hub, style: Path) -> None:
    for address in ("hf://me/style", "https://huggingface.co/me/style"):
        assert hub.run("push", style, address, "--dry-run").stdout.startswith(f"{hub.endpoint}/me/style")


def test_a_mark_that_is_gone_leaves_the_text_alone(hub: Hub, style: Path) -> None:
    assert hub.run("push", style, "me/style").returncode == 0
    text = hub.files("me/style")["README.md"].decode()
    for mark in [line for line in text.splitlines() if line.startswith("<!-- loraforge")]:
        hub.add("me/style", {"README.md": text.replace(mark, "mine").encode()})
        done = hub.run("push", style, "me/style", "--trigger", "D")
        assert "one of the two marks" in done.stderr
        assert split(hub.files("me/style")["README.md"].decode())[1] == split(text.replace(mark, "mine"))[1]


def test_the_first_scale_of_a_chain_is_the_one_of_training(hub: Hub, style: Path, tmp_path: Path) -> None:
    for n, form in enumerate(("peft", "diffusers")):
        source = style if not n else tmp_path / "0"
        assert hub.run("convert", source, "--to", form, "-o", tmp_path / str(n)).returncode == 0
    assert hub.run("push", tmp_path / "1", "me/style").returncode == 0
    assert "| scale in training | 1/8 = 0.125 (recorded" in hub.files("me/style")["README.md"].decode()
    assert "trained at 1/8 = 0.125 (recorded" in hub.run("inspect", tmp_path / "1").stdout


def test_owners_fields_win_over_ours(hub: Hub, style: Path) -> None:
    hub.add("me/style", {"README.md": b"---\nlibrary_name: mine\npipeline_tag: video-to-video\n---\n"})
    done = hub.run("push", style, "me/style")
    assert (card(hub)["library_name"], card(hub)["pipeline_tag"]) == ("mine", "video-to-video")
    assert "the card says library_name mine, not diffusers: left as its owner has it" in done.stderr
