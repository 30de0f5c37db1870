"""Failure texts are found in logs and nothing else is; what is advised can be typed."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shlex
import time
import tracemalloc
from pathlib import Path

import pytest
import tomli
from helpers.oracle import DATA, Case
from jsonschema import Draft202012Validator

from loraforge.facts import logs
from loraforge.facts.logs import read_log
from loraforge.facts.symptoms import QUOTE, find, symptoms

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
    for message in (
        "The size of tensor a (49472) must match the size of tensor b (9)",
        "'int' object cannot be converted to 'PyString'",
    ):
        assert ids(log(message)) == [], "far from the words of `near`"


def test_what_follows_in_the_log_hides_nothing() -> None:
    """Texts are searched from the end: one that ends in a bracket, or like every key, was not reached."""
    for name, after in (("D32", "f(x)\n"), ("D13", "a.lora_A.weight b.lora_B.weight\n"), ("D5", "in the base model\n")):
        assert ids(MESSAGES[name][0] + "\n" + after * 3000) == [name]


def test_of_several_the_longest_text_comes_first() -> None:
    for names in (["D3", "D7"], ["D7", "D3"]):
        assert ids("\n".join(log(MESSAGES[name][0]) for name in names)) == ["D3", "D7"]
    assert set(ids("\n".join(log(texts[0]) for texts in MESSAGES.values()))) == set(MESSAGES) - {
        "D5",
        "D27",
        "D60",
        "D63",
    }


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
    if template.endswith("--to comfyui"):  # the modules of `ADAPTER` are those of four models; SAT's are of one
        adapter = Case("sat_2b_r4").run(tmp_path)
    done = cli(*[str(adapter) if word == "{file}" else word for word in shlex.split(template)][1:])
    if "BASE" in template:
        assert done.exit_code == 1
        assert re.search("BASE (does not exist|is no file)", done.stderr)
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


RESULTS = json.loads((ROOT / "tests" / "programs" / "results.json").read_text("utf-8"))
GOES_ON = {
    "Error(s) in loading state_dict for": "size mismatch for a.lora_A.default_0.weight: copying a param with shape",
    "Target modules": "{'a.to_q'} not found in the base model.",
}
"""Beginning of an error in results.json, which keeps one line of it -> what stands after that."""


def raised(results: object) -> set[str]:
    if isinstance(results, str):
        return {results.removeprefix("raises ")} if results.startswith("raises ") else set()
    values = results.values() if isinstance(results, dict) else results if isinstance(results, list) else ()
    return {text for value in values for text in raised(value)}


def test_every_error_that_a_program_was_seen_to_raise_is_known() -> None:
    errors = raised(RESULTS["programs"])
    assert len(errors) >= 20
    for error in errors:
        rest = next((rest for begin, rest in GOES_ON.items() if begin in error), "")
        assert find(f"{error} {rest}"), error
        assert "PLACE" in error or find(log(f"in load_lora_weights, peft\n  {error} {rest}")) or "Index" in error, error


@pytest.mark.parametrize(
    ("text", "lines", "quote"),
    [
        (
            "a\nb\nValueError: lora_state_dict length is not 240\nc",
            (3, 3),
            "ValueError: lora_state_dict length is not 240",
        ),
        ("a\r\n\r\n  \x1b[31mlora_state_dict\x1b[0m   length is not", (3, 3), "lora_state_dict length is not"),
        ("x lora_state_dict\n   length\n is not 240\n", (1, 3), "x lora_state_dict length is not 240"),
        ("1%\r2%\rlora_state_dict length is not", (1, 1), "1% 2% lora_state_dict length is not"),
        (r"""{"message": "Can\'t recognize LoRA C:\\a"}""", (1, 1), r"""{"message": "Can't recognize LoRA C:\a"}"""),
        ("İİİ\nİ 中文 lora_state_dict length is not 中文", (2, 2), "İ 中文 lora_state_dict length is not 中文"),
        ("\f\x1c\u3000\nlora_state_dict length is not", (2, 2), "lora_state_dict length is not"),
    ],
)
def test_the_line_is_quoted_with_its_number(text: str, lines: tuple[int, int], quote: str) -> None:
    (found,) = find(text)
    assert (found.lines, found.quote) == (lines, quote)


@pytest.mark.parametrize("name", MESSAGES)
def test_the_quote_is_where_the_message_is(name: str) -> None:
    for message in MESSAGES[name]:
        (found,) = find(log(message))
        assert found.lines is not None
        assert found.quote is not None
        assert 26 <= found.lines[0] <= found.lines[1] <= 26 + message.count("\n")
        assert len(found.quote) <= QUOTE + 6
        seen = found.quote.strip(".")
        assert seen in " ".join(log(message).replace("\\'", "'").replace('\\"', '"').replace(r"\\", "\\").split())


@pytest.mark.parametrize("around", ["a" * 1_000_000, "a " * 500_000, "中" * 1_000_000, "\x1b[0m" * 250_000])
def test_of_a_line_of_a_million_characters_the_part_around_is_quoted(around: str) -> None:
    start = time.process_time()
    (found,) = find(f"fine\n{around} lora_state_dict length is not 240 {around}\n")
    assert time.process_time() - start < 2
    assert found.lines == (2, 2)
    assert found.quote is not None
    assert "lora_state_dict length is not 240" in found.quote
    assert len(found.quote) <= QUOTE + 6


class Endless(io.RawIOBase):
    """A stream of `size` MB that is nowhere in memory: a text, so many equal blocks, and another text."""

    def __init__(self, first: bytes, block: bytes, size: int, last: bytes) -> None:
        self.parts = iter([first, *[block] * size, last])

    def read(self, size: int = -1) -> bytes:
        assert size > 0
        return next(self.parts, b"")


@pytest.mark.parametrize("block", [b"INFO step 17 of 1000\n" * 50_000, b"a" * 1_000_000, b"\r50%" * 250_000])
def test_200_megabytes_stay_bounded(block: bytes) -> None:
    """The end that stops a program and the beginning, where a loader warns, are found, with their lines."""
    first, last = MESSAGES["D3"][0].encode(), b"\n" + MESSAGES["D7"][0].encode()
    symptoms()
    tracemalloc.start()
    start = time.process_time()
    log = read_log(Endless(b"start\n" + first + b"\n", block, 200, last))
    found = find(log)
    assert time.process_time() - start < 12  # 4 when it is not traced
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()
    assert sum(len(part.content) for part in log) < 2.6 * logs.MOST
    assert [(one.symptom.id, one.lines) for one in found] == [
        ("D3", (2, 2)), ("D7", (line := 3 + 200 * block.count(b"\n") + 1, line)),
    ]  # fmt: skip


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_stream_reads_as_the_text_does(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_CHUNK", 7)  # every character is cut somewhere
    monkeypatch.setattr(logs, "MOST", 50)
    text = "".join(f"line {n} 中文\r\n" for n in range(30))
    for size in (0, 1, 49, 50, 51, 99, 100, 101, 120, 300):
        parts = read_log(io.BytesIO(text[:size].encode(encoding)))
        assert parts[0].content == text[:size][: len(parts[0].content)]
        assert text[:size].endswith(parts[-1].content)
        assert parts[-1].line == 1 + text[: size - len(parts[-1].content)].count("\n")
        assert len(parts) == 1 or len(parts[0].content) == 50
        assert len(parts[-1].content) >= min(size, 50)


def test_a_text_too_short_to_be_sure_of_is_no_more_than_perhaps(cli) -> None:
    text = "Cannot copy out of meta tensor; no data!"
    (found,) = find(text)
    assert (found.symptom.id, found.is_sure) == ("D38", False)
    assert find(f"in load_lora_weights\n{text}")[0].is_sure
    assert find(log(text)) == []
    shown = cli("explain", text, "--lang", "en").stdout
    assert "perhaps" in shown
    assert "load_lora" in shown
    assert json.loads(cli("explain", text, "--json").stdout)["entries"][0]["sure"] is False


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


def test_explain_reads_a_file(cli, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my log.txt").write_text(log(MESSAGES["D18"][0]), "utf-8")
    shown = cli("explain", "my log.txt", "--lang", "en").stdout
    assert shown.startswith("D18  ")
    assert "line 26    The config attributes {'patch_bias': False" in shown
    assert "..." not in shown.partition("line 26")[0]  # the pattern is not shown beside the user's own line
    (entry,) = json.loads(cli("explain", "my log.txt", "--json").stdout)["entries"]
    assert entry["lines"] == [26, 26]
    diagnosis = cli("doctor", ADAPTER, "--error", "my log.txt", "--architecture", "cogvideox")
    assert "  D18 " in diagnosis.stdout


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names")
def test_explain_reads_a_pipe_and_no_device(cli, tmp_path: Path) -> None:
    import threading

    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(MESSAGES["D39"][0],))
    writer.start()
    assert cli("explain", pipe).stdout.startswith("D39  ")
    writer.join()
    assert cli("explain", "/dev/zero").exit_code == 1


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_refusal_says_what_to_do_in_the_language_of_the_answer(lang: str, cli, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("fine.log").write_text("all is well\n")
    words = {
        "en": ("no file gone.log", "is a folder", "is no text", "no known failure", "one log at a time", "no entry D9"),
        "zh": ("没有文件 gone.log", "是目录", "不是文本", "没有已知的报错", "一次只读一份", "没有编号 D9"),
    }[lang]
    asked = (["gone.log"], ["folder"], [ADAPTER], ["fine.log"], ["fine.log", "fine.log"], ["D999"])
    for typed, said in zip(asked, words, strict=True):
        done = cli("explain", *typed, "--lang", lang)
        assert done.exit_code == 1
        assert said in done.stderr
        assert bool(re.search(r"[\u4e00-\u9fff]", done.stderr)) == (lang == "zh")
        assert "  try: loraforge " in done.stderr
    Path("a b.safetensors").touch()
    nothing = cli("explain", "fine.log", "--file", "a b.safetensors", "--lang", lang).stderr
    assert "try: loraforge doctor 'a b.safetensors'   # " in nothing
    assert "try: loraforge inspect --skeleton 'a b.safetensors'   # " in nothing
    assert "try: loraforge doctor /" in cli("explain", ADAPTER, "--lang", lang).stderr


def test_a_terminal_of_80_columns_breaks_no_word(cli, monkeypatch) -> None:
    from loraforge.cli import explain

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(explain.sys, "stdout", type("Terminal", (), {"isatty": lambda self: True})())
    for lang in ("en", "zh"):
        for message in MESSAGES.values():
            for found in find(log(message[0])):
                lines = explain._lines(found, lang, Path("ADAPTER"))
                assert all(explain._cells(line) <= 80 or "$ " in line or " " not in line.strip() for line in lines)
                words = found.symptom.text("cause", lang).split()
                assert lang == "zh" or " ".join(words) in " ".join(" ".join(lines).split())


def test_explain_says_that_it_knows_nothing(cli, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.safetensors").touch()
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
    pages = faults.pages()
    for path, text in pages.items():
        assert path.read_text("utf-8") == text, "run `python docs/faults.py`"
    assert set(faults.FOLDER.iterdir()) == pages.keys() - {faults.INDEX}
    everything = "".join(pages.values())
    assert all(everything.count(f'<a id="{name.lower()}"></a>') == 2 for name in symptoms())  # in the list and its page
    for readme, words in (("README.md", "[{} of them]"), ("README_zh.md", "[共 {} 条]")):
        assert words.format(len(symptoms())) in (ROOT / readme).read_text("utf-8"), readme
