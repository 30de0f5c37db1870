"""What the fuzzer begins with: recorded files of tests/data, small ones of tests/hostile, texts of every kind."""

from __future__ import annotations

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tomli
from hostile.builders import (
    CHECKPOINT,
    DENSE,
    QKV,
    checkpoint,
    diffusers_lora,
    factors,
    numbers,
    safetensors,
    sat,
    sat_lora,
    tensor,
)  # fmt: skip
from hostile.pickles import call, named, pickled

import loraforge

TESTS = Path(__file__).parents[1]
DATA, ROOT = TESTS / "data", TESTS.parent
WIDE = 64
"""Of the small adapters: the width of the tiny bases in tests/data."""
Files = dict[str, bytes]
"""Path within a folder -> content."""

LORA_CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "use_rslora": False, "use_dora": False, "bias": "none",
    "lora_bias": False,
    "target_modules": ["to_q", "to_k"], "exclude_modules": None, "layers_to_transform": None, "layers_pattern": None,
    "rank_pattern": {}, "alpha_pattern": {"^transformer_blocks\\.0\\.attn1\\.to_k": 4}, "modules_to_save": None,
    "init_lora_weights": True, "fan_in_fan_out": False, "base_model_name_or_path": "zai-org/CogVideoX-2b",
}  # fmt: skip
LORA_CONFIGS = (
    LORA_CONFIG,
    LORA_CONFIG | {"target_modules": r".*\.to_[qk]", "alpha_pattern": {}},
    LORA_CONFIG | {"target_modules": "all-linear", "alpha_pattern": {r"to_[k]": 4.5, "x": 1},
        "rank_pattern": {"to_q": 4}},
    LORA_CONFIG | {"layers_to_transform": [0], "layers_pattern": "transformer_blocks", "alpha_pattern": {}},
    LORA_CONFIG | {"layers_to_transform": 0, "layers_pattern": ["transformer_blocks"], "use_rslora": True},
    LORA_CONFIG | {"exclude_modules": ["to_k"], "rank_pattern": {"to.k": 4, "^to_k": 2}, "lora_alpha": 0.5},
    {"lora_alpha": 8}, {"r": 8, "lora_alpha": 8, "target_modules": ["to_q", "to_k"]},
    LORA_CONFIG | {"r": 2, "rank_pattern": {}, "alpha_pattern": {}}, LORA_CONFIG | {"target_modules": ["x"] * 100_001},
    LORA_CONFIG | {"alpha_pattern": {"(x": 1}}, LORA_CONFIG | {"alpha_pattern": {"(a+)+$": 1, "x" * 1001: 1}},
    LORA_CONFIG | {"use_rslora": 3}, LORA_CONFIG | {"layers_pattern": 3, "layers_to_transform": [1]},
    {"target_modules": 3, "r": 4, "lora_alpha": 1},
)  # fmt: skip

