"""What must not leave for the Hub, wherever in a file it stands; and what somebody's header may not do to a card."""

from __future__ import annotations

import base64
import json
import random
import re
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import tomli
import yaml
from helpers.hub import Hub
from helpers.oracle import DATA, Case
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from loraforge.conversion.evidence import read_adapter
from loraforge.diagnosis.inspect import TRIGGERS
from loraforge.errors import LoraforgeError
from loraforge.files.safetensors import write_safetensors
from loraforge.format.locate import locate
from loraforge.publishing.allowed import Allowed, has_form
from loraforge.scale.rule import Choice
from loraforge.scale.run_folders import places

BASE = "zai-org/CogVideoX-2b"
NAME = "pytorch_lora_weights.safetensors"
META = DATA / "diffusers_save_lora_weights_meta" / NAME
DICE = {
    "b62": string.ascii_letters + string.digits,
    "b64": string.ascii_letters + string.digits + "+/",
    "hex": "0123456789abcdef",
    "upper": string.ascii_uppercase + string.digits,
    "lower": string.ascii_lowercase + string.digits,
    "digits": string.digits,
}


def secrets() -> dict[str, tuple[str, str]]:
    """Kind -> a text with a secret or place of that kind, and what must not be found of it."""
    made, table = {}, tomli.loads(Path(__file__).with_name("secrets.toml").read_text("utf-8"))
    for kind, entry in table.items():
        dice, drawn = random.Random(kind), list[str]()

        def draw(match: re.Match[str], dice: random.Random = dice, drawn: list[str] = drawn) -> str:
            drawn.append("".join(dice.choices(DICE[match[1]], k=int(match[2]))))
            return drawn[-1]

        text = re.sub(r"\{(\w+):(\d+)\}", draw, entry["text"])
        made[kind] = text, entry.get("find") or max(drawn, key=len)
    return made


SECRETS = secrets()
CONFIG = json.loads((DATA / "peft_plain" / "adapter_config.json").read_text("utf-8"))
OWN = {
    "tool": "loraforge 0.1.0", "command": "loraforge convert x.pt --to diffusers", "stored": "tensors",
    "source": {"path": "x.pt", "format": "sat", "size": 1, "digest": f"sha256:{'0' * 64}"},
    "scale": {"provenance": "recorded", "source": "lora_alpha 1 in training_config.yaml", "scalings": [0.25]},
    "applied": [1.0], "base_model": BASE, "fits": ["CogVideoX-2B"], "architecture": "cogvideox",
}  # fmt: skip


def everywhere(value: Any, secret: str) -> list[Any]:
    """The value with the secret in the place of each of its texts and keys, and beside them."""
    if isinstance(value, dict):
        inner = [{key: part} for key, entry in value.items() for part in everywhere(entry, secret)]
        return [*inner, {secret: 1}, {secret: {"r": 4}}, {**value, "note": secret}]
    if isinstance(value, list):
        return [[*value, secret]] if value else [[secret]]
    if isinstance(value, str | None):
        return [secret, f"{value} {secret}", f"{secret}.{value}", [secret], {secret: secret}]
    return [secret]


def headers(secret: str) -> list[dict[str, str]]:
    """Headers with a secret in each place that one can have."""
    words = places()["header"]
    free = {*TRIGGERS, *words["alpha"], *words["rank"], *words["rslora"], "base_model", "base_model_name_or_path"}
    free |= {
        f"modelspec.{name}" for name in "title author description date tags usage_hint license architecture".split()
    }
    free |= {"format", "software", "ss_base_model_version", "ss_output_name", "ss_tag_frequency", "ss_network_module"}
    free |= {*words["documents"], *words["configs"], "loraforge", "note", "workflow", "prompt", "kwargs"}
    texts = (secret, f"a {secret}", f"{secret} b", f"Wan {secret}", f"cogvideox-{secret}", f"ai-toolkit {secret}")
    found = [{key: text} for key in free for text in texts]
    found += [{secret: "1"}, {f"{secret}.lora_alpha": "1"}, {f"transformer.{secret}": "1"}]
    trees = {
        "loraforge": OWN,
        "lora_adapter_metadata": CONFIG,
        "lora_config": {f"transformer.{k}": v for k, v in CONFIG.items()},
    }
    training = {"lora_alpha": 4, "rank": 8, "split_qkv": "True", "more": {"r": 4, "x": "y"}}
    trees |= dict.fromkeys(words["documents"], training)
    trees |= {"software": {"name": "ai-toolkit", "version": "1"}}
    return found + [{key: json.dumps(odd)} for key, tree in trees.items() for odd in everywhere(tree, secret)]


