"""Every reader of foreign bytes: what it begins with, how its input is changed, and how it is called."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from hostile.base_builders import INDEX, SINGLE
from hostile.builders import CHECKPOINT, numbers, safetensors

import loraforge
from fuzz import seeds
from fuzz.containers import of_pickle, of_safetensors, of_torch
from fuzz.mutate import of_bytes, of_json, of_text
from loraforge.algebra.dtypes import FLOATS
from loraforge.errors import LoraforgeError
from loraforge.facts import given_settings, logs, symptoms
from loraforge.files import opening, pickles, shards, texts, torch_read
from loraforge.hub import address
from loraforge.live.manifest import read_manifest
from loraforge.names.check import check
from loraforge.plugin.registry import Registry, use
from loraforge.publishing import front_matter
from loraforge.publishing.push import destination
from loraforge.scale import peft_config, training_config

Change = Callable[[Random, bytes], bytes]


@dataclass(frozen=True)
class Parser:
    """One reader."""

    name: str
    seeds: Callable[[], list[bytes]]
    change: Change
    read: Callable[[bytes, Path], object]
    """Called with the input and an empty folder. May raise LoraforgeError."""
    files: tuple[str, ...] = ()
    """Files of loraforge/ whose branches it is to reach."""


def text_change(*words: str) -> Change:
    def change(rng: Random, data: bytes) -> bytes:
        if rng.random() < 0.05:
            return of_bytes(rng, data)
        text = of_text(rng, data.decode("utf-8", "replace"), words)
        return text.encode("utf-16", "surrogatepass") if rng.random() < 0.01 else text.encode("utf-8", "surrogatepass")

    return change


def _put(place: Path, name: str, data: bytes) -> Path:
    path = place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _tensors(name: str) -> Callable[[bytes, Path], object]:
    """Opens the file, and reads every tensor."""

    def read(data: bytes, place: Path) -> None:
        file, _ = opening.open_tensors(_put(place, name, data))
        for key in file.tensors:
            if file.tensors[key].nbytes <= 1 << 20 and file.tensors[key].dtype in FLOATS:
                file[key].tobytes()

    return read


def _pickle(data: bytes, place: Path) -> None:
    storages = {"0": (0, 1 << 20), "100": (64, 1 << 10)}
    pickles.load(data, str(place), torch_read._calls("x"), torch_read._persistent(storages, "x"))


def _index(data: bytes, place: Path) -> None:
    files, _ = seeds.adapters()["sharded"]
    for name, content in files.items():
        _put(place, name, content)
    index = _put(place, "adapter_model.safetensors.index.json", data)
    for path in (index, place / "adapter_model-00001-of-00002.safetensors", place / "adapter_model.safetensors"):
        with suppress(LoraforgeError):
            shards.opened(path, opening.open_tensors)
    first, second = (place / name for name in list(files)[:2])
    with suppress(LoraforgeError):  # a part under another name
        shards.opened(first.rename(place / "style.safetensors"), opening.open_tensors)
    for content in (safetensors(seeds.lora(), {"a": "1"}), seeds.torch_archives()[0], second.read_bytes()):
        second.write_bytes(safetensors({"x": numbers(2)}, {"a": "2"}))
        first.write_bytes(content)
        with suppress(LoraforgeError):
            shards.opened(first, opening.open_tensors)
    shards.alone(sorted(place.iterdir()))


RANKS = {f"transformer_blocks.{n}.attn1.{part}": 4 for n in (0, 1) for part in ("to_q", "to_k")} | {"proj": 8}


def _peft(data: bytes, place: Path) -> None:
    config = texts.read_json(_put(place, "adapter_config.json", data))
    peft_config.unsupported(config)
    for ranks in ({k: v for k, v in RANKS.items() if v == 4}, RANKS, {"to_q": 2}):
        with suppress(LoraforgeError):
            made = peft_config.rule(config, ranks, "x", "file", lambda: dict.fromkeys(RANKS, 4))
            peft_config.config(ranks, {path: made.of(path, rank) for path, rank in ranks.items()}, older=True)
        peft_config.untargeted(config, ranks, "x")


def _recorded(data: bytes, place: Path) -> None:
    """The three places of a scale: header, configuration and training files. The input is JSON of all of them."""
    table = _table(data)
    header = table.get("header") if isinstance(table.get("header"), dict) else {}
    header = {key: value if isinstance(value, str) else json.dumps(value) for key, value in (header or {}).items()}
    names = (
        table.get("name") if table.get("name") in ("adapter_model.safetensors", "x.safetensors") else "x.safetensors"
    )
    tensors = seeds.kohya() if table.get("kohya") is True else seeds.lora(prefix="base_model.model.", rank=4)
    tensors |= {"base_model.model.proj.lora_B.bias": numbers(4)} if table.get("bias") else {}
    path = _put(place, f"run/{names}", safetensors(tensors, header))
    for name in ("adapter_config.json", "args.yaml", "train.sh", "other/training_config.yaml"):
        if isinstance(text := table.get(name), str):
            _put(place, f"run/{name}", text.encode("utf-8", "surrogatepass"))
    if table.get("second"):
        _put(place, "run/second.safetensors", safetensors(tensors))
    stated: dict[str, Any] = {"alpha": v} if isinstance(v := table.get("alpha"), float) and v == v else {}
    if table.get("named") in ("train.sh", "args.yaml", "adapter_config.json", "nothing.yaml"):
        stated = {"training_config": path.parent / table["named"]}
    loraforge.read(
        path, architecture="cogvideox", override_scale=table.get("override") is True and bool(stated), **stated
    )


RECORDED = [
    {"header": {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in seeds.LORA_CONFIG.items()})}},
    {"header": {"lora_config": '{"r": 4, "lora_alpha": 2, "target_modules": ["to_q"]}'}, "name": "x.safetensors"},
    {"header": {"lora_alpha": "8", "rank": "4", "use_rslora": "true"}, "args.yaml": seeds.YAMLS[3]},
    {"header": {"ss_network_dim": "4", "ss_network_alpha": "none", "ss_network_module": "networks.lora"},
        "kohya": True},
    {"header": {"ss_network_args": '{"alpha": 2, "r": 4}', "training_config": '{"lora_alpha": 2, "rank": 4}'}},
    {"name": "adapter_model.safetensors", "adapter_config.json": json.dumps(seeds.LORA_CONFIG), "header": {}},
    {"name": "x.safetensors", "adapter_config.json": json.dumps(seeds.LORA_CONFIGS[-1]),
        "header": {"alpha": "dynamic"}},
    {"train.sh": seeds.SCRIPTS[0], "other/training_config.yaml": seeds.YAMLS[0], "header": {}, "alpha": 4.0,
        "override": True},
    {"header": {"loraforge": '{"scale": {"provenance": "recorded", "applied": [1.0], "stored": "tensors"}}'}},
    {"header": {"lora_adapter_metadata": '{"a.r": 4, "a.lora_alpha": 2, "a.use_dora": true}'}},
    {"header": {"lora_adapter_metadata": '{"r": 4, "lora_alpha": 2, "target_modules": ["to_q"]}'}},
    {"header": {"lora_config": "[]"}},
    {"header": {"lora_adapter_metadata": '{"r": 4, "lora_alpha": 2, "init_lora_weights": "pissa"}'}},
    {"header": {"lora_config": "x"}},
    {"header": {"lora_alpha": "8", "rank": "16"}}, {"header": {"lora_alpha": "8", "rank": "16"}, "kohya": True},
    {"header": {"rank": "0", "alpha": "2"}, "bias": True, "adapter_config.json": "{}",
        "name": "adapter_model.safetensors"},
    {"header": {}, "adapter_config.json": json.dumps(seeds.LORA_CONFIG), "name": "adapter_model.safetensors",
        "bias": True},
    {"header": {}, "adapter_config.json": "{\"x\": 1}"}, {"header": {}, "adapter_config.json": "["}, {"header": {},
        "other/args.yaml": "x"},
    {"header": {}, "adapter_config.json": json.dumps(seeds.LORA_CONFIG | {"r": 8})}, {"header": {},
        "args.yaml": "rank: 8\nlora_alpha: 4"},
    {"header": {}, "adapter_config.json": json.dumps({"r": 4, "lora_alpha": 2, "peft_type": "LORA"}), "second": True},
    {"header": {}, "train.sh": seeds.SCRIPTS[1], "named": "train.sh"}, {"header": {},
        "args.yaml": "rank: 8\nlora_alpha: 4", "named": "args.yaml"},
    {"header": {}, "adapter_config.json": json.dumps(seeds.LORA_CONFIG), "named": "adapter_config.json"},
    {"header": {}, "named": "nothing.yaml"},
    {"header": {"loraforge": '{"scale": {"provenance": "recorded", "applied": [0.5], "stored": "metadata"}}'}},
    {"header": {"text_encoder.lora_alpha": "3", "transformer.lora_alpha": "8", "transformer.rank": "8"}},
]  # fmt: skip


def _card(data: bytes, place: Path) -> None:
    """Fields, their faults, and a merge that must keep what it does not set."""
    front, body = front_matter.split(data.decode("utf-8", "replace"))
    front_matter.split(front_matter.join(front, body))
    old = front_matter.fields(front, "https://x.invalid")
    list(front_matter.problems(old))
    tags = old.get("tags") if isinstance(old.get("tags"), list) else []
    new = {"tags": [*tags, "new"], "license": None, "base_model": "a/b", "x-y": {"a": [1, "\x85"]}}
    made = front_matter.fields(front_matter.merged(front, new), "x")
    for key, value in new.items():
        assert made.get(key) == value, f"{key} is {made.get(key)!r:.80}"
    kept = {key: json.dumps(value, default=str) for key, value in old.items() if key not in new}
    assert {key: json.dumps(value, default=str) for key, value in made.items() if key not in new} == kept, (
        "a field was changed"
    )


def _settings(data: bytes, place: Path) -> None:
    path = _put(place, "settings.json", data)
    with suppress(LoraforgeError):
        given_settings.parse(path)
    for item in data.decode("utf-8", "replace").split("\n")[:4]:
        if "=" in item:
            for value in given_settings.parse([item]).values():
                given_settings.words(value)


def _base(data: bytes, place: Path) -> None:
    """A base in one of both layouts with its configurations. The input is JSON of all that is said of it."""
    said = _table(data)
    name = said.get("base") if said.get("base") in ("2b", "5b", "5b_i2v", "1.5_t2v") else "2b"
    held = seeds.DATA / "bases" / str(name)
    text = said.get("config") if isinstance(said.get("config"), str) else json.dumps(said.get("config"))
    base = _put(place, "base/config.json", (text or "").encode("utf-8", "surrogatepass")).parent
    if said.get("sat"):
        (base / "config.json").unlink()
        _put(base, "latest", b"1")
        (base / "1").mkdir()
        (base / "1" / CHECKPOINT).write_bytes(seeds.sat_base(learned=said.get("sat") == "learned"))
        if isinstance(said.get("yaml"), str):
            _put(base, "training_config.yaml", said["yaml"].encode("utf-8", "surrogatepass"))
    else:
        (base / SINGLE).symlink_to(held / SINGLE)
    sample = said.get("sample") if isinstance(said.get("sample"), str) else None
    to = "diffusers" if said.get("sat") else "sat"
    loraforge.convert_base(base, to=to, out=place / "out", sample=sample, dry_run=True)


def _table(data: bytes) -> Mapping[str, Any]:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _address(data: bytes, place: Path) -> None:
    """A text that may be an address on the Hub. Nothing is asked for."""
    text = data.decode("utf-8", "replace")
    with suppress(LoraforgeError):
        address.address(text)
    address.perhaps(text)
    destination(text)


def _base_index(data: bytes, place: Path) -> None:
    held = seeds.DATA / "bases" / "2b"
    base = _put(place, f"base/{INDEX}", data).parent
    _put(place, "base/config.json", (held / "config.json").read_bytes())
    for n in (1, 2):
        (base / f"diffusion_pytorch_model-{n:05}-of-00002.safetensors").symlink_to(held / SINGLE)
    loraforge.inspect(base)


def _pipeline(data: bytes, place: Path) -> None:
    held = seeds.DATA / "bases" / "2b"
    index = _put(place, "base/model_index.json", data)
    (index.parent / "transformer").symlink_to(held)
    loraforge.inspect(index.parent)


def _plugin(data: bytes, place: Path) -> None:
    path = _put(place, "plugin.toml", data)
    with suppress(LoraforgeError):
        check(path)
    if len(data) % 8:  # what follows takes long
        return
    try:
        loraforge.use_plugin(path)
        loraforge.formats()
    finally:
        use(Registry())


def _log(data: bytes, place: Path) -> None:
    for log in (logs.read_log(io.BytesIO(data)), logs.log_of(data.decode("utf-8", "replace"))):
        for found in symptoms.find(log):
            found.to_dict("en", "x")


def _training(suffix: str) -> Callable[[bytes, Path], object]:
    def read(data: bytes, place: Path) -> None:
        path = _put(place, f"x{suffix}", data)
        training_config.stated_in(place)
        training_config.read_training_config(path)

    return read


def plugin_files() -> list[bytes]:
    page = (seeds.ROOT / "docs" / "add-a-format.md").read_text("utf-8")
    blocks = [block.partition("```")[0] for block in page.split("```toml\n")[1:]]
    small = min((seeds.ROOT / "loraforge" / "names" / "architectures").glob("*.toml"), key=lambda p: p.stat().st_size)
    flavours = sorted((seeds.ROOT / "loraforge" / "format" / "flavours").glob("*.toml"))
    return [*(block.encode() for block in blocks), small.read_bytes(), *(path.read_bytes() for path in flavours[:4])]


def _bytes(*texts: str) -> Callable[[], list[bytes]]:
    return lambda: [text.encode() for text in texts]


def _dumped(*trees: Any) -> Callable[[], list[bytes]]:
    return lambda: [json.dumps(tree).encode() for tree in trees]


def _safetensors() -> list[bytes]:
    files = [
        content
        for held, _ in seeds.adapters().values()
        for name, content in held.items()
        if name.endswith("safetensors")
    ]
    return [content for content in files if len(content) < 20_000]


def _bases() -> list[bytes]:
    names = ("2b", "5b", "5b_i2v", "1.5_t2v")
    own = [
        {"base": name, "config": json.loads((seeds.DATA / "bases" / name / "config.json").read_text())}
        for name in names
    ]
    yaml = seeds.YAMLS[0]
    return [json.dumps(tree).encode() for tree in (*own, *(
        {"sat": 1, "yaml": yaml}, {"sat": "learned", "yaml": yaml}, {"sat": "learned", "sample": "9x64x64"},
        {"sat": "learned"}, {"sat": 1, "yaml": yaml, "sample": "13x480x720"}, {"sat": 1, "sample": "9x64x64"},
        {"sat": 1},
        {"sat": 1, "sample": "49x8x9"}, {"sat": 1, "sample": "x"}, {"sat": 1, "yaml": yaml.replace("60", "61")},
        {"sample": "9x64x64", **own[1]},
    ))]  # fmt: skip


_PLACES = {
    f"base_model.model.transformer_blocks.0.attn1.{part}.lora_{x}.weight": f"adapter_model-0000{n}-of-00002.safetensors"
    for n, part in ((1, "to_q"), (2, "to_k"))
    for x in "AB"
}
_INDEX = {"metadata": {"total_size": 1}, "weight_map": _PLACES}
_SHARD_WORDS = tuple(seeds.adapters()["sharded"][0])
_PIPELINE = {
    "_class_name": "CogVideoXPipeline",
    "_diffusers_version": "0.31.0",
    "transformer": ["diffusers", "X"],
    "vae": [None, None],
}

ADDRESSES = (
    "me/style", "hf://me/style@main/a.safetensors",
    "https://huggingface.co/me/style/blob/main/x/y.safetensors?download=true",
    "https://huggingface.co/me/style/tree/refs%2Fpr%2F1", "huggingface.co/datasets/me/x", "hf://me/style@a/b/c",
    "hf://spaces/me/x",
    "https://x:y@huggingface.co/me/style", "https://hf-mirror.invalid/me/style",
    "hf://me/style@0123456789abcdef0123456789abcdef01234567/x",
    "hf://me", "hf://", "me/style@", "https://huggingface.co/me/style/commit/abc", "https://huggingface.co/me/style#x",
    "me/../style",
    "https://huggingfac[e.co/x/y", "me/style.safetensors", "./me/style",
    "https://huggingface.co/me/style/resolve/main/a%20b.bin",
)  # fmt: skip

PARSERS: dict[str, Parser] = {
    parser.name: parser
    for parser in (
        Parser("safetensors", _safetensors, of_safetensors, _tensors("x.safetensors"), ("files/safetensors",
            "files/opening")),
        Parser("torch", seeds.torch_archives, of_torch, _tensors("x.pt"), ("files/torch_read", "files/pickles")),
        Parser("pickle", seeds.pickles, of_pickle, _pickle, ("files/pickles",)),
        Parser("opening", lambda: [b"{}", b"\x80\x02N.", b"GGUF", *(b for b, *_ in opening._BEGINNINGS if isinstance(b,
            bytes))],
               of_bytes, _tensors("x.bin"), ("files/opening",)),
        Parser("json", _dumped(seeds.LORA_CONFIG, _INDEX), of_json, lambda data, place: texts.read_json(_put(place,
            "x", data)), ("files/texts",)),
        Parser("yaml", _bytes(*seeds.YAMLS), text_change(*seeds.YAML_WORDS), lambda data,
            place: texts.read_yaml(_put(place, "x", data)), ("files/texts",)),
        Parser("training-yaml", _bytes(*seeds.YAMLS), text_change(*seeds.YAML_WORDS), _training(".yaml"),
            ("scale/training_config",)),
        Parser("training-json", _dumped({"rank": 4, "lora_alpha": 8}, {"a": [{"network_dim": 4, "network_alpha": 2,
            "b": {"value": 1}}]}),
               of_json, _training(".json"), ("scale/training_config",)),
        Parser("training-toml", _bytes(*seeds.TOMLS), text_change(*seeds.TOML_WORDS), _training(".toml"),
            ("scale/training_config",)),
        Parser("script", _bytes(*seeds.SCRIPTS), text_change(*seeds.SCRIPT_WORDS), _training(".sh"),
            ("scale/training_config",)),
        Parser("index", _dumped(_INDEX), lambda r, d: of_json(r, d, _SHARD_WORDS), _index, ("files/shards",)),
        Parser("peft", _dumped(*seeds.LORA_CONFIGS), of_json, _peft, ("scale/peft_config",)),
        Parser("recorded", _dumped(*RECORDED), of_json, _recorded, ("scale/recorded",)),
        Parser("card", _bytes(*seeds.CARDS), text_change(*seeds.CARD_WORDS), _card, ("publishing/front_matter",)),
        Parser("settings", _dumped(*seeds.SETTINGS), lambda r, d: of_json(r, d, tuple(given_settings.KEYS)), _settings,
            ("facts/given_settings",)),
        Parser("base", _bases, of_json, _base, ("base/config",)),
        Parser("setting-words", _bytes(*seeds.SETTING_WORDS), text_change(*seeds.SETTING_WORDS), _settings,
            ("facts/given_settings",)),
        Parser("address", _bytes(*ADDRESSES), text_change("hf://", "@", "/", "..", "%2F", "?", "#", "models/",
            "https://"), _address, ("hub/address",)),
        Parser("base-index", _dumped(_INDEX), of_json, _base_index, ()),
        Parser("pipeline", _dumped(_PIPELINE), of_json, _pipeline, ()),
        Parser("plugin", plugin_files, text_change(*seeds.TOML_WORDS), _plugin, ("plugin/datafile",)),
        Parser("manifest", _dumped(seeds.MANIFEST), of_json, lambda data, place: read_manifest(_put(place, "x.json",
            data)), ()),
        Parser("log", lambda: [*(text.encode() for text in seeds.logs()), *seeds.long_logs()],
            text_change(*seeds.logs()[:60]), _log,
            ("facts/logs", "facts/symptoms")),
    )
}  # fmt: skip
