"""Adapters and base models that lie on the Hub: what is asked of it, what moves, and what users are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.hub import Hub
from helpers.oracle import DATA, FILE_CASES, Case
from safetensors.numpy import load_file

META = DATA / "diffusers_save_lora_weights_meta" / "pytorch_lora_weights.safetensors"
SILENT = DATA / "diffusers_save_lora_weights_nometa" / "pytorch_lora_weights.safetensors"
ENOUGH = 200_000
"""Bytes that a look at a file of any size may move."""


def folder(path: Path) -> dict[str, bytes | Path | None]:
    return {p.relative_to(path).as_posix(): p for p in path.rglob("*") if p.is_file() and "recorded" not in p.name}


def large(path: Path, gigabytes: float = 1.0) -> Path:
    """A Diffusers adapter of a 5B model whose header is whole and whose numbers are a hole."""
    rank = int(512 * gigabytes)
    entry = {"r": rank, "lora_alpha": rank / 2, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}
    said = json.dumps({f"transformer.{key}": value for key, value in entry.items()})
    table: dict[str, object] = {"__metadata__": {"lora_adapter_metadata": said}}
    end = 0
    for block in range(42):
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            for factor, shape in (("lora_A", [rank, 3072]), ("lora_B", [3072, rank])):
                key = f"transformer.transformer_blocks.{block}.attn1.{name}.{factor}.weight"
                size = 2 * shape[0] * shape[1]
                table[key] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + size]}
                end += size
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        stream.truncate(8 + len(header) + end)
    return path


@pytest.fixture
def style(hub: Hub) -> Hub:
    hub.add("me/style", {META.name: META})
    return hub


@pytest.mark.parametrize(
    "address",
    [
        "me/style",
        "hf://me/style",
        "me/style@main",
        "hf://me/style@main/pytorch_lora_weights.safetensors",
        "https://huggingface.co/me/style",
        "https://huggingface.co/me/style/blob/main/pytorch_lora_weights.safetensors",
        "https://huggingface.co/me/style/resolve/main/pytorch_lora_weights.safetensors?download=true",
    ],
)
def test_every_way_to_say_where(style: Hub, address: str) -> None:
    done = style.run("inspect", address, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["format"], found["ranks"], found["scalings"]) == ("diffusers", {"8": 8}, [0.5])
    assert found["path"].startswith("hf://me/style") and found["path"].endswith(META.name)


def test_a_commit_and_a_branch(style: Hub) -> None:
    old = style.commits("me/style")[-1].sha
    style.add("me/style", {META.name: SILENT})
    style.add("me/style", {META.name: META}, revision="tuned")
    style.add("me/style", {META.name: META}, revision="refs/pr/1")
    for revision, scale in ((old, "recorded"), ("main", "ambiguous"), ("tuned", "recorded"), ("refs/pr/1", "recorded")):
        found = json.loads(style.run("inspect", f"me/style@{revision}", "--json").stdout)
        assert found["scale"]["provenance"] == scale, revision


def test_what_exists_here_is_a_path(style: Hub, tmp_path: Path) -> None:
    (tmp_path / "me" / "style").mkdir(parents=True)
    (tmp_path / "me" / "style" / META.name).write_bytes(SILENT.read_bytes())
    done = style.run("inspect", "me/style", cwd=tmp_path)
    assert done.stdout.startswith("file     me/style/") and not style.log
    assert "hf://me/style" in style.run("inspect", "hf://me/style", cwd=tmp_path).stdout


@pytest.mark.parametrize("words", [("inspect",), ("doctor",), ("convert", "--to", "peft", "--dry-run")])
def test_a_gigabyte_is_looked_at_by_its_header(hub: Hub, tmp_path: Path, words: tuple[str, ...]) -> None:
    file = large(tmp_path / META.name)
    assert file.stat().st_size > 1_000_000_000
    hub.add("me/large", {file.name: file})
    done = hub.run(words[0], "me/large", *words[1:], cwd=tmp_path)
    assert hub.sent < ENOUGH, hub.sent
    assert "1/2 = 0.5" in done.stdout
    if words[0] != "inspect":
        assert "needs the tensors (1,057 MB)" in done.stdout and "--fetch" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_long_header_is_two_requests(hub: Hub, tmp_path: Path) -> None:
    file = large(tmp_path / "short.safetensors", 1 / 16)
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"]["notes"] = "n" * 60_000
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    longer = tmp_path / META.name
    longer.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
    hub.add("me/long", {longer.name: longer})
    done = hub.run("inspect", "me/long", "--json")
    assert json.loads(done.stdout)["metadata"]["notes"] == "n" * 60_000
    assert [one.sent for one in hub.asked("GET", "_lfs") if one.status == 206] == [1 << 16, 8 + len(text) - (1 << 16)]


def test_a_dry_run_counts_with_no_number_it_has_not_got(hub: Hub, tmp_path: Path) -> None:
    file = large(tmp_path / META.name, 1 / 16)
    hub.add("me/large", {file.name: file})
    report = json.loads(hub.run("convert", "me/large", "--to", "peft", "--dry-run", "--json").stdout)
    with file.open("rb") as stream:
        numbers = file.stat().st_size - 8 - int.from_bytes(stream.read(8), "little")
    assert (report["source"]["digest"], report["steps"], report["unfetched"]) == (None, [], numbers)
    whole = hub.run("convert", "me/large", "--to", "peft", "--dry-run", "--json", "--fetch")
    report = json.loads(whole.stdout)
    assert len(report["steps"]) == 168 and report["unfetched"] == 0 and report["source"]["digest"]


def test_doctor_without_and_with_the_tensors(style: Hub, hub: Hub, tmp_path: Path) -> None:
    file = large(tmp_path / META.name, 1 / 16)
    hub.add("me/dead", {file.name: file})
    header = hub.run("doctor", "me/dead")
    assert header.returncode == 1 and header.stdout.startswith("cannot tell (without the tensors)")
    assert "loraforge doctor me/dead --fetch" in header.stdout
    assert hub.run("doctor", "me/dead", "--fetch").stdout.startswith("does nothing")


@pytest.mark.parametrize("name", sorted(FILE_CASES))
def test_every_recorded_adapter_converts_from_the_hub_as_from_the_disk(hub: Hub, tmp_path: Path, name: str) -> None:
    case = DATA / name / FILE_CASES[name]
    hub.add("me/it", folder(DATA / name))
    options = ["--to", "diffusers", "--trained-scale", "1", "--override-scale"]
    where = "me/it" if case.is_dir() else f"hf://me/it/{case.name}"
    local, remote = tmp_path / "local", tmp_path / "remote"
    assert hub.run("convert", case, *options, "-o", local).returncode == 0
    done = hub.run("convert", where, *options, "-o", remote)
    assert done.returncode == 0, done.stderr
    ours, theirs = (load_file(place / META.name) for place in (remote, local))
    assert ours.keys() == theirs.keys() and all((ours[key] == theirs[key]).all() for key in ours)


def test_a_sat_run_and_its_configuration(hub: Hub, tmp_path: Path) -> None:
    run = Case("sat_2b_r4").run(tmp_path / "here")
    hub.add("me/run", folder(run))
    done = hub.run("convert", "me/run", "--to", "diffusers", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1/4 = 0.25 (recorded" in done.stdout and (tmp_path / "run-1000-diffusers").is_dir()


def test_what_is_fetched_once_is_there_offline(style: Hub, tmp_path: Path) -> None:
    assert style.run("convert", "me/style", "--to", "peft", "-o", tmp_path / "a").returncode == 0
    before = len(style.log)
    done = style.run("convert", "me/style", "--to", "peft", "-o", tmp_path / "b", offline=True)
    assert done.returncode == 0 and len(style.log) == before, done.stderr
    same = [(tmp_path / out / "adapter_model.safetensors").read_bytes() for out in "ab"]
    assert same[0] == same[1]
    missing = style.run("inspect", "me/other", offline=True)
    assert missing.returncode == 1 and "HF_HUB_OFFLINE is set" in missing.stderr


def test_the_written_file_says_where_it_came_from(style: Hub, tmp_path: Path) -> None:
    style.run("convert", "me/style", "--to", "peft", "-o", tmp_path / "a")
    style.run("convert", tmp_path / "a", "--to", "diffusers", "-o", tmp_path / "b")
    commit = style.commits("me/style")[-1].sha
    found = json.loads(style.run("inspect", tmp_path / "b", "--json").stdout)
    latest, first = found["history"]
    assert first["source"]["path"] == f"hf://me/style@{commit}/{META.name}"
    assert first["command"] == f"loraforge convert hf://me/style@{commit}/{META.name} --to peft"
    assert (latest["source"]["path"], first["scale"]["scalings"]) == ("adapter_model.safetensors", [0.5])
    assert str(tmp_path) not in json.dumps(found["metadata"])
    lines = style.run("inspect", tmp_path / "b", "--history").stdout
    assert lines.index("hf://me/style@") < lines.index("1. ") < lines.index("2. ") < lines.index("this file")


REFUSED = {
    "me/none": "there is no file or folder me/none here, and there is no model me/none on the Hub",
    "hf://me/none": "there is no model me/none on the Hub",
    "them/private": "there is no model them/private on the Hub that you may see",
    "them/gated": "them/gated is gated: its owner lets in who agrees to the terms",
    "me/style@v9": "me/style has no revision v9; it has main",
    "hf://me/style/other.safetensors": f"hf://me/style has no other.safetensors. It holds: {META.name}",
    "me/two": "hf://me/two has 2 tensor files: say which",
    "me/empty": "hf://me/empty has no tensor file. It holds: README.md",
    "hf://datasets/me/data": "is a dataset; adapters and base models are looked for in models",
    "https://example.com/me/style": "is no address of a model on the Hub",
    "hf://style": "is no address of a model on the Hub",
    "hf://me/style/../../etc/passwd": "is no path in a repository",
    "hf://me/torch/a.pt": "is a torch checkpoint: only the whole file (100 kB) tells what is in it",
}


@pytest.mark.parametrize("address", REFUSED)
@pytest.mark.parametrize("verb", ["inspect", "doctor"])
def test_refusals_say_what_and_where(style: Hub, hub: Hub, tmp_path: Path, verb: str, address: str) -> None:
    hub.add("them/private", {META.name: META}, private=True)
    hub.add("them/gated", {META.name: META}, gated=True)
    hub.add("me/two", {"a.safetensors": META, "b.safetensors": META})
    hub.add("me/empty", {"README.md": b"nothing yet"})
    hub.add("me/torch", {"a.pt": b"PK\x03\x04" + bytes(100_000)})
    done = hub.run(verb, address, cwd=tmp_path)
    assert done.returncode == 1 and not list(tmp_path.iterdir())
    said = done.stderr if verb == "inspect" or "torch" not in address else done.stdout
    assert REFUSED[address] in said, done.stderr + done.stdout
    assert "Traceback" not in done.stderr and hub.token not in done.stderr + done.stdout


def test_candidates_can_be_typed(hub: Hub) -> None:
    hub.add("me/two", {"a.safetensors": META, "sub/b.safetensors": SILENT})
    lines = [line.split("try: ")[1] for line in hub.run("inspect", "me/two").stderr.splitlines() if "try: " in line]
    assert len(lines) == 2
    for line in lines:
        words = line.partition("   #")[0].split()
        assert hub.run(*words[1:]).returncode == 0


def test_an_invalid_token_and_none(style: Hub, hub: Hub) -> None:
    done = hub.run("inspect", "me/style", token="hf_" + "x" * 34)
    assert done.returncode == 1 and "does not accept your token" in done.stderr and "xxxx" not in done.stderr
    assert hub.run("inspect", "me/style", token=None).returncode == 0


def test_a_busy_hub_is_waited_for_and_a_dead_one_is_told(style: Hub) -> None:
    style.fail("GET", "/api/models/me/style", [429, 503], {"Retry-After": "0"})
    style.fail("GET", "resolve", [500])
    assert style.run("inspect", "me/style").returncode == 0
    assert not style.faults
    style.fail("GET", "/api/models/me/style", [429] * 6, {"Retry-After": "0"})
    done = style.run("inspect", "me/style")
    assert done.returncode == 1 and "too busy for me/style (HTTP 429)" in done.stderr


def test_a_server_that_names_files_outside_of_the_folder(hub: Hub, tmp_path: Path) -> None:
    names = ("../../evil.json", f"{tmp_path}/evil.json", "a\\..\\b.json")
    hub.add("me/evil", {META.name: META, **dict.fromkeys(names, b"{}")})
    done = hub.run("convert", "me/evil", "--to", "peft", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.pipelines
def test_a_base_on_the_hub_is_fused_into(hub: Hub, tmp_path: Path, pipelines) -> None:
    base = pipelines("2b")
    hub.add("zai-org/CogVideoX-2b", {**folder(base), "extra.bin": b"x" * 1000, "other/notes.txt": b"no component"})
    run = Case("sat_2b_r4").run(tmp_path)
    local, remote = tmp_path / "local", tmp_path / "remote"
    assert hub.run("fuse", base, run, "-o", local, "--transformer-only").returncode == 0
    done = hub.run("fuse", "zai-org/CogVideoX-2b", run, "-o", remote, "--transformer-only")
    assert done.returncode == 0, done.stderr
    name = "diffusion_pytorch_model.safetensors"
    ours, theirs = (load_file(place / name) for place in (remote, local))
    assert all((ours[key] == theirs[key]).all() for key in theirs)
    assert not hub.asked("GET", "extra.bin|text_encoder")
    whole = hub.run("fuse", "zai-org/CogVideoX-2b", run, "-o", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    assert (tmp_path / "whole" / "text_encoder").is_dir() and not hub.asked("GET", "extra.bin")


def test_verify_across(style: Hub, tmp_path: Path) -> None:
    assert style.run("verify", "me/style", META).returncode == 0
    other = style.run("verify", "me/style", SILENT)
    assert other.returncode == 1 and "hf://me/style/" in other.stdout
