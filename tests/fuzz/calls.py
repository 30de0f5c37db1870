"""Fuzzes whole calls of the command line, in this process, on folders whose files and shape were changed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from click.testing import CliRunner
from hostile.base_builders import SINGLE, sharded
from hostile.builders import CHECKPOINT, safetensors

from fuzz import seeds
from fuzz.containers import of_safetensors, of_torch
from fuzz.guided import watched
from fuzz.mutate import TEXTS, changed, of_bytes, of_json
from fuzz.parsers import plugin_files, text_change
from loraforge.cli.app import main
from loraforge.plugin.registry import Registry, use

ODD_NUMBERS = ("1", "0", "-1", "1e30", "nan", "x", "5e-324", "1e200", "0.7", "1/3", "1e999", "", "64")
FORMATS = ("diffusers", "peft", "sat", "comfyui", "diffsynth", "kohya", "lycoris", "musubi", "onetrainer", "original",
           "videox-fun", "xlabs", "other", "x")  # fmt: skip
PROGRAMS = ("diffusers", "peft", "comfyui", "x")
TYPED = tuple(text for text in TEXTS if "\0" not in text and text.isprintable())
"""What can be typed."""
LONGEST = 20_000
"""Characters of a message."""
_HIDDEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

YAML, TOML, SCRIPT = text_change(*seeds.YAML_WORDS), text_change(*seeds.TOML_WORDS), text_change(*seeds.SCRIPT_WORDS)
CHANGES: dict[str, Callable[[Random, bytes], bytes]] = {
    ".safetensors": of_safetensors, ".pt": of_torch, ".json": of_json, ".yaml": YAML, ".yml": YAML, ".toml": TOML,
    ".sh": SCRIPT, ".log": text_change(*seeds.logs()[:80]),
}  # fmt: skip


@cache
def bases() -> dict[str, seeds.Files]:
    """Base models: a transformer folder, one in shards, a pipeline, a SAT run, one file."""
    import tempfile

    held = seeds.DATA / "bases" / "2b"
    config, whole = (held / "config.json").read_bytes(), (held / SINGLE).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        parts = {path.name: path.read_bytes() for path in sharded()(Path(folder)).iterdir()}
    index = json.dumps(
        {"_class_name": "CogVideoXPipeline", "transformer": ["diffusers", "CogVideoXTransformer3DModel"]}
    )
    return {
        "folder": {"config.json": config, SINGLE: whole},
        "shards": parts | {"config.json": config},
        "pipeline": {"model_index.json": index.encode(), "transformer/config.json": config,
            f"transformer/{SINGLE}": whole},
        "sat": {"latest": b"1", f"1/{CHECKPOINT}": (held / "sat_base" / "1" / CHECKPOINT).read_bytes(),
                "training_config.yaml": seeds.YAMLS[0].encode()},
        "file": {"x.safetensors": whole},
        "adapter": {"x.safetensors": safetensors(seeds.lora())},
    }  # fmt: skip


def altered(rng: Random, files: seeds.Files) -> seeds.Files:
    """The files with one or two of them changed, now and then also lost, renamed or doubled, or as they are."""
    new = dict(files)
    if rng.random() < 0.25:
        return new
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(list(new))
        new[name] = changed(CHANGES.get(Path(name).suffix, of_bytes), rng, new[name])
    if rng.random() < 0.12:
        name = rng.choice(list(new))
        match rng.randrange(5):
            case 0 if len(new) > 1:
                del new[name]
            case 1:
                suffix = rng.choice((".bin", ".pt", ".safetensors", ".index.json", ".json", ".ckpt", ""))
                new[str(Path(name).with_suffix(suffix))] = new.pop(name)
            case 2:
                folder = rng.choice(("x", "checkpoint-1", "transformer", "adapter", "9", "logs/1"))
                new[f"{folder}/{Path(name).name}"] = new[name]
            case 3:
                odd = rng.choice(("adapter_config.json", "x.safetensors.index.json", "latest", "training_config.yaml",
                                  "adapter_model-00001-of-00002.safetensors", "args.yaml", "config.json",
                                  "model_index.json"))  # fmt: skip
                new[odd] = rng.choice((b"", b"{}", b"null", b"[]", b"1", new[name][:2000]))
            case 4:
                new = {
                    f"{rng.choice(('-x', 'a b', '[/x]', 'ü', 'x' * 200))}/{path}": data for path, data in new.items()
                }
    return {path: data for path, data in new.items() if not any(other.startswith(f"{path}/") for other in new)}


def written(place: Path, files: seeds.Files) -> Path:
    for name, data in files.items():
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return place


def stated(rng: Random) -> list[str]:
    """Options that state a scale, or none."""
    options = [
        *[[]] * 8, ["--alpha", rng.choice(ODD_NUMBERS)], ["--trained-scale", rng.choice(ODD_NUMBERS)], ["--alpha", "4",
            "--override-scale"],
        ["--trained-by", rng.choice(("cogvideo", "sd-scripts", "x-flux", "x"))], ["--as-loaded"], ["--as-in",
            rng.choice(PROGRAMS)],
    ]  # fmt: skip
    more = [
        *[[]] * 6,
        ["--architecture", rng.choice(("cogvideox", "flux", "wan", "x"))],
        ["--drop", rng.choice(("*", "*to_q*", "["))],
    ]
    return [*rng.choice(options), *rng.choice(more)]


def of_adapter(rng: Random, place: Path) -> tuple[list[str], bool]:
    """A call on a changed adapter; whether it may change the source."""
    name = rng.choice(list(seeds.adapters()))
    files, given = seeds.adapters()[name]
    source = written(place / "in", altered(rng, files)) / given
    if rng.random() < 0.03:
        _odd_neighbour(rng, place / "in")
    out, in_place = str(place / "out"), rng.random() < 0.2
    if rng.random() < 0.5:
        out += "/x.safetensors"
    json_ = rng.choice(([], [], ["--json"]))
    source = source if source.exists() or rng.random() < 0.3 else place / "in"
    match rng.randrange(16):
        case 0 | 1 | 2:
            mode = rng.choice(([], [], ["--json"], ["--skeleton"], ["--history"], ["--from", rng.choice(FORMATS)]))
            return ["inspect", str(source), *mode], False
        case 3 | 4 | 5:
            more = rng.choice(
                ([], [], ["--error", rng.choice(seeds.logs())], ["--settings", "num_frames=49"], ["--like", "sat"])
            )
            if rng.random() < 0.1:
                held = seeds.DATA / "bases" / "2b"
                more = ["--base", str(held)]
            return ["doctor", str(source), *more, *stated(rng), *json_], False
        case 6 | 7 | 8 | 9 | 10:
            to = rng.choice((*FORMATS, *FORMATS[:2] * 6))
            more = ["--lora-only"] if to == "sat" else []
            more += rng.choice(([], [], ["--scale-in", "metadata"], ["--dtype", rng.choice(("fp16", "bf16", "fp32"))],
                ["--dry-run"],
                                ["--pad-ranks"], ["--iteration", rng.choice(ODD_NUMBERS)], ["--ema"], ["--base-model",
                                    rng.choice(TYPED)]))  # fmt: skip
            more += ["--target-alpha", rng.choice(ODD_NUMBERS)] if rng.random() < 0.05 else []
            return ["convert", str(source), "--to", to, "-o", out, *more, *stated(rng), *json_], False
        case 11 | 12:
            other = written(place / "other", files) / given
            pair = [str(source), str(other)] if rng.random() < 0.5 else [str(other), str(source)]
            return ["verify", *pair, *stated(rng), *json_], False
        case 13:
            more = ["--in-place"] if in_place else ["-o", out]
            return ["stamp", str(source), *more, *stated(rng)], in_place
        case _:
            held = seeds.DATA / "bases" / "2b"
            more = rng.choice(([], ["--strength", rng.choice(ODD_NUMBERS)], ["--dtype", "fp16"], ["--json"]))
            return ["fuse", str(held), str(source), "--dry-run", "-o", out, *more, *stated(rng)], False


def _odd_neighbour(rng: Random, folder: Path) -> None:
    """A pipe, or a link to nothing, to itself or to a device, under a name that is looked for."""
    names = (
        "adapter_config.json",
        "training_config.yaml",
        "args.yaml",
        "x.safetensors.index.json",
        "x.safetensors",
        "latest",
    )
    path = folder / rng.choice(names)
    if not os.path.lexists(path):
        if rng.random() < 0.5:
            os.mkfifo(path)
        else:
            path.symlink_to(rng.choice(("nothing", path.name, os.devnull, "/dev/zero", ".")))


def of_base(rng: Random, place: Path) -> tuple[list[str], bool]:
    name = rng.choice(list(bases()))
    base = written(place / "in", altered(rng, bases()[name]))
    base = next(base.iterdir(), base) if name in ("file", "adapter") else base
    out = str(place / "out")
    match rng.randrange(4):
        case 0:
            return ["inspect", str(base), *rng.choice(([], ["--json"], ["--skeleton"], ["--history"]))], False
        case 1:
            adapter = written(place / "adapter", seeds.adapters()["diffusers"][0])
            return ["fuse", str(base), str(adapter), "--dry-run", "-o", out], False
        case _:
            to = rng.choice(("sat", "diffusers", "x"))
            more = rng.choice(
                (
                    [],
                    [],
                    ["--sample", rng.choice(("13x480x720", "49x8x8", "0x0x0", "9" * 400 + "x8x8", "x"))],
                    ["--dtype", "fp16"],
                )
            )
            return [
                "convert-base",
                str(base),
                "--to",
                to,
                "-o",
                out,
                "--dry-run" if rng.random() < 0.8 else "--json",
                *more,
            ], False


@cache
def _pair() -> tuple[bytes, bytes]:
    from helpers.learning import as_diffusers, cogvideox

    state = cogvideox(blocks=2, d=8, h=4, t=6, x=10)
    return safetensors(state), safetensors(as_diffusers(state))


def of_layouts(rng: Random, place: Path) -> tuple[list[str], bool]:
    one, other = _pair()
    one, other = (of_safetensors(rng, one), other) if rng.random() < 0.5 else (one, of_safetensors(rng, other))
    folder = written(place / "in", {"a.safetensors": one, "b.safetensors": other})
    more = rng.choice(
        ([], ["--onto", "cogvideox", "--names", "mine,diffusers"], ["--names", rng.choice(TYPED)], ["--drop", "x=y"])
    )
    words = [
        "layouts",
        "learn",
        str(folder / "a.safetensors"),
        str(folder / "b.safetensors"),
        "-o",
        str(place / "out.toml"),
        *more,
    ]
    return words, False


def of_log(rng: Random, place: Path) -> tuple[list[str], bool]:
    log = CHANGES[".log"](rng, rng.choice(seeds.logs()).encode())
    path = written(place / "in", {"x.log": log}) / "x.log"
    return ["explain", str(path), *rng.choice(([], ["--json"], ["--lang", "zh"], ["--file", rng.choice(TYPED)]))], False


def of_training(rng: Random, place: Path) -> tuple[list[str], bool]:
    """A training configuration or settings that are named."""
    texts = {
        ".yaml": seeds.YAMLS,
        ".toml": seeds.TOMLS,
        ".sh": seeds.SCRIPTS,
        ".json": tuple(map(json.dumps, seeds.LORA_CONFIGS)),
    }
    suffix = rng.choice(list(texts))
    files = {
        "x.safetensors": safetensors(seeds.lora()),
        f"x{suffix}": CHANGES[suffix](rng, rng.choice(texts[suffix]).encode()),
    }
    place_in = written(place / "in", files)
    if rng.random() < 0.2:
        settings = (
            written(place_in, {"s.json": of_json(rng, json.dumps(rng.choice(seeds.SETTINGS)).encode())}) / "s.json"
        )
        return ["doctor", str(place_in / "x.safetensors"), "--settings", str(settings)], False
    verb = rng.choice((["doctor"], ["convert", "--to", "peft", "-o", str(place / "out")]))
    return [*verb, str(place_in / "x.safetensors"), "--training-config", str(place_in / f"x{suffix}")], False


def of_plugin(rng: Random, place: Path) -> tuple[list[str], bool]:
    data = CHANGES[".toml"](rng, rng.choice(plugin_files()))
    path = str(written(place / "in", {"x.toml": data}) / "x.toml")
    source = str(written(place / "in", {"x.safetensors": safetensors(seeds.lora())}) / "x.safetensors")
    verbs = (["plugins", "check", path], ["formats", "--plugin", path], ["inspect", source, "--plugin", path],
             ["layouts", "--plugin", path], ["plugins", "list", "--plugin", path])  # fmt: skip
    return rng.choice((verbs[0], verbs[0], *verbs)), False


KINDS = (of_adapter,) * 14 + (of_base,) * 3 + (of_training,) * 3 + (of_log,) * 2 + (of_layouts, of_plugin)


counts: dict[str, int] = {}
"""Verb and exit code -> how many calls ended so."""


def part(place: Path, rng: Random, go_on: Callable[[], bool]) -> Iterator[list[dict[str, Any]]]:
    """What run.py calls."""
    import time

    time.sleep = lambda _: None
    watch, number = watched(place.parent), 0
    _pair(), bases()
    while go_on():
        number += 1
        folder = place / f"{number}"
        folder.mkdir()
        words, may_change = rng.choice(KINDS)(rng, folder)
        before, codes = listing(folder), list[Any]()

        def call(words: list[str] = words, codes: list[Any] = codes) -> None:
            result = CliRunner().invoke(main, words)
            codes.append(result)
            use(Registry())
            if result.exception and not isinstance(result.exception, SystemExit):
                raise result.exception

        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
        wrong = watch.faults(call, size)
        wrong += judged(codes[0], folder, before, may_change) if codes else []
        ended = f"{words[0]} {codes[0].exit_code}" if codes else f"{words[0]} stopped"
        counts[ended] = counts.get(ended, 0) + 1
        yield [
            {"what": f"{words[0]}: {line.replace(str(folder), '')}", "words": words, "folder": folder} for line in wrong
        ]
        shutil.rmtree(folder)


part.counts = {"ended": counts}  # type: ignore[attr-defined]


def judged(result: Any, folder: Path, before: Any, may_change: bool) -> list[str]:
    """What is wrong with how a call ended."""
    wrong = list[str]()
    code, text = result.exit_code, result.stderr
    if code not in (0, 1, 2):
        place = re.search(r"\((\w+ in \S+, line \d+)\)", text)
        wrong.append(f"exit code {code}: {place[1] if place else text[-200:]}")
    if code == 1 and "Error: " not in text and result.stdout == "":
        wrong.append("exit code 1 without a message")
    if hidden := _HIDDEN.search(result.output):
        wrong.append(f"prints {hidden[0]!r}")
    if len(text) > LONGEST:
        wrong.append("a message of more than 20,000 characters")
    after = listing(folder)
    new = sorted(after.keys() - before.keys())
    if code and new:
        wrong.append(f"refused, and left {', '.join(map(str, new))[:200]}")
    if hidden_rest := [name for name in new if name.endswith(".part") or ".partial" in name]:
        wrong.append(f"left {hidden_rest}")
    if not may_change and any(after.get(name) != state for name, state in before.items()):
        wrong.append("changed its source")
    return wrong


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below a folder -> its size and time of change."""
    states = ((path, path.lstat()) for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
    return {str(path.relative_to(folder)): (state.st_size, state.st_mtime_ns) for path, state in states}