YAMLS = (
    "model:\n  network_config:\n    params:\n      num_frames: 13\n      latent_height: 60\n      modules:\n"
    "        pos_embed_config: {params: {text_length: 226}}\n        lora_config:\n"
    "          params: {r: 4, lora_alpha: 8}\n",
    "lora_config:\n  target: x.LoraMixin\n  params:\n    r: 4\n",
    "adapter:\n  type: lora\n  rank: 4\n  dtype: bfloat16\noutput_dir: /runs/a\n",
    "rank: 4\nlora_alpha: 64\noutput_dir: out\nuse_rslora: true\n",
    "config:\n  network_alpha: {desc: null, value: 8}\n  network_dim: {desc: null, value: 4}\n",
    "a: &a [1, 2]\nb: *a\nlora_alpha: !!int '8'\nr: 4\nnone: ~\nwhen: 2020-01-01\n? [x]\n: 1\n",
    "x: !!python/object:fuzzmark.Config {lora_alpha: 8, rank: 4}\ny: !!python/name:os.system\nz: !!python/tuple [1]\n",
    "- lora_alpha: 4\n  rank: 4\n- alpha: 1\n  alpha_pattern: {to_q: 1}\n  r: 2\n",
)
YAML_WORDS = (
    "!!bool x", '!!int ""', '!!float ""', "!!timestamp y", "!!binary x", "!!set {a}", "!!omap [a: 1]", "!!pairs [a: 1]",
    "!!null ''", "!!str 1", "!!seq {}", "!!map []", "!x y", "!!python/object/apply:fuzzmark.run [1]",
    "!!python/object/new:os.system [x]", "&a [*a]", "&a", "*a", "*b", "<<: *a", "[", "{", "}", "'", '"', '"\\x"', "|",
    ">",
    "? ", ": ", "- ", "---", "...", "%YAML 9.9", "\t", "1_0:60", "0x1f", "0b1", ".inf", ".nan", "1:30:00", "~", "@x",
    "`x",
    "&a [1,2]\nb: &b [*a,*a]\nc: &c [*b,*b]\nd: [*c,*c]", "[" * 60, "{a: " * 60, "lora_alpha: 4", "rank: 4", "r: 4",
    "network_alpha: 1", "lora_config: {params: {r: 4}}", "alpha_pattern: {x: 1}", "output_dir: x", "use_rslora: yes",
)  # fmt: skip
TOMLS = (
    '[model]\npath = "x"\n[adapter]\ntype = "lora"\nrank = 4\ndtype = "bfloat16"\n',
    'network_dim = 4\nnetwork_alpha = 8.0\noutput_dir = "x"\n[[a]]\nb = [1, 2]\nc = 1979-05-27T07:32:00Z\n',
)
TOML_WORDS = (
    "[", "]", "[[x]]", "x = ", '"', '"""', "'''", "=", "1979-05-27", "07:32:00", "inf", "-nan", "0x1F", "1e999",
    "{ a = 1 }",
    "network_alpha = 4", "[adapter]", "a.b.c = 1", "\x00", '"\\ud800"', "x" * 300, "[format]", "[layouts.x]",
    "summary = 1",
)  # fmt: skip
SCRIPTS = (
    "export RANK=4\nALPHA=${RANK}\naccelerate launch train.py \\\n"
    "  --rank $RANK \\\n  --lora_alpha $ALPHA --output_dir 'x'\n",
    "$RANK = 4\npython train.py `\n  --network_dim=$RANK --network_alpha $env:RANK  # --network_alpha 9\n",
    "@echo off\r\nset R=8\r\nrem --lora_alpha 1\r\n"
    "python train.py ^\r\n --lora_r %R% --lora_alpha !R! --use_rslora\r\n",
    ": <<'END'\n--lora_alpha 3\nEND\nA=$B\nB=$A\nfor lora_alpha in 1 2; do python x --lora_alpha $A --rank 4; done\n",
    'python t.py --lora_alpha "64" \\\n# comment\n  --rank 64\n',
)
SCRIPT_WORDS = (
    "--lora_alpha", "--rank 4", "--network-alpha=1", "$RANK", "${ALPHA}", "%R%", "!R!", "\\", "`", "^", "#", "rem ",
    "::",
    "ALPHA=1", "ALPHA+=1", "A = B / 2", "for A in 1 2", "'", '"', "<#", "#>", ": '", "echo --lora_alpha 2;", "|", "&",
    ";",
    "--use_rslora", "--use_rslora false", "$(RANK)", "$env:RANK", "\x00", "\r", "--alpha_pattern x", "$env:A = 4",
)  # fmt: skip
CARDS = (
    "---\nlicense: other\nlicense_name: x\nlicense_link: LICENSE\nbase_model: zai-org/CogVideoX-2b\n"
    "base_model_relation: adapter\ntags:\n  - lora # mine\n  - text-to-video\nlanguage: [en]\n---\n# A\ntext\n",
    "---\ntags: [a, b]\nwidget:\n- text: x\n  output:\n    url: a.mp4\n"
    "library_name: diffusers\npipeline_tag: text-to-video\n---\n",
    "\ufeff\n---\n{tags: [x], base_model: [a/b, c/d], datasets: &d [e/f], metrics: *d}\n---\nx\n",
    "---\nbase_model: 7\nbase_model_relation: x\npipeline_tag: x\ntags: a, b\nlibrary_name: 1\nwidget: 1\n"
    "license: [X!]\n---\n",
    "---\nlicense: other\nlicense_link: 1\nwidget: [1]\ndatasets: [1]\n---\n", "---\nlicense: other\n---\n",
    "---\n- a\n---\n",
    "---\nlicense: mit\nlicense_name: x\nbase_model: &b [c/d] # mine\n\n# more\nz: *b\n---\n", "---\na: &a [*a]\n---\n",
    "---\n---\n", "no head\n", "---\nopen\n", "---\r\ninstance_prompt: x\r\nlicense:\r\n- mit\r\n---\r\nx",
)  # fmt: skip
CARD_WORDS = (
    *YAML_WORDS, "---", "tags:", "- lora", "license: mit", "license: [other]", "base_model: 1", "widget: [1]",
    "widget: {}",
    "widget: [{text: 1}]", "tags: a, b", "# comment", "library_name: 1", "license_link: javascript:x",
    "base_model_relation: x",
    "pipeline_tag: [x]", "datasets: [[x]]", "2020-01-01: x", "null: 1", "? {a: b}\n: 1",
)  # fmt: skip
SETTING_WORDS = (
    "num_frames=49\nguidance_scale=1/2\nseed=0",
    "dtype=half\nheight=480",
    "components=[transformer, 'vae']\ncomponents=a",
    "guidance_scale=1/0\nfps=x",
    "device=cuda:1\ndtype=float64",
    "num_frames=1\nnum_frames=2",
    "nothing=1",
    "use_dynamic_cfg=yes",
)
SETTINGS = (
    {"num_frames": 49, "guidance_scale": 6.0, "height": 480, "width": 720, "scheduler": "CogVideoXDPMScheduler"},
    {"seed": 42, "dtype": "torch.bfloat16", "components": ["transformer"], "num_inference_steps": "50"},
)
MANIFEST = {
    "schema": "loraforge.manifest.v1", "base": "base", "variant": "CogVideoX-2B", "pipeline": "CogVideoXPipeline",
    "adapters": [{"path": "a.safetensors", "digest": "0" * 64, "strength": 1.0, "scalings": [1.0], "scale": "x"}],
    "stated": {}, "prompt": "x", "negative_prompt": "", "image": None, "video": None, "inputs": {},
    "settings": {"seed": 1},
    "anyway": False, "device": "cpu", "offload": "none", "tiling": False, "slicing": False,
    "latents": "sha256:" + "0" * 64,
    "versions": {}, "tool": "loraforge 0.1",
}  # fmt: skip