def shows(data: str, needle: str) -> bool:
    """Whether something of a secret is in a text, also behind the escapes of JSON, YAML, addresses and base64."""
    codes = [base64.b64encode(b"x" * n + needle.encode())[4 : -4 - n].decode() for n in range(3)]
    return any(
        one in text
        for text in (data, unquote(data), data.replace("\\", ""))
        for one in (needle, *codes)
        if len(one) > 5
    )


@pytest.mark.parametrize("kind", SECRETS)
def test_no_secret_passes_in_any_place(kind: str) -> None:
    text, needle = SECRETS[kind]
    allowed = Allowed(["transformer.transformer_blocks.0.attn1.to_q.lora_A.weight"], BASE)
    for header in headers(text):
        kept = json.dumps(allowed.header(header), ensure_ascii=False)
        assert not shows(kept, needle), (header, kept)
    for config in everywhere(CONFIG, text):
        assert not shows(json.dumps(allowed.config(config), ensure_ascii=False), needle), config
    model = {
        "_class_name": "X",
        "sizes": [1, 2],
        "act": "silu",
        "chat_template": "{% if x %}</s>{% endif %}",
        "d": {"x": 1},
    }
    for config in [*everywhere(model, text), {"chat_template": f"{{% if x %}}{text}"}]:
        assert not shows(json.dumps(allowed.component(config), ensure_ascii=False), needle), config
    for form in ("file", "said", "text"):
        assert not has_form(form, text) and not has_form(form, f"a {text} b")


HARMLESS = {
    "format": "pt", "modelspec.title": "Disney style, v2.1 (CogVideoX-2B)", "modelspec.trigger_phrase": "ohwx man",
    "modelspec.description": "A LoRA for short films. It was trained on 70 clips!\nUse at 1.0.",
    "modelspec.date": "2024-11-20T10:00:00", "trigger_words": "动漫, 写实",
    "ss_network_alpha": "4.0", "ss_network_dim": "8",
    "transformer.lora_alpha": "4", "modelspec.architecture": "flux-1-dev/lora", "ss_base_model_version": "sd3m",
    "software": "ai-toolkit", "base_model": BASE, "ss_network_args": json.dumps({"split_qkv": "True"}),
    "lora_adapter_metadata": json.dumps(CONFIG), "loraforge": json.dumps(OWN),
}  # fmt: skip


@pytest.mark.parametrize("key", HARMLESS)
def test_what_describes_the_adapter_stays_as_it_is(key: str) -> None:
    names = [f"transformer.transformer_blocks.0.attn1.{name}.lora_A.weight" for name in ("to_q", "to_out.0")]
    assert Allowed(names, BASE).header({key: HARMLESS[key]}) == {key: HARMLESS[key]}


def test_every_entry_that_states_something_is_published() -> None:
    words = places()["header"]
    every = {**dict.fromkeys((*words["alpha"], *words["rank"]), "4"), **dict.fromkeys(words["rslora"], "true")}
    every |= {key: json.dumps({"lora_alpha": 4}) for key in (*words["configs"], *words["documents"])}
    every |= dict.fromkeys(TRIGGERS, "ohwx man")
    assert Allowed((), None).header(every) == every


RECORDED = [
    path
    for path in sorted(DATA.rglob("*.safetensors"))
    if not path.name.startswith(("expected", "forward")) and "bases" not in path.parts
]


