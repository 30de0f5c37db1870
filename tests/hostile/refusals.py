"""The inputs of refusals.toml: each makes the files that its commands name, in an empty folder."""

from __future__ import annotations

import gzip
import json
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import loraforge
from hostile.base_builders import ADAPTER, BASES, DATA, INDEX, SHARDS, SINGLE, STEM, sharded, weights
from hostile.builders import checkpoint, diffusers_lora, factors, numbers, run_folder, safetensors, sat
from hostile.pickles import call
from loraforge.files.opening import open_tensors

Tensors = dict[str, np.ndarray]
ENTRY = "lora_adapter_metadata"
PLAIN = {"format": "pt"}
TO_Q = "transformer_blocks.0.attn1.to_q"
CONFIG = {"peft_type": "LORA", "r": 4, "lora_alpha": 2, "target_modules": ["to_q"]}
YAML = "model: {{network_config: {{params: {{modules: {{lora_config: {{params: {{r: {}}}}}}}}}}}}}\n"


def lora(*paths: str, prefix: str = "transformer.", rank: int = 4, width: int = 8, words: str = "A B") -> Tensors:
    """An adapter of these modules, in Diffusers' spelling unless told otherwise."""
    A, B = factors(rank, width, width)
    a, b = words.split()
    pairs = ((f"{prefix}{path}.lora_", ".weight") for path in paths or (TO_Q,))
    return {f"{start}{word}{end}": factor for start, end in pairs for word, factor in ((a, A), (b, B))}


def file(name: str, tensors: Mapping[str, np.ndarray], metadata: Any = PLAIN) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(safetensors(tensors, metadata))

    return make


def bytes_of(**files: bytes | str) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        for name, data in files.items():
            path = place / name.replace("__", "/").replace("_DOT_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data.encode() if isinstance(data, str) else data)

    return make


def copy(source: Path, name: str) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        (shutil.copytree if source.is_dir() else shutil.copyfile)(source, place / name)

    return make


def both(*makers: Callable[[Path], object]) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        for each in makers:
            each(place)

    return make


def peft(name: str = "x", tensors: Tensors | None = None, **said: Any) -> Callable[[Path], None]:
    """A folder of PEFT with its configuration."""

    def make(place: Path) -> None:
        whole = lora(prefix="base_model.model.") if tensors is None else tensors
        file(f"{name}/adapter_model.safetensors", whole)(place)
        config = {key: value for key, value in {**CONFIG, **said}.items() if value is not ...}
        (place / name / "adapter_config.json").write_text(json.dumps(config))

    return make


def header(**entries: Any) -> dict[str, str]:
    """The header entry that Diffusers writes, for the transformer."""
    return {**PLAIN, ENTRY: json.dumps({f"transformer.{key}": value for key, value in entries.items()})}


def changed(name: str, **said: Any) -> Callable[[Path], None]:
    """The config.json of a base with other entries."""

    def make(place: Path) -> None:
        path = place / name / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **said}))

    return make


def gone(*names: str) -> Callable[[Path], None]:
    def make(place: Path) -> None:
        for name in names:
            (shutil.rmtree if (place / name).is_dir() else Path.unlink)(place / name)

    return make


def moved(old: str, new: str) -> Callable[[Path], None]:
    return lambda place: (place / old).rename(place / new)


def shards(change: Callable[[dict[str, Any]], Any] = lambda table: table) -> Callable[[Path], None]:
    return lambda place: sharded(change)(place)


def quantised(place: Path) -> None:
    copy(BASES / "2b", "base")(place)
    packed = {key: np.asarray(value * 0, np.uint8) for key, value in weights().items()}
    (place / "base" / SINGLE).write_bytes(safetensors(packed))


def _torch(name: str, tree: Any) -> Callable[[Path], None]:
    return lambda place: (place / name).write_bytes(checkpoint(tree)) and None