def lora(
    modules: tuple[str, ...] = ("0.attn1.to_q", "0.attn1.to_k"), prefix: str = "transformer.", rank: int = 4
) -> dict[str, np.ndarray]:
    """A small adapter of the tiny CogVideoX bases, in names of Diffusers or PEFT."""
    A, B = factors(rank, WIDE, WIDE)
    stems = [f"{prefix}transformer_blocks.{module}" for module in modules]
    return {f"{stem}.lora_{x}.weight": part for stem in stems for x, part in (("A", A), ("B", B))}


def kohya() -> dict[str, np.ndarray]:
    A, B = factors(4, WIDE, WIDE)
    stem = "lora_unet__transformer_blocks_0_attn1_to_q"
    return {f"{stem}.lora_down.weight": A, f"{stem}.lora_up.weight": B, f"{stem}.alpha": numbers(1).reshape(())}


@cache
def adapters() -> dict[str, tuple[Files, str]]:
    """Name -> the files of a source, and the path in it that a user gives (empty: the folder)."""
    base = "zai-org/CogVideoX-2b"
    header = {
        "format": "pt",
        "lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in LORA_CONFIG.items()}),
    }
    ours = {"format": "pt", "ss_network_dim": "4", "ss_network_alpha": "2", "ss_network_module": "networks.lora"}
    peft = lora(prefix="base_model.model.")
    yaml = YAMLS[0].encode()
    dora = peft | {
        f"{key[: -len('.lora_A.weight')]}.lora_magnitude_vector": numbers(WIDE) + 2 for key in peft if "lora_A" in key
    }
    shards = [f"adapter_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    halves = [
        {k: v for k, v in peft.items() if k.startswith("base_model.model.transformer_blocks.0.attn1." + x)}
        for x in ("to_q", "to_k")
    ]
    places = {key: name for name, half in zip(shards, halves, strict=True) for key in half}
    made: dict[str, tuple[Files, str]] = {
        "diffusers": ({"pytorch_lora_weights.safetensors": safetensors(lora(), header)}, ""),
        "plain": ({"style.safetensors": safetensors(lora(), {"lora_alpha": "8", "rank": "4"})}, "style.safetensors"),
        "kohya": ({"style.safetensors": safetensors(kohya(), ours)}, "style.safetensors"),
        "finetrainers": ({"x.safetensors": safetensors(lora(), {"format": "pt", "lora_config": json.dumps({"r": 4,
            "lora_alpha": 4, "target_modules": ["to_q", "to_k"]})})}, ""),
        "peft": ({"adapter_model.safetensors": safetensors(peft, {"format": "pt"}),
            "adapter_config.json": _json(LORA_CONFIG)}, ""),
        "dora": ({"adapter_model.safetensors": safetensors(dora),
            "adapter_config.json": _json(LORA_CONFIG | {"use_dora": True, "base_model_name_or_path": base})}, ""),
        "sharded": ({n: safetensors(h) for n, h in zip(shards, halves,
            strict=True)} | {"adapter_config.json": _json(LORA_CONFIG),
            "adapter_model.safetensors.index.json": _json({"metadata": {}, "weight_map": places})}, ""),
        "numbered": ({n: safetensors(h) for n, h in zip(shards, halves,
            strict=True)} | {"adapter_config.json": _json(LORA_CONFIG)}, shards[0]),
        "sat": ({"latest": b"1000", f"1000/{CHECKPOINT}": sat(), "training_config.yaml": yaml}, ""),
        "sat-wide": ({"latest": b"1", f"1/{CHECKPOINT}": sat(_sat()), "training_config.yaml": yaml}, f"1/{CHECKPOINT}"),
        "run": ({"args.yaml": YAMLS[3].encode(), "checkpoint-9/pytorch_lora_weights.safetensors": safetensors(lora())},
            ""),
        "logs": ({"style.safetensors": safetensors(lora()), "logs/a/1/hparams.yml": YAMLS[3].encode(),
            "config.yaml": YAMLS[4].encode(), "training_args.json": _json({"rank": 4, "lora_alpha": 2})},
            "style.safetensors"),
        "pipe": ({"epoch10/adapter_model.safetensors": safetensors(peft),
            "epoch10/adapter_config.json": _json({k: v for k, v in LORA_CONFIG.items() if k != "lora_alpha"}),
            "epoch10/x.toml": TOMLS[0].encode()}, "epoch10"),
        "several": ({"a/x.safetensors": safetensors(lora(), header), "b/y.safetensors": safetensors(kohya()),
            "note.txt": b"x"}, ""),
        "cache": ({"models--a--b/snapshots/0123/x.safetensors": safetensors(lora(), header),
            "models--a--b/refs/main": b"0123"}, "models--a--b"),
        "documents": ({"x.safetensors": safetensors(lora(), {"ss_network_args": json.dumps({"alpha": 2, "rank": 4}),
            "training_config": json.dumps({"lora_alpha": 2, "r": 4})})}, ""),
        "tiny": ({"x.safetensors": safetensors(diffusers_lora(), {"lora_alpha": "8"})}, ""),
    }  # fmt: skip
    for path in sorted((DATA / "trainers").glob("*/*.safetensors")) + sorted(
        (DATA / "architectures").glob("*/adapter.safetensors")
    ):
        if path.name != "expected.safetensors" and path.stat().st_size < 60_000:
            made[f"{path.parent.name}"] = ({path.name: path.read_bytes()}, path.name)
    torch = DATA / "videox_fun_peft" / "checkpoint-100.safetensors"
    return made | {"videox": ({torch.name: torch.read_bytes()}, torch.name)}