def reading(path: Path) -> object:
    """What is read of a file: scale, provenance and model, or the refusal."""
    form, _, file = locate(path, None, Choice())
    try:
        adapter = read_adapter(form, file, Choice()) if form else None
    except LoraforgeError as refusal:
        return refusal.message.replace(str(path.parent), "")
    scale = adapter and (adapter.scale.provenance, adapter.scale.source.replace(str(path.parent), ""), adapter.scalings)
    evidence = adapter and adapter.shown.replace(str(path.parent), "")
    return adapter and (scale, adapter.architecture, evidence, adapter.rivals, sorted(adapter.modules))


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.relative_to(DATA).as_posix())
def test_what_is_published_of_a_file_reads_as_the_file(path: Path, tmp_path: Path) -> None:
    _, _, file = locate(path, None, Choice())
    folders = [tmp_path / "home", tmp_path / "there"]
    for folder, allowed in zip(folders, (None, Allowed(file.tensors, None)), strict=True):
        folder.mkdir()
        header = {key: (info.dtype, info.shape) for key, info in file.tensors.items()}
        metadata = allowed.header(file.metadata) if allowed else file.metadata
        write_safetensors(folder / path.name, header, ((key, [file.raw(key)]) for key in file.tensors), metadata)
        if (config := path.with_name("adapter_config.json")).exists():
            said = json.loads(config.read_text("utf-8"))
            (folder / config.name).write_text(json.dumps(allowed.config(said) if allowed else said), "utf-8")
    assert reading(folders[0] / path.name) == reading(folders[1] / path.name)


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


def left(hub: Hub) -> list[str]:
    """The kinds of secrets of which something was sent."""
    assert hub.received
    everything = sent(hub).decode("latin-1")
    return [kind for kind, (_, needle) in SECRETS.items() if shows(everything, needle)]


def full(values: dict[str, Any]) -> dict[str, Any]:
    """The values, and beside them every secret as a value and as a key."""
    secrets = {f"note {kind}": secret for kind, (secret, _) in SECRETS.items()}
    return {**secrets, **{secret: "1" for secret, _ in SECRETS.values()}, **values}


def secret_header(metadata: dict[str, str]) -> dict[str, str]:
    """A header that reads as `metadata` does, with every secret in its own entry, and one in each other."""
    texts = [secret for secret, _ in SECRETS.values()]
    words = places()["header"]
    read = {*words["alpha"], *words["rank"], *words["rslora"], *words["configs"], "ss_base_model_version"}
    read |= {"base_model", "base_model_name_or_path", "modelspec.architecture"}  # nonsense there is refused
    keys = sorted({key for one in headers("x") for key in one} - read)
    free = {key: texts[n % len(texts)] for n, key in enumerate(keys)}
    own = json.loads(metadata["loraforge"]) if "loraforge" in metadata else OWN
    steps = [
        {
            **STEP,
            "command": f"loraforge convert '{text}' --to diffusers",
            "source": {**STEP["source"], "path": text},
            "scale": {**STEP["scale"], "source": f"lora_alpha 1 in {text}"},
        }
        for text in texts
    ]
    config = {key: json.dumps(full(json.loads(metadata[key]))) for key in words["configs"] if key in metadata}
    return full(free) | metadata | config | {"loraforge": json.dumps(full({**own, "earlier": steps}))}