def _sat(name: str = "x.pt", **tensors: np.ndarray) -> Callable[[Path], None]:
    whole = {f"model.diffusion_model.transformer.layers.0.attention.{k}": v for k, v in tensors.items()}
    return lambda place: (place / name).write_bytes(sat(whole or None)) and None


def _fused(place: Path) -> None:
    loraforge.fuse(place / "base", [place / "x.safetensors"], place / "held")


def _two(place: Path) -> None:
    copy(ADAPTER, "x.safetensors")(place)
    file("y.safetensors", lora(TO_Q, rank=8, width=64), header(r=8, lora_alpha=4))(place)


def _changed_since(place: Path) -> None:
    loraforge.convert(place / "x.safetensors", to="peft", out=place / "out")
    path = place / "out" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 16}))


def _multiplied(place: Path) -> None:
    loraforge.convert(place / "y.safetensors", to="diffusers", out=place / "x.safetensors")
    tensors, head = opened(place / "x.safetensors")
    (place / "x.safetensors").write_bytes(safetensors({key: value * 2 for key, value in tensors.items()}, head))


def _unsaid(place: Path) -> None:
    tensors, _ = opened(DATA / "architectures" / "flux_kohya_split_qkv" / "adapter.safetensors")
    (place / "x.safetensors").write_bytes(safetensors(tensors, PLAIN))


def _renamed(place: Path) -> None:
    """The same model in names of its own, and one tensor more."""
    tensors, head = opened(BASES / "2b" / SINGLE)
    mine = {key.replace("transformer_blocks", "my_blocks").replace("attn1", "att"): v for key, v in tensors.items()}
    (place / "c.safetensors").write_bytes(safetensors(mine, head))
    (place / "d.safetensors").write_bytes(safetensors({**mine, "more.weight": numbers(5, 9) + 77}, head))


def opened(path: Path) -> tuple[Tensors, dict[str, str]]:
    found = open_tensors(path)[0]
    return {key: np.array(found[key]) for key in found.tensors}, dict(found.metadata)


A, B = factors()
BASE = both(copy(ADAPTER, "x.safetensors"), copy(BASES / "2b", "base"))
RUN = lambda place: run_folder(place / "run", "1000", "2000", latest="2000", config=YAML.format(4))  # noqa: E731
PIPE = both(copy(ADAPTER, "x.safetensors"), lambda place: _pipeline(place))


