"""Failure texts are found in logs and nothing else is; what is advised can be typed."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import time
from pathlib import Path

import pytest
import tomli
from helpers.oracle import DATA
from jsonschema import Draft202012Validator

from loraforge.facts.symptoms import find, symptoms

ROOT = Path(__file__).parents[3]
ADAPTER = DATA / "diffusers_save_lora_weights_meta" / "pytorch_lora_weights.safetensors"
FAILURES = tomli.loads((Path(__file__).parent / "failures.toml").read_text("utf-8"))
UNRELATED: list[str] = FAILURES["unrelated"]
MODULES = {
    "D4": [f"base_model.model.transformer_blocks.{n}.attn1.to_{m}" for n in range(42) for m in "qkv"],
    "D5": [f"blocks.{n}.self_attn.{m}" for n in range(40) for m in "qkvo"],
}
MESSAGES: dict[str, list[str]] = {
    name: [text.replace("MODULES", str(MODULES.get(name, []))[1:-1]) for text in texts]
    for name, texts in FAILURES["failures"].items()
}


def log(message: str) -> str:
    """A log of 50 lines and more, with the message in its middle."""
    before, after = [], []
    for n in range(25):
        before.append(
            [
                f"2026-03-0{n % 9 + 1} 10:2{n % 10}:13,{n:03} - INFO - loading C:\\Users\\x\\clips\\{n:04}.mp4",
                f"Loading checkpoint shards: {n * 4:3}%|{'█' * n:<25}| {n}/25 [00:0{n % 10}<00:01,  1.05it/s]\r",
                "WARNING:diffusers: `torch_dtype` is deprecated! Use `dtype` instead!",
                f'  File "/mnt/data/env/site-packages/torch/nn/modules/module.py", line {1700 + n}, in _call',
                "    return forward_call(*args, **kwargs)",
            ][n % 5]
        )
        after.append(
            [
                f"Steps:  {n}%|▏  | {n}/1000 [00:12<3:22:11, 12.3s/it, loss=0.0{n}1, lr=0.0001]",
                f"INFO:accelerate:saved /mnt/data/runs/{n}/config.yaml",
                f"[rank{n % 4}]: Traceback (most recent call last):",
                '  File "C:\\Users\\x\\ComfyUI\\execution.py", line 323, in execute',
                "wandb: Synced 5 W&B file(s), 0 media file(s)",
            ][n % 5]
        )
    return "\n".join([*before, message, *after])


def ids(text: str) -> list[str]:
    return [found.symptom.id for found in find(text)]


def test_there_is_a_message_for_each() -> None:
    assert list(MESSAGES) == list(symptoms()) == [f"D{n}" for n in range(1, len(MESSAGES) + 1)]


@pytest.mark.parametrize("name", MESSAGES)
def test_each_is_found_in_a_log_and_nothing_else(name: str) -> None:
    for message in MESSAGES[name]:
        assert ids(log(message)) == [name]
        wrapped = re.sub(r"(?<=\w) (?=\w)", "\n      ", message)  # as a narrow terminal breaks lines
        assert ids(log(wrapped)) == [name]
        assert ids(log(message.upper())) == [name]
        assert ids(log(json.dumps({"level": "error", "message": message}))) == [name]
        assert ids(log("\n".join(f"[worker-0] 12:00:01 | {line}" for line in message.split("\n")))) == [name]


def test_unrelated_errors_match_nothing() -> None:
    assert len(UNRELATED) >= 40
    for message in UNRELATED:
        assert ids(log(message)) == [], message
    assert ids(log("\n".join(UNRELATED))) == []


def test_of_several_the_longest_text_comes_first() -> None:
    for names in (["D3", "D7"], ["D7", "D3"]):
        assert ids("\n".join(log(MESSAGES[name][0]) for name in names)) == ["D3", "D7"]
    assert set(ids("\n".join(log(texts[0]) for texts in MESSAGES.values()))) == set(MESSAGES) - {"D5", "D27", "D60", "D63"}


def test_texts_in_both_languages() -> None:
    chinese = re.compile(r"[\u4e00-\u9fff]")
    for symptom in symptoms().values():
        for field in ("title", "cause", "check", "fix"):
            english, other = symptom.text(field, "en"), symptom.text(field, "zh")
            assert english
            assert not chinese.search(english)
            assert chinese.search(other), f"{symptom.id} {field}"


def test_what_another_entry_stands_over_exists() -> None:
    assert {name for symptom in symptoms().values() for name in symptom.over} <= set(symptoms())


TEMPLATES = sorted(
    {t for symptom in symptoms().values() for t in (symptom.check_command, symptom.fix_command) if t is not None}
)


@pytest.mark.parametrize("template", TEMPLATES)
def test_commands_can_be_typed(template: str, cli, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    adapter = DATA / "peft_plain" if template.endswith("--in peft") else ADAPTER
    done = cli(*[str(adapter) if word == "{file}" else word for word in shlex.split(template)][1:])
    if "BASE" in template:
        assert done.exit_code == 1
        assert "BASE does not exist" in done.stderr
    else:
        assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    "text",
    [
        "a" * 10_000_000,
        "Target modules {" * 650_000,
        " not found in the base model" * 360_000,
        "Target modules {'base_model.model." * 300_000,
        ".base_layer.weight " * 530_000,
        "size mismatch for patch_embed.proj.weight: torch.Size([1, 16, 2, 2]) from checkpoint, " * 115_000,
        "r = lora_alpha = list(rank " * 370_000,
        "\x00\x1b[\x7f\x1b]0;\ufffd\u202e" * 1_200_000,
        "\x1b[" + "1;" * 5_000_000,
        " \t\r\n\v" * 2_000_000,
    ],
    ids=lambda text: repr(text[:16]),
)
def test_a_hostile_log_takes_no_time(text: str) -> None:
    start = time.process_time()
    assert find(text) == []
    assert time.process_time() - start < 2


def test_a_long_log_takes_well_under_a_second() -> None:
    text = "\n".join(log(MESSAGES["D3"][0]) if n == 100 else log("fine") for n in range(200))
    assert text.count("\n") > 10_000
    start = time.process_time()
    assert ids(text) == ["D3"]
    assert time.process_time() - start < 1


def test_explain_one_in_both_languages(cli, monkeypatch) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    english = cli("explain", "d7", "--file", "my style.safetensors").stdout
    assert english.startswith("D7  The adapter is not in the list")
    assert "$ loraforge convert 'my style.safetensors' --to diffusers" in english
    assert "Adapter name(s) {...} not in the list" in english
    assert "$ loraforge convert ADAPTER --to diffusers" in cli("explain", "D7").stdout
    assert "text like" in cli("explain", "D37").stdout
    chinese = cli("explain", "D7", "--lang", "zh").stdout
    assert "原因" in chinese
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    assert cli("explain", "D7").stdout == chinese
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    assert cli("explain", "D7", "--file", "my style.safetensors").stdout == english


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_explain_a_log_from_standard_input(encoding: str) -> None:
    from click.testing import CliRunner

    from loraforge.cli.app import main

    done = CliRunner().invoke(main, ["explain", "-", "--lang", "en"], input=log(MESSAGES["D18"][0]).encode(encoding))
    assert done.exit_code == 0
    assert done.stdout.startswith("D18  ")


def test_explain_what_was_typed(cli) -> None:
    assert cli("explain", *MESSAGES["D39"][0].split(), "--lang", "en").stdout.startswith("D39  ")


def test_explain_lists_them_all(cli) -> None:
    listed = cli("explain", "--lang", "en").stdout
    assert all(f"{symptom.id} " in listed and symptom.title in listed for symptom in symptoms().values())


def test_explain_says_that_it_knows_nothing(cli) -> None:
    for words, said in ((["D999"], "there is no entry D999"), (["all", "is", "well"], "no known failure text")):
        done = cli("explain", *words, "--file", "a.safetensors")
        assert done.exit_code == 1
        assert done.stdout == ""
        assert done.stderr.count("Error: ") == 1
        assert said in done.stderr
        assert "try: loraforge " in done.stderr
    assert "try: loraforge inspect a.safetensors" in done.stderr


def test_explain_json(cli) -> None:
    schema = json.loads((ROOT / "schemas" / "explain.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    for words in ([], ["D7"], [MESSAGES["D23"][0]], ["D37", "--lang", "zh"]):
        document = json.loads(cli("explain", *words, "--json").stdout)
        Draft202012Validator(schema).validate(document)
    assert document["entries"][0]["exact"] is False
    assert len(json.loads(cli("explain", "--json").stdout)["entries"]) == len(MESSAGES)


def test_the_page_is_what_the_table_says() -> None:
    spec = importlib.util.spec_from_file_location("faults", ROOT / "docs" / "faults.py")
    assert spec is not None
    assert spec.loader is not None
    faults = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faults)
    assert faults.PAGE.read_text("utf-8") == faults.page(), "run `python docs/faults.py`"
    assert all(f'<a id="{name.lower()}"></a>' in faults.page() for name in symptoms())
    for readme, words in (("README.md", "[{} of them]"), ("README_zh.md", "[共 {} 条]")):
        assert words.format(len(symptoms())) in (ROOT / readme).read_text("utf-8"), readme