def test_no_secret_of_a_file_leaves(hub: Hub, made: Callable[..., Path]) -> None:
    """Neither of its header, nor of what lies beside it, nor of the base model's card."""
    texts = [secret for secret, _ in SECRETS.values()]
    every = yaml.safe_dump(full({"license": "mit", "license_name": texts[0], "base_model": texts}), allow_unicode=True)
    hub.add(BASE, {"README.md": f"---\n{every}---\n# {every}".encode()})
    out = made()
    with safe_open(out / NAME, framework="numpy") as file:
        metadata = dict(file.metadata())
    save_file(load_file(out / NAME), out / NAME, secret_header(metadata))
    for name in ("training_config.yaml", "args.yaml", "manifest.json", "adapter_config.json", "notes.md"):
        (out / name).write_text(every, "utf-8")
    done = hub.run("push", out / NAME, "me/style")
    assert done.returncode == 0, done.stderr[-3000:]
    assert left(hub) == [] and "entries of the header" in done.stderr
    text = hub.files("me/style")["README.md"].decode()
    assert "loraforge convert" in text and "license: mit" in text


def test_no_secret_of_a_peft_folder_leaves(hub: Hub, tmp_path: Path) -> None:
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        (tmp_path / name).write_bytes((DATA / "peft_plain" / name).read_bytes())
    weights = tmp_path / "adapter_model.safetensors"
    save_file(load_file(weights), weights, secret_header({"format": "pt"}) | {"loraforge": "{}"})
    texts = [secret for secret, _ in SECRETS.values()]
    config = {**CONFIG, "base_model_name_or_path": texts[0], "revision": texts[1], "peft_version": texts[2]}
    config |= {"target_modules": [*CONFIG["target_modules"], *texts], "auto_mapping": full(CONFIG["auto_mapping"])}
    (tmp_path / "adapter_config.json").write_text(json.dumps(full({**config, "task_type": texts[3]})), "utf-8")
    done = hub.run("push", tmp_path, "me/style", "--base-model", "zai-org/CogVideoX-5b")
    assert done.returncode == 0, done.stderr[-3000:]
    assert left(hub) == []
    there = json.loads(hub.files("me/style")["adapter_config.json"])
    assert there["target_modules"] == CONFIG["target_modules"] and there["r"] == CONFIG["r"]


def test_no_secret_leaves_with_what_a_conversion_writes(hub: Hub, tmp_path: Path) -> None:
    with safe_open(META, framework="numpy") as old:
        metadata = dict(old.metadata())
    source = tmp_path / f"{SECRETS['github_server'][0]}.safetensors"
    save_file(load_file(META), source, secret_header(metadata) | {"loraforge": "{}"})
    options = (
        "--to",
        "diffusers",
        "-o",
        tmp_path / "out",
        "--push",
        "me/style",
        "--base-model",
        BASE,
        "--architecture",
        "cogvideox",
    )
    done = hub.run("convert", source, *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert left(hub) == []


def test_a_scale_that_could_not_be_published_is_not_lost(hub: Hub, made: Callable[..., Path]) -> None:
    """An entry of a strange component stays at home, and the scale would stay with it."""
    out = made()
    save_file(load_file(out / NAME), out / NAME, {"strange.lora_alpha": "4", "base_model": BASE})
    done = hub.run("push", out, "me/style")
    assert done.returncode == 1 and "would be read at another scale" in done.stderr, done.stderr
    assert "me/style" not in hub.repos


@pytest.mark.parametrize(
    "text", ["made in /home/somebody/run", f"with {SECRETS['hf_token'][0]}", "C:\\Users\\somebody"]
)
def test_what_stays_out_of_the_header_stays_out_of_the_card(hub: Hub, made: Callable[..., Path], text: str) -> None:
    keys = ("title", "author", "description", "date", "usage_hint", "trigger_phrase")
    extra = {f"modelspec.{key}": text for key in keys} | {"trigger_words": text, "instance_prompt": text}
    done = hub.run("push", made(**extra), "me/style")
    assert done.returncode == 0, done.stderr
    everything = sent(hub)
    assert (
        b"somebody" not in everything and SECRETS["hf_token"][1].encode() not in everything and b"# style" in everything
    )
    assert "instance_prompt" not in hub.files("me/style")["README.md"].decode()


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
    assert done.returncode == 0 and b"somebody" not in sent(hub)
    stays = "1 entry of the header of vae/diffusion_pytorch_model.safetensors stays at home: made"
    assert stays in done.stderr