def _pipeline(place: Path) -> None:
    """As much of a pipeline's folder as is looked at before anything is loaded."""
    parts = {
        "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    }
    parts |= {"text_encoder": ["transformers", "T5EncoderModel"]}
    for part in parts:
        (place / "pipe" / part).mkdir(parents=True)
    shutil.copytree(BASES / "2b", place / "pipe" / "transformer", dirs_exist_ok=True)
    (place / "pipe" / "model_index.json").write_text(json.dumps({"_class_name": "CogVideoXPipeline", **parts}))


TWO = lora(TO_Q, "transformer_blocks.0.attn1.to_k")
KOHYA_FILE = {key.replace(".", "_", 2).replace(".attn1.", "_attn1_"): value for key, value in TWO.items()}
TEXT = lora("text_model.encoder.layers.0.self_attn.q_proj", prefix="text_encoder.")
INPUTS: dict[str, Callable[[Path], object]] = {
    # adapters that are whole
    "scale": both(copy(ADAPTER, "x.safetensors"), bytes_of(y_DOT_safetensors="mine", z__keep="mine")),
    "no scale": file("x.safetensors", TWO),
    "no scale, SAT's rank": file("x.safetensors", lora(rank=128, width=160)),
    "no scale, a configuration near": both(
        file("run/checkpoint-5/x.safetensors", TWO), bytes_of(run__args_DOT_yaml="rank: 8\nlora_alpha: 4\n")
    ),
    "bare": file("x.safetensors", lora(prefix="")),
    "bare of PEFT": file("x.safetensors", lora(prefix="base_model.model.")),
    "DoRA": copy(DATA / "peft_dora", "x"),
    "PEFT": peft(),
    "kohya": copy(DATA / "videox_fun_kohya_attn_fp32" / "checkpoint-100.safetensors", "x.safetensors"),
    "two adapters": _two,
    "a run of SAT": RUN,
    "a run of SAT without its YAML": lambda place: run_folder(place / "run", "1000", latest="1000"),
    "a SAT run, and a base": both(RUN, copy(BASES / "2b" / "sat_base", "base")),
    "of Wan": copy(DATA / "architectures" / "wan_comfyui", "x"),
    "of Flux": copy(DATA / "architectures" / "flux_kohya", "x"),
    "of Flux, split": copy(DATA / "architectures" / "flux_kohya_split_qkv", "x"),
    "of SD3": copy(DATA / "architectures" / "sd3_kohya", "x"),
    "fp16 at its limit": file(
        "x.safetensors", {k: (v * 3e4).astype("f2") for k, v in lora().items()}, header(r=4, lora_alpha=64)
    ),
    "two scales": both(
        file("x.safetensors", lora(), {**header(r=4, lora_alpha=2), "ss_network_dim": "4", "ss_network_alpha": "1"})
    ),
    "alpha 0": file("x.safetensors", lora(), header(r=4, lora_alpha=0)),
    "alpha tensors of some": file(
        "x.safetensors", {**lora(TO_Q, "transformer_blocks.0.attn1.to_k"), f"transformer.{TO_Q}.alpha": np.float32([2])}
    ),
    "alphas without factors": file(
        "x.safetensors",
        {**lora(), "transformer.proj_out.alpha": np.float32([2]), f"transformer.{TO_Q}.alpha": np.float32([2])},
    ),
    "a run of a trainer": both(
        file("run/checkpoint-5/pytorch_lora_weights.safetensors", TWO, header(r=4, lora_alpha=2)),
        file("run/checkpoint-10/pytorch_lora_weights.safetensors", TWO, header(r=4, lora_alpha=2)),
    ),
    "words of a header, of another rank": file("x.safetensors", TWO, {**PLAIN, "lora_alpha": "4", "r": "8"}),
    "alphas of some, ranks of two kinds": file(
        "x.safetensors",
        {
            **lora(),
            **lora("transformer_blocks.0.attn1.to_k", rank=2),
            **lora("transformer_blocks.0.attn1.to_v"),
            f"transformer.{TO_Q}.alpha": np.float32([2]),
            "transformer.transformer_blocks.0.attn1.to_k.alpha": np.float32([2]),
        },
    ),
    "of loraforge, its configuration changed": both(copy(ADAPTER, "x.safetensors"), _changed_since),
    "of loraforge, its tensors changed": both(copy(ADAPTER, "y.safetensors"), _multiplied),
    "split_qkv, unsaid": _unsaid,
    "a link to nothing": lambda place: (place / "x.safetensors").symlink_to("nowhere"),
    "two logs": bytes_of(a_DOT_log="no", b_DOT_log="none"),
    # adapters with something wrong
    "half": file("x.safetensors", {f"transformer.{TO_Q}.lora_A.weight": A}),
    "turned": file(
        "x.safetensors",
        {f"transformer.{TO_Q}.lora_A.weight": A.T.copy(), f"transformer.{TO_Q}.lora_B.weight": B.T.copy()},
    ),
    "text encoder too": file("x.safetensors", {**lora(), **TEXT}),
    "text encoder alone": file("x.safetensors", TEXT),
    "two in one": file(
        "x.safetensors",
        {
            f"transformer.{TO_Q}.lora_{half}.{name}.weight": value
            for half, value in (("A", A), ("B", B))
            for name in ("one", "two")
        },
    ),
    "SAT's and Diffusers' names": file(
        "x.safetensors",
        {
            **diffusers_lora(),
            "model.diffusion_model.transformer.layers.0.attention.dense.matrix_A.0": A,
            "model.diffusion_model.transformer.layers.0.attention.dense.matrix_B.0": B,
        },
    ),
    "kohya's with an underscore": file(
        "x.safetensors",
        {
            f"lora_unet_transformer_blocks_0_attn1_to_q_.{name}": value
            for name, value in (("lora_down.weight", A), ("lora_up.weight", B), ("alpha", np.float32(2)))
        },
    ),
    "a foreign name": file("x.safetensors", lora("transformer_blocks.0.attn1.to_query")),
    "some foreign names": file("x.safetensors", lora(TO_Q, "transformer_blocks.0.attn1.to_query")),
    "a model nobody knows": file("x.safetensors", lora("mystery.0.layer", prefix="")),
    "a whole weight": file("x.safetensors", {**lora(), "transformer.proj_out.weight": numbers(8, 8)}),
    "a difference": file(
        "x.safetensors",
        {**lora(), "transformer.proj_out.diff": numbers(8, 8), "transformer.proj_out.diff_b": numbers(8)},
    ),
    "set_weight": file("x.safetensors", {**lora(), "transformer.proj_out.set_weight": numbers(8, 8)}),
    "LoHa": file(
        "x.safetensors", {f"transformer.{TO_Q}.hada_{n}": numbers(4, 8) for n in ("w1_a", "w1_b", "w2_a", "w2_b")}
    ),
    "LoKr": file(
        "x.safetensors", {f"lycoris_transformer_blocks_0_attn1_to_q.lokr_w{n}": numbers(4, 4) for n in (1, 2)}
    ),
    "a block too many": file("x.safetensors", lora(TO_Q, "transformer_blocks.99.attn1.to_q", rank=8, width=1920)),
    "a header that is no JSON": file("x.safetensors", lora(), {**PLAIN, ENTRY: "{'r': 4}"}),
    "a header of a list": file("x.safetensors", lora(), {**PLAIN, ENTRY: "[4]"}),
    "a number in the header": file("x.safetensors", lora(), {"format": "pt", "step": 4}),
    "whole numbers": file("x.safetensors", {key: value.astype("i8") for key, value in lora().items()}),
    "NaN": file(
        "x.safetensors", {key: value * np.float32("nan") for key, value in lora().items()}, header(r=4, lora_alpha=2)
    ),
    "zeros": file("x.safetensors", {key: value * 0 for key, value in lora().items()}, header(r=4, lora_alpha=2)),
    "overflow": file(
        "x.safetensors", {key: value + np.float32(3e38) for key, value in lora().items()}, header(r=4, lora_alpha=64)
    ),
    # PEFT's configuration
    "PEFT: LoHa": peft(peft_type="LOHA"),
    "PEFT: modules_to_save": copy(DATA / "peft_modules_to_save", "x"),
    "PEFT: bias": peft(bias="all"),
    "PEFT: PiSSA": peft(init_lora_weights="pissa"),
    "PEFT: r is wrong": peft(r=16),
    "PEFT: alpha is a text": peft(lora_alpha="two"),
    "PEFT: no alpha": peft(lora_alpha=...),
    "PEFT: alpha 0": peft(lora_alpha=0),
    "PEFT: target_modules leave one out": peft(
        tensors=lora(TO_Q, "transformer_blocks.0.attn1.to_k", prefix="base_model.model.")
    ),
    "PEFT: a pattern of nothing": peft(rank_pattern={"to_query": 8}),
    "PEFT: an odd pattern": peft(rank_pattern={"(": 8}),
    "PEFT: use_dora": peft(use_dora=True),
    "PEFT: lora_bias unsaid": peft(
        tensors={**lora(prefix="base_model.model."), f"base_model.model.{TO_Q}.lora_B.bias": numbers(8)}
    ),
    "PEFT: no JSON": both(peft(), bytes_of(x__adapter_config_DOT_json="{")),
    "PEFT: a list": both(peft(), bytes_of(x__adapter_config_DOT_json="[]")),
    "PEFT: no tensors": both(peft(), gone("x/adapter_model.safetensors")),
    "PEFT: renamed": both(
        peft(), moved("x/adapter_model.safetensors", "x/style.safetensors"), gone("x/adapter_config.json")
    ),
    # SAT's
    "SAT: half": _sat(**{"dense.matrix_A.0": A}),
    "SAT: no q": _sat(**{f"query_key_value.matrix_{h}.{n}": v for n in (1, 2) for h, v in (("A", A), ("B", B))}),
    "SAT: two ranks": _sat(
        **{
            "dense.matrix_A.0": A,
            "dense.matrix_B.0": B,
            "query_key_value.matrix_A.0": numbers(2, 8),
            "query_key_value.matrix_B.0": numbers(8, 2),
            "query_key_value.matrix_A.1": A,
            "query_key_value.matrix_B.1": B,
            "query_key_value.matrix_A.2": A,
            "query_key_value.matrix_B.2": B,
        }
    ),
    "SAT: latest is wrong": lambda place: run_folder(place / "run", "1000", latest="3000", config=YAML.format(4)),
    "SAT: latest is odd": lambda place: run_folder(place / "run", "1000", "2000", latest="soon", config=YAML.format(4)),
    "SAT: no latest": lambda place: run_folder(place / "run", "1000", "2000", config=YAML.format(4)),
    "SAT: no checkpoint": lambda place: run_folder(place / "run", latest="1000", config=YAML.format(4)),
    "SAT: another rank": lambda place: run_folder(place / "run", "1000", latest="1000", config=YAML.format(64)),
    "SAT: r is a text": lambda place: run_folder(place / "run", "1000", latest="1000", config=YAML.format("four")),
    "SAT: YAML is broken": lambda place: run_folder(place / "run", "1000", latest="1000", config="model: ["),
    "SAT: two runs": lambda place: [
        run_folder(place / "runs" / n, "1000", latest="1000", config=YAML.format(4)) for n in "ab"
    ],
    # other files
    "an LFS pointer": bytes_of(x_DOT_safetensors="version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
    "an LFS pointer in a clone": bytes_of(
        _DOT_git__HEAD="", x_DOT_safetensors="version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
    ),
    "a web page": bytes_of(x_DOT_safetensors="<!DOCTYPE html>\n<html><body>404</body></html>"),
    "nothing": bytes_of(x_DOT_safetensors=b""),
    "noise": bytes_of(x_DOT_safetensors=bytes(range(256)) * 9),
    "cut off": lambda place: (place / "x.safetensors").write_bytes(ADAPTER.read_bytes()[:-100]),
    "gzip": bytes_of(x_DOT_pt=gzip.compress(sat(), mtime=0)),
    "a bare pickle": bytes_of(x_DOT_pt=b"\x80\x04" + call("os.mkdir", "executed").code + b"."),
    "a zip of something": bytes_of(x_DOT_pt=b"PK\x05\x06" + bytes(18)),
    "a torch file of something": _torch("x.pt", {"state": {"0": A}, "param_groups": []}),
    "a torch file with numpy": lambda place: (place / "x.pt").write_bytes(
        checkpoint({"module": {"a.lora_A.weight": A}})
    ),
    "an empty folder": bytes_of(x__notes_DOT_txt="none"),
    "several files": both(file("x/a.safetensors", lora()), file("x/b.safetensors", lora())),
    "several folders": both(peft("x/a"), peft("x/b")),
    "several files, none an adapter": both(file("x/a.safetensors", {"a": A}), file("x/b.safetensors", {"b": B})),
    "a VAE": file("x.safetensors", {"encoder.conv_in.weight": A, "decoder.conv_in.weight": B}),
    "tensors of nobody": file("x.safetensors", {"a": A, "b": B}),
    "no tensors": file("x.safetensors", {}),
    "configurations": both(
        file("x.safetensors", lora()),
        bytes_of(
            other_DOT_yaml="a: 1\n",
            broken_DOT_yaml="a: [",
            rank_DOT_yaml="rank: 99\nlora_alpha: 4\n",
            notes_DOT_bin=b"\xff\xfe\x00",
            empty_DOT_yaml="",
            sat_DOT_yaml=YAML.format(4),
        ),
    ),
    # bases
    "a base, and an adapter": BASE,
    "a base of SAT": both(copy(ADAPTER, "x.safetensors"), copy(BASES / "2b" / "sat_base", "base")),
    "a base that holds it": both(BASE, _fused),
    "a wider adapter": both(BASE, file("x.safetensors", lora(width=72))),
    "a base: quantised": both(copy(ADAPTER, "x.safetensors"), quantised),
    "a base: quantised, says its config": both(
        BASE, changed("base", quantization_config={"quant_method": "bitsandbytes"})
    ),
    "a base: no config": both(BASE, gone("base/config.json", "base/sat_base")),
    "a base: an odd config": both(BASE, changed("base", sample_width="x")),
    "a base: no JSON": both(BASE, bytes_of(base__config_DOT_json="{")),
    "a base: no weights": both(BASE, gone(f"base/{SINGLE}")),
    "a base: shards": both(copy(ADAPTER, "x.safetensors"), shards()),
    "a base: an index of other shards": both(
        copy(ADAPTER, "x.safetensors"), shards(lambda t: {**t, "weight_map": dict.fromkeys(t["weight_map"], SHARDS[0])})
    ),
    "a base: an index of more": both(
        copy(ADAPTER, "x.safetensors"),
        shards(lambda t: {**t, "weight_map": {**t["weight_map"], "transformer_blocks.7.attn1.to_q.weight": SHARDS[0]}}),
    ),
    "a base: an index that is no JSON": both(copy(ADAPTER, "x.safetensors"), shards(lambda t: b"{")),
    "a base: a shard is gone": both(copy(ADAPTER, "x.safetensors"), shards(), gone(f"base/{SHARDS[1]}")),
    "a base: no index": both(copy(ADAPTER, "x.safetensors"), shards(), gone(f"base/{INDEX}", f"base/{SHARDS[1]}")),
    "a base: an index and a file": both(
        copy(ADAPTER, "x.safetensors"), shards(), copy(BASES / "2b" / SINGLE, f"base/{SINGLE}")
    ),
    "a base: two variants": both(
        BASE,
        moved(f"base/{SINGLE}", f"base/{STEM}.fp16.safetensors"),
        copy(BASES / "2b" / SINGLE, f"base/{STEM}.bf16.safetensors"),
    ),
    "a base: other learned positions": both(BASE, changed("base", sample_width=44)),
    "a pipeline in part": PIPE,
    # layouts and plugins
    "layouts": both(
        copy(BASES / "2b" / SINGLE, "a.safetensors"),
        copy(BASES / "5b" / SINGLE, "b.safetensors"),
        _renamed,
        bytes_of(
            odd_DOT_toml="[format]\nname = 1\n",
            broken_DOT_toml="a = [",
            empty_DOT_toml="",
            code_DOT_py="1 / 0\n",
            mine__x="1",
        ),
    ),
}
"""What a case needs -> what makes it in the folder that the commands are typed in."""


class Refusal(NamedTuple):
    """A command that is refused."""

    name: str
    make: Callable[[Path], object]
    words: tuple[str, ...]
    """`{made}` stands for what was made, `{place}` for the folder."""

    def __str__(self) -> str:
        return f"{self.name}: {shlex.join(self.words)}"

    def typed(self, place: Path) -> list[str]:
        """Make the input in an empty folder, and return the words to type there."""
        made = self.make(place)
        if isinstance(made, Path) and place not in made.parents:  # recorded: a remedy may change it
            made = Path(shutil.copytree(made, place / made.name) if made.is_dir() else shutil.copy(made, place))
        name = str(made.relative_to(place)) if isinstance(made, Path) else ""
        return [word.replace("{made}", name).replace("{place}", ".") for word in self.words]


def refusals() -> Iterator[Refusal]:
    """Every command of refusals.toml."""
    table = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
    for name, commands in table.items():
        for words in commands:
            yield Refusal(name, INPUTS[name], tuple(shlex.split(words)))