def _sat() -> dict[str, np.ndarray]:
    A, B = factors(4, WIDE, WIDE)
    return {
        f"{m}.matrix_{x}.{n}": part
        for m, ns in ((QKV, 3), (DENSE, 1))
        for n in range(ns)
        for x, part in (("A", A), ("B", B))
    }


@cache
def sat_base(*, learned: bool) -> bytes:
    """A base in SAT's names, with the table of positions that is computed, or with one that was trained."""
    if not learned:
        return (DATA / "bases" / "2b" / "sat_base" / "1" / CHECKPOINT).read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        loraforge.convert_base(DATA / "bases" / "5b_i2v", to="sat", out=Path(folder) / "out")
        return next((Path(folder) / "out").rglob("*.pt")).read_bytes()


def torch_archives() -> list[bytes]:
    """Archives with every way of writing a tensor that is read."""
    deep: Any = sat_lora()
    for key in ("module", "model", "state_dict", "module", "model"):
        deep = {key: deep}
    odd = checkpoint({"module": sat_lora()}, {"byteorder": b"little" * 9})
    small = sat_lora() | {
        "opaque": call("somewhere.Thing", 1),
        "param": call("torch._utils._rebuild_parameter", 1, 2, 3),
    }
    return [
        sat(),
        checkpoint(deep),
        odd,
        _aliased(),
        sat(small, iteration=3, extra=[1, 2.5, None, ("x",)]),
        _half(),
        adapters()["sat-wide"][0][f"1/{CHECKPOINT}"],
    ]


def _aliased() -> bytes:
    """Many tensors that share one storage."""
    tree = {f"a{n}.lora_A.weight": tensor("7", 500, (20, 25), (25, 1)) for n in range(60)}
    return checkpoint({"module": tree}, {"data/7": b"\0" * 2000})


def _half() -> bytes:
    typed = call(
        "torch._utils._rebuild_tensor_v3", call("x.y", 1), 0, (2,), (1,), False, {}, named("torch.float8_e4m3fn")
    )
    size = call("torch.Size", (1, 2))
    return checkpoint({"state_dict": {"a.lora_A.weight": numbers(4, 8, dtype="float16"), "t": tensor("7", 8, (2, 2),
        (4, 2)), "v3": typed, "s": size}, "loraforge": "{}"}, {"data/7": b"\0" * 64})  # fmt: skip


def pickles() -> list[bytes]:
    """The pickles of the archives, and small ones in every protocol."""
    import pickle
    from collections import OrderedDict

    from fuzz.containers import records

    trees = (
        {"a": [1, 2.5, None, True, "x", b"y", (1, (2, 3, 4, 5))], "b": {1: 2}, "n": 1 << 70},
        OrderedDict(a=1, b={3}),
        [frozenset({1})],
    )
    own = [pickle.dumps(tree, protocol) for tree in trees for protocol in range(6)]
    held = [
        next(code for name, code in records(data).items() if name.endswith("data.pkl")) for data in torch_archives()
    ]
    return [*own, *held, pickled({"x": call("x.y", 1)}), pickle.dumps(bytearray(b"x"), 5)]


@cache
def logs() -> list[str]:
    table = tomli.loads((TESTS / "unit" / "facts" / "failures.toml").read_text("utf-8"))
    texts, queue = list[str](), list[Any](table.values())
    for node in queue:
        if isinstance(node, str):
            texts.append(node)
        elif isinstance(node, list | dict):
            queue.extend(node.values() if isinstance(node, dict) else node)
    return [text for text in texts if len(text) > 15]


def long_logs() -> list[bytes]:
    """In the encodings of terminals, and longer than what is kept of a log."""
    first = logs()[0]
    return [first.encode("utf-16"), b"\xff\xfe\x00", (first + "\nline" * 1_100_000 + first).encode()]


def _json(tree: Any) -> bytes:
    return json.dumps(tree).encode()
