"""A layout is found again from numbers alone, and what numbers leave open is left out, never guessed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

import jsonschema
import ml_dtypes
import numpy as np
import pytest
import tomli
from helpers.learning import as_diffusers, cogvideox, known_pairs, learned, pairs, saved
from helpers.oracle import DATA, Case
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.errors import LoraforgeError
from loraforge.files.opening import open_tensors
from loraforge.learning.check import check, proposed
from loraforge.learning.learn import Learned, learn
from loraforge.learning.probe import probe
from loraforge.names.catalog import architecture

OPEN = "equal numbers stand in several places"


def check_schema(document: object, name: str) -> None:
    schema = json.loads((Path(__file__).parents[3] / "schemas" / f"{name}.schema.json").read_text())
    jsonschema.validate(document, schema, jsonschema.Draft202012Validator)


def learn_pair(folder: Path, a: dict[str, np.ndarray], b: dict[str, np.ndarray], **options: object) -> Learned:
    folder.mkdir(exist_ok=True)
    sides = saved(folder / "a.safetensors", a), saved(folder / "b.safetensors", b)
    return learn(*sides, folder / "x.toml", **options)


@pytest.mark.parametrize("bias", ["in_proj_bias", "bias", "offset"])
@pytest.mark.parametrize("alike", [False, True])
def test_a_bias_of_another_name_is_cut_as_its_weight_is(bias: str, alike: bool, tmp_path: Path) -> None:
    """As in torch's MultiheadAttention; `alike`: another vector of the module has the same numbers."""
    random, a, b = np.random.default_rng(0), dict[str, np.ndarray](), dict[str, np.ndarray]()
    for n in range(3):
        weight, vector = random.standard_normal((24, 8), np.float32), random.standard_normal(24, np.float32)
        a |= {f"blocks.{n}.attn.in_proj_weight": weight, f"blocks.{n}.attn.{bias}": vector}
        a |= {f"blocks.{n}.attn.other": vector} if alike else {}
        for name, rows, part in zip("qkv", np.split(weight, 3), np.split(vector, 3), strict=True):
            b |= {f"blocks.{n}.to_{name}.weight": rows, f"blocks.{n}.to_{name}.bias": part}
    if alike and bias != "bias":  # never decided by a name that is not its own
        with pytest.raises(LoraforgeError, match=r"to_k\.bias"):
            learn_pair(tmp_path / "x", a, b)
        return
    drop = [("*.other", "the same numbers")] if alike else []
    learn_pair(tmp_path / "x", a, b, drop=drop)
    arch = learned(tmp_path / "x" / "x.toml")
    assert arch.layouts["original"].stacked("blocks.7.attn") == ("to_q", "to_k", "to_v")
    assert set(arch.named(("to_k",), "original")) == {"in_proj_weight", bias}
    check(tmp_path / "x" / "x.toml", [(tmp_path / "x" / "a.safetensors", tmp_path / "x" / "b.safetensors")])


@pytest.mark.parametrize("name", ["sat_2b_r4", "sat_5b_r8", "sat_5b_i2v_r8", "sat_1.5_t2v_r4"])
def test_cogvideox_is_found_again(name: str, tmp_path: Path) -> None:
    """From what SAT wrote in float32, and what upstream's script made of it in bfloat16."""
    case = Case(name)
    file, _ = open_tensors(next((case.folder / "sat_ckpt").glob("*/*.pt")))
    weights = {key.replace(".original.", "."): file[key] for key in file.tensors if ".matrix_" not in key}
    a = saved(tmp_path / "sat.safetensors", {k: v for k, v in weights.items() if k.startswith("model.diffusion")})
    base = load_file(case.base / "diffusion_pytorch_model.safetensors")
    lacks = {"ofs1", "ofs2"} | ({"pos"} if "patch_embed.pos_embedding" not in base else set())
    patterns = ["mixins.pos_embed.pos_embedding"] * ("pos" in lacks) + ["mixins.pos_embed.freqs_*", "*_embeddings.*"]
    drop = [(p, "computed, or not used") for p in patterns if any(fnmatch(key, f"*.{p}") for key in weights)]
    done = learn(a, case.base / "diffusion_pytorch_model.safetensors", tmp_path / "x.toml", drop=drop)
    assert not done.left_out
    want, blocks = known_pairs(lacks), len({key.split(".layers.")[1][0] for key in weights if ".layers." in key})
    if blocks == 1:  # then nothing shows that its number is one
        want = {(a.replace("{}", "0"), n, b.replace("{}", "0"), m, fixed) for a, n, b, m, fixed in want}
    assert pairs(learned(tmp_path / "x.toml"), "original", "diffusers") == want
    assert (blocks == 1) == any("no number counts" in line for line in done.lines())


def test_a_probe_leaves_nothing_open(tmp_path: Path) -> None:
    """Of a base with norms of 1 and biases of 0, through a converter that knows no probe: our own, to SAT and back."""
    base = load_file(DATA / "bases" / "2b" / "diffusion_pytorch_model.safetensors")
    for key, tensor in base.items():
        tensor[:] = 0 if key.endswith("bias") or "norm_out.linear" in key else 1 if tensor.ndim == 1 else tensor
    fresh, made = (tmp_path / name / "diffusion_pytorch_model.safetensors" for name in ("fresh", "made"))
    for folder in (fresh.parent, made.parent):
        folder.mkdir()
        shutil.copy(DATA / "bases" / "2b" / "config.json", folder)
    saved(fresh, base)
    assert probe(fresh.parent, made) == len(base)
    numbers = load_file(made)
    assert {k: (t.shape, t.dtype) for k, t in numbers.items()} == {k: (t.shape, t.dtype) for k, t in base.items()}
    for tensor in numbers.values():
        assert np.array_equal(tensor.astype(np.float16).astype(np.float32), tensor.astype(np.float32))
        assert np.abs(tensor.astype(np.float32)).min() >= 2.0**-10
    loraforge.convert_base(made.parent, "sat", tmp_path / "sat")
    sat = next((tmp_path / "sat").glob("*/*.pt"))
    done = learn(sat, made.parent, tmp_path / "x.toml", drop=[("*pos_embed*", "computed")])
    assert not done.left_out
    assert pairs(learned(Path(done.path)), "original", "diffusers") == known_pairs()
    loraforge.convert_base(fresh.parent, "sat", tmp_path / "plain")
    sat = next((tmp_path / "plain").glob("*/*.pt"))
    done = learn(sat, fresh, tmp_path / "y.toml", drop=[("*pos_embed*", "computed")])
    assert len(done.left_out[OPEN]) == 7
    assert pairs(learned(Path(done.path)), "original", "diffusers") < known_pairs()


def test_a_probe_is_the_same_each_time_and_keeps_what_is_no_weight(tmp_path: Path) -> None:
    state = {"a.weight": np.ones((4, 8), np.float64), "a.steps": np.arange(3), "b.bias": np.ones((), np.float16)}
    source = saved(tmp_path / "a.safetensors", state)
    for name in ("p", "q"):
        probe(source, tmp_path / f"{name}.safetensors")
    assert (tmp_path / "p.safetensors").read_bytes() == (tmp_path / "q.safetensors").read_bytes()
    got = load_file(tmp_path / "p.safetensors")
    assert (got["a.steps"] == np.arange(3)).all()
    assert len({*got["a.weight"].ravel()}) > 20


FAULTS = {
    "norms of 1": lambda key, tensor: np.ones_like(tensor) if tensor.ndim == 1 and "weight" in key else tensor,
    "biases of 0": lambda key, tensor: np.zeros_like(tensor) if key.endswith("bias") else tensor,
    "layers of 0": lambda key, tensor: np.zeros_like(tensor) if "adaLN" in key or "final_layer" in key else tensor,
    "k and v alike": lambda key, tensor: (
        np.concatenate([tensor[:24], tensor[24:48], tensor[24:48]]) if "layers.1.attention.query" in key else tensor
    ),
    "rows of 0": lambda key, tensor: np.where(
        np.arange(len(tensor)).reshape(-1, *(1,) * (tensor.ndim - 1)) % 3, tensor, 0
    ),
    "last rows of 0": lambda key, tensor: (
        np.concatenate([tensor[:-1], np.zeros_like(tensor[-1:])]) if tensor.ndim > 1 else tensor
    ),
    "equal blocks": lambda key, tensor: tensor,
}


@pytest.mark.parametrize("fault", [[name] for name in FAULTS] + [[*FAULTS]], ids=[*FAULTS, "all"])
def test_equal_numbers_give_no_wrong_row(fault: list[str], tmp_path: Path) -> None:
    state = cogvideox()
    for name in fault:
        state = {key: FAULTS[name](key, tensor) for key, tensor in state.items()}
    if "equal blocks" in fault:
        state |= {key: state[key.replace("s.1.", "s.0.")] for key in state if "s.1." in key}
    try:
        done = learn_pair(tmp_path, state, as_diffusers(state))
    except LoraforgeError as error:
        assert "equal blocks" in fault and "three blocks" in error.message
        return
    got, want = pairs(learned(Path(done.path)), "original", "diffusers"), known_pairs()
    assert got <= {*want, *({(a.replace("{}", "1"), n, b.replace("{}", "1"), m, k) for a, n, b, m, k in want})} | {
        (a.replace("{}", "0"), n, b.replace("{}", "0"), m, k) for a, n, b, m, k in want
    }
    assert (not done.left_out) == (fault[0] in ("biases of 0", "norms of 1", "last rows of 0") and len(fault) == 1)


TYPES = {"bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp32": np.float32}


@pytest.mark.parametrize("of_a", TYPES)
@pytest.mark.parametrize("of_b", TYPES)
def test_a_cast_hides_nothing(of_a: str, of_b: str, tmp_path: Path) -> None:
    first = {key: tensor.astype(TYPES[of_a]) for key, tensor in cogvideox().items()}
    second = {key: tensor.astype(TYPES[of_b]) for key, tensor in as_diffusers(first).items()}
    done = learn_pair(tmp_path, first, second)
    assert not done.left_out
    assert pairs(learned(Path(done.path)), "original", "diffusers") == known_pairs()


def test_one_block_more_and_one_less_than_learned(tmp_path: Path) -> None:
    state = cogvideox(blocks=3)
    done = learn_pair(tmp_path, state, as_diffusers(state))
    for blocks in (1, 2, 4):
        other = cogvideox(blocks=blocks, seed=1, d=16, h=4, t=6, x=10)
        a, b = saved(tmp_path / "a2.safetensors", other), saved(tmp_path / "b2.safetensors", as_diffusers(other))
        (line,) = check(Path(done.path), [(a, b)]).lines()
        assert f" {len(as_diffusers(other))} tensors" in line
    other["time_embed.0.weight"][0, 0] += 1
    with pytest.raises(LoraforgeError, match=r"not what .* in time_embedding\.linear_1\.weight"):
        check(Path(done.path), [(saved(a, other), b)])


def test_a_converter_that_swaps_is_learned_with_its_swap(tmp_path: Path) -> None:
    """k and v, and the halves of the last modulation: the layout says so, and does what the converter does."""
    state, wrong = cogvideox(), {}
    for key, tensor in as_diffusers(state).items():
        name = key.replace(".to_k.", ".to_x.").replace(".to_v.", ".to_k.").replace(".to_x.", ".to_v.")
        half = len(tensor) // 2
        wrong[name] = np.concatenate([tensor[half:], tensor[:half]]) if "norm_out.linear" in key else tensor
    done = learn_pair(tmp_path, state, wrong)
    lines = "\n".join(done.lines())
    assert re.search(r"stacked +\S+query_key_value = \S+to_q, \S+to_v, \S+to_k\n", lines)
    assert "swapped   mixins.final_layer.adaLN_modulation.1 = norm_out.linear [2/2], norm_out.linear [1/2]\n" in lines
    stacks = {t.text: s for t, s in learned(Path(done.path)).layouts["original"].modules.items()}
    assert stacks["transformer.layers.{i}.attention.query_key_value"] == ("to_q", "to_v", "to_k")
    check(Path(done.path), [(tmp_path / "a.safetensors", tmp_path / "b.safetensors")])


def last_differs(blocks: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """As in SD3, where the modulation of the last block has two parts, exchanged, and the others have six."""
    random, last = np.random.default_rng(blocks), blocks - 1
    a = {f"blocks.{i}.mod.weight": random.random((12 if i < last else 4, 5)) for i in range(blocks)}
    b = {f"layers.{i}.norm.weight": a[f"blocks.{i}.mod.weight"] for i in range(last)}
    return a, b | {f"layers.{last}.norm.weight": np.roll(a[f"blocks.{last}.mod.weight"], 2, axis=0)}


def test_a_last_block_that_differs_is_called_last(tmp_path: Path) -> None:
    done = learn_pair(tmp_path, *last_differs(4))
    layouts = learned(tmp_path / "x.toml").layouts
    assert {t.text for t in layouts["original"].modules} == {"blocks.{i}.mod", "blocks.{last}.mod"}
    assert {t.text for t in layouts["diffusers"].modules} == {"layers.{i}.norm", "layers.{last}.norm"}
    assert not any(kind == "literal" for kind, _ in done.remarks)
    for blocks in (3, 6):
        sides = (
            saved(tmp_path / f"{n}2.safetensors", state) for n, state in zip("ab", last_differs(blocks), strict=True)
        )
        check(tmp_path / "x.toml", [tuple(sides)])
    a, b = last_differs(4)
    grown = a | {"new.weight": np.eye(5)}, b | {"other.weight": np.eye(5)}
    sides = (saved(tmp_path / f"{n}2.safetensors", state) for n, state in zip("ab", grown, strict=True))
    with pytest.raises(LoraforgeError, match=r"no module for new\.weight, other"):
        check(tmp_path / "x.toml", [tuple(sides)])


def test_another_block_that_differs_stands_by_itself(tmp_path: Path) -> None:
    """Only a last block can be named without its number; then all blocks are literal, and the report says so."""
    order = {0: 0, 1: 2, 2: 3, 3: 1}  # the one that differs is the second
    sides = [
        {f"{key.split('.')[0]}.{order[int(key.split('.')[1])]}.{key.split('.', 2)[2]}": t for key, t in side.items()}
        for side in last_differs(4)
    ]
    done = learn_pair(tmp_path, *sides)
    stacks = {t.text: len(s) for t, s in learned(tmp_path / "x.toml").layouts["original"].modules.items()}
    assert stacks == {"blocks.0.mod": 1, "blocks.1.mod": 2, "blocks.2.mod": 1, "blocks.3.mod": 1}
    assert sum(kind == "literal" for kind, _ in done.remarks) > 0


def test_numbers_that_are_no_blocks_stay(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    a = {f"b.{i}.ff.{n}.weight": random.random((4, 5)) for i in range(2) for n in (0, 2)}
    done = learn_pair(tmp_path, a, {key.replace("b.", "t.", 1): tensor for key, tensor in a.items()})
    assert {template.text for template in learned(Path(done.path)).layouts["diffusers"].modules} == {
        "t.{i}.ff.0", "t.{i}.ff.2"
    }  # fmt: skip


def test_two_numbers_that_always_count_alike_stay(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    a = {f"m.{i}.n.{i}.weight": random.random((4, 5)) for i in range(3)}
    done = learn_pair(tmp_path, a, {f"x.{i}.y.{i}.weight": a[f"m.{i}.n.{i}.weight"] for i in range(3)})
    assert {t.text for t in learned(Path(done.path)).layouts["original"].modules} == {f"m.{i}.n.{i}" for i in range(3)}


def test_what_a_layout_cannot_say_is_listed(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    a = {"m.weight": random.random((4, 5)), "n.scale": random.random(4), "table": random.random((1, 4))}
    a |= {"qk.weight": random.random((4, 3)), "other.bias": random.random(2), "long.weight": random.random((600, 4))}
    b = {"x.weight": a["m.weight"], "y.weight": a["n.scale"], "table": a["table"]}
    b |= {"q.weight": a["qk.weight"][:2], "q.bias": a["other.bias"], "k.weight": a["qk.weight"][2:]}
    b["shuffled.weight"] = np.concatenate([a["long.weight"][::2], a["long.weight"][1::2]]).reshape(2, 300, 4)
    b["shuffled.weight"] = b["shuffled.weight"].transpose(1, 0, 2).reshape(600, 4)[::-1]
    done = learn_pair(tmp_path, a, b)
    assert done.left_out == {
        "its parameters are of several modules": ["q"],
        "its rows are shuffled one by one": ["shuffled"],
        "its other rows are left out": ["k"],
    }
    assert "# Left out, its other rows are left out: k\n" in (tmp_path / "x.toml").read_text()


def test_rows_that_two_tensors_share_do_not_hide_them(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    a = {f"{name}.weight": random.random((4, 5)) for name in ("m", "n")}
    a["n.weight"][:2] = a["m.weight"][:2]
    done = learn_pair(tmp_path, a, {"x.weight": a["n.weight"], "y.weight": a["m.weight"]})
    assert pairs(learned(Path(done.path)), "original", "diffusers") == {
        ("n", 0, "x", 0, False),
        ("m", 0, "y", 0, False),
    }


def test_one_file_of_many_components_and_a_folder_of_shards(tmp_path: Path, cli) -> None:
    state, folder = cogvideox(), tmp_path / "b"
    whole = {f"model.diffusion_model.{key}": tensor for key, tensor in state.items()}
    saved(tmp_path / "a.safetensors", whole | {"first_stage_model.conv.weight": np.ones((3, 3), np.float32)})
    folder.mkdir()
    keys = sorted(moved := as_diffusers(state))
    names = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for n, name in enumerate(names):
        saved(folder / name, {key: moved[key] for key in keys[n::2]})
    index = {"weight_map": {key: names[n % 2] for n, key in enumerate(keys)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    done = cli("layouts", "learn", tmp_path / "a.safetensors", folder, "-o", tmp_path / "x.toml")
    assert done.exit_code == 0, done.output
    assert "left out  first_stage_model: no part of the model, or of the adapter" in done.stdout
    assert pairs(learned(tmp_path / "x.toml"), "original", "diffusers") == known_pairs()


@st.composite
def bijections(draw: st.DrawFn) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], set[object]]:
    """Two checkpoints of random modules, in random stacks on both sides, and where each segment is in both."""
    random = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    blocks, a, b, want = draw(st.integers(2, 4)), {}, {}, set()
    for group in range(draw(st.integers(1, 4))):
        inputs, count = draw(st.integers(4, 9)), draw(st.integers(1, 4))
        rows = [4 * draw(st.integers(1, 3)) for _ in range(count)]
        repeated = draw(st.booleans())
        tables = []
        for side, word in (("a", "mod"), ("b", "part")):
            order = draw(st.permutations(range(count)))
            cuts = sorted(draw(st.sets(st.integers(1, count - 1)))) if count > 1 else []
            bounds = [0, *cuts, count]
            stacks = [order[x:y] for x, y in pairwise(bounds)]
            before = f"{side}{group}.{{i}}." if repeated else f"{side}{group}."
            tables.append({f"{before}{word}{chr(97 + n)}": stack for n, stack in enumerate(stacks)})
        for i in range(blocks if repeated else 1):
            segments = [random.standard_normal((height, inputs)).astype(np.float32) for height in rows]
            for state, table in zip((a, b), tables, strict=True):
                for path, stack in table.items():
                    state[f"{path.format(i=i)}.weight"] = np.concatenate([segments[s] for s in stack])
        spots = [
            {s: (path.replace("{i}", "{}"), n) for path, stack in t.items() for n, s in enumerate(stack)}
            for t in tables
        ]
        want |= {(spots[0][s], spots[1][s]) for s in range(count)}
    return a, b, want


@settings(max_examples=80)
@given(bijections())
def test_random_bijections_are_found_again(tmp_path_factory: pytest.TempPathFactory, both: tuple) -> None:
    a, b, want = both
    done = learn_pair(tmp_path_factory.mktemp("random"), a, b)
    arch = learned(Path(done.path))
    for side, layout, n in ((a, "original", 0), (b, "diffusers", 1)):
        assert not done.left_out
        templates = {re.sub(r"\{\w+\}", "{}", template.text) for template in arch.layouts[layout].modules}
        assert templates == {pair[n][0] for pair in want}, side.keys()
    # neighbours that both sides keep together are one segment: what moves is the same
    check(Path(done.path), [(Path(done.path).parent / "a.safetensors", Path(done.path).parent / "b.safetensors")])
    check(Path(done.path), [(Path(done.path).parent / "b.safetensors", Path(done.path).parent / "a.safetensors")])


def test_onto_an_architecture_keeps_its_segments(tmp_path: Path) -> None:
    state = cogvideox()
    other = {key.replace("transformer.layers", "model.blocks"): tensor for key, tensor in state.items()}
    for known in (as_diffusers(state), state):
        done = learn_pair(tmp_path, other, known, onto="cogvideox", layouts=("mine", "theirs"), force=True)
        tables = tomli.loads(Path(done.path).read_text())
        assert "segments" not in tables
        assert tables["layouts"].keys() == {"mine"}
        sat = architecture("cogvideox").layouts["sat"].modules
        want = {
            t.text.replace("transformer.layers", "model.blocks"): [*s]
            for t, s in sat.items()
            if {*s} - {"ofs1", "ofs2", "pos"}
        }
        assert tables["layouts"]["mine"]["modules"] == want
        assert tables["layouts"]["mine"]["absent"] == ["ofs1", "ofs2"]
    with pytest.raises(LoraforgeError, match="known names second"):
        learn_pair(tmp_path, {"a.weight": np.eye(9)}, {"b.weight": np.eye(9)}, onto="cogvideox", force=True)
    with pytest.raises(LoraforgeError, match="give checkpoints of three blocks"):
        one = cogvideox(blocks=1)
        learn_pair(tmp_path, one, as_diffusers(one), onto="cogvideox", layouts=("mine", "x"), force=True)


def test_the_file_converts_adapters_both_ways(tmp_path: Path, cli) -> None:
    state = cogvideox(blocks=3)
    a, b = saved(tmp_path / "a.safetensors", state), saved(tmp_path / "b.safetensors", as_diffusers(state))
    toml = tmp_path / "mine.toml"
    assert cli("layouts", "learn", a, b, "-o", toml).exit_code == 0
    assert "sound" in cli("plugins", "check", toml).stdout
    random = np.random.default_rng(0)
    adapter = {}
    for i in range(4):
        for name in ("attn1.to_q", "attn1.to_k", "attn1.to_v", "norm1.linear"):
            rows, inputs = as_diffusers(state)[f"transformer_blocks.0.{name}.weight"].shape
            adapter[f"transformer.transformer_blocks.{i}.{name}.lora_A.weight"] = random.random((2, inputs), np.float32)
            adapter[f"transformer.transformer_blocks.{i}.{name}.lora_B.weight"] = random.random((rows, 2), np.float32)
    adapter["transformer.patch_embed.proj.lora_A.weight"] = random.random((2, 4, 2, 2), np.float32)
    adapter["transformer.patch_embed.proj.lora_B.weight"] = random.random((24, 2, 1, 1), np.float32)
    source, out = saved(tmp_path / "lora.safetensors", adapter), tmp_path / "out.safetensors"
    words = ("--architecture", "mine", "--trained-scale", "0.5")
    done = cli("--plugin", toml, "convert", source, "--to", "comfyui", "-o", out, *words)
    assert done.exit_code == 0, done.output
    assert "diffusion_model.transformer.layers.3.attention.query_key_value.lora_A.weight" in load_file(out)
    done = cli(
        "--plugin",
        toml,
        "convert",
        out,
        "--to",
        "diffusers",
        "-o",
        tmp_path / "back.safetensors",
        *words[:2],
        "--trained-scale",
        "1",
    )
    assert done.exit_code == 0, done.output
    back = load_file(tmp_path / "back.safetensors")
    for stem in {key.partition(".lora_")[0] for key in adapter}:
        update = [
            (s[f"{stem}.lora_B.weight"].reshape(-1, s[f"{stem}.lora_A.weight"].shape[0]).astype(float)
             @ s[f"{stem}.lora_A.weight"].reshape(s[f"{stem}.lora_A.weight"].shape[0], -1).astype(float))
            for s in (adapter, back)
        ]  # fmt: skip
        np.testing.assert_allclose(update[1], update[0] / 2, rtol=1e-5)


def test_sizes_are_proposed_where_two_pairs_differ(tmp_path: Path, cli) -> None:
    state = cogvideox(blocks=2)
    done = learn_pair(tmp_path, state, as_diffusers(state))
    other = cogvideox(d=40, h=8, t=18, x=26)
    a, b = saved(tmp_path / "a2.safetensors", other), saved(tmp_path / "b2.safetensors", as_diffusers(other))
    words = [done.path, tmp_path / "a.safetensors", tmp_path / "b.safetensors", a, b]
    shown = cli("layouts", "check", *words).stdout
    sizes = tomli.loads(shown.partition("\n\n")[2])["dimensions"]
    assert sizes["to_q"] == ["d", "d"]
    assert (sizes["net_proj"], sizes["net"]) == (["4 d", "d"], ["d", "4 d"])
    assert sizes["norm1_linear_1"] == ["3 d", sizes["linear_1"][0]]
    assert not {"proj", "proj_out"} & sizes.keys()  # whose inputs, or rows, are the same in both
    text = Path(done.path).read_text()
    Path(done.path).write_text(text + shown.partition("\n\n")[2])
    assert "[dimensions]" in cli("layouts", "check", *words).stdout
    check_schema(json.loads(cli("layouts", "check", *words, "--json").stdout), "layout-check")
    Path(done.path).write_text(text + shown.partition("\n\n")[2].replace('"4 d", "d"', '"3 d", "d"'))
    refused = cli("layouts", "check", *words)
    assert refused.exit_code == 1
    assert "do not allow" in refused.output
    assert proposed([{"q": (8, 8)}]) == proposed([{"q": (8, 8)}, {"q": (8, 16)}]) == {}


def _copy(state: dict, old: str, new: str) -> dict:
    return {key.replace(old, new): tensor for key, tensor in state.items()}


REFUSED = {
    "a computed tensor": (
        lambda s: {**s, "rope.freqs": np.arange(99.0, dtype=np.float32).reshape(9, 11)},
        [],
        "has rows that",
    ),
    "a transposed one": (lambda s: {**s, "proj_out.weight": s["proj_out.weight"].T.copy()}, [], "has rows that"),
    "a row more": (
        lambda s: {**s, "proj_out.weight": np.concatenate([s["proj_out.weight"], np.ones((1, 24), np.float32)])},
        [],
        "in proj_out.weight",
    ),
    "one less": (lambda s: {k: v for k, v in s.items() if "to_v" not in k}, [], "query_key_value"),
    "other weights": (lambda s: as_diffusers(cogvideox(seed=9)), [], "share no row"),
    "a drop of nothing": (lambda s: s, ["--drop", "nothing*=why"], "neither"),
    "a name of no architecture": (lambda s: s, ["-o", "My Model.toml"], "or no name of one"),
    "a name that is taken": (
        lambda s: s,
        ["-o", "cogvideox.toml"],
        "'cogvideox' is an architecture already",
    ),
    "an architecture that is none": (lambda s: s, ["--onto", "klingon"], "no architecture 'klingon'"),
    "a layout that is taken": (lambda s: s, ["--onto", "cogvideox", "--names", "diffusers,x"], "already"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_is_one_message_and_no_file(name: str, tmp_path: Path, cli) -> None:
    change, words, message = REFUSED[name]
    state = cogvideox()
    a = saved(tmp_path / "a.safetensors", state)
    b = saved(tmp_path / "b.safetensors", change(as_diffusers(state)))
    before = {*tmp_path.iterdir()}
    done = cli("layouts", "learn", a, b, "-o", tmp_path / "x.toml", *words)
    assert done.exit_code == 1
    assert done.stderr.count("Error: ") == 1
    assert message in done.stderr
    assert {*tmp_path.iterdir()} == before


def test_what_is_dropped_is_said_with_its_reason(tmp_path: Path, cli) -> None:
    state = cogvideox()
    state |= {f"blocks.{i}.rope": np.full((2, 3), i + 0.5, np.float32) for i in range(3)}
    b = saved(tmp_path / "b.safetensors", as_diffusers({k: v for k, v in state.items() if "rope" not in k}))
    words = ["layouts", "learn", saved(tmp_path / "a.safetensors", state), b, "-o", tmp_path / "x.toml"]
    refused = cli(*words)
    assert refused.exit_code == 1
    line = re.search(r"try: loraforge (.*?)(   #|$)", refused.stderr, re.MULTILINE)
    assert line is not None
    done = cli(*shlex.split(line[1]))
    assert done.exit_code == 0, done.output
    assert "dropped   blocks.*.rope" in done.stdout
    dropped = tomli.loads((tmp_path / "x.toml").read_text())["layouts"]["original"]["dropped"]
    assert dropped == {"blocks.{i}.rope": "not in b.safetensors"}
    assert cli(*shlex.split(line[1])).exit_code == 1  # it exists
    assert cli(*shlex.split(line[1]), "-f").exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["learn", "a", "b", "-o", "x.txt"], "TOML"),
        (["learn", "a", "nothing", "-o", "x.toml"], "nothing is no file"),
        (["learn", "a", "nothing", "-o", "flux.toml"], "'flux' is an architecture already"),
        (["learn", "a", "fp8.safetensors", "-o", "x.toml"], "quantised"),
        (["learn", "a", "folder", "-o", "x.toml"], "give the file"),
        (["learn", "a", "b", "-o", "x.toml", "--names", "one"], "give A,B"),
        (["learn", "a", "b", "-o", "x.toml", "--drop", "one"], "PATTERN=reason"),
        (["probe", "nothing", "-o", "p.safetensors"], "nothing is no file"),
        (["check", "x.toml", "a"], "pairs"),
        (["check", "x.toml", "a", "b"], "x.toml does not exist"),
    ],
)
def test_bad_words_are_refused(words: list[str], message: str, tmp_path: Path, cli, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    saved(Path("a"), {"m.weight": np.eye(4)})
    saved(Path("b"), {"n.weight": np.eye(4)})
    Path("folder").mkdir()
    for name in ("c", "d"):
        saved(Path("folder") / f"{name}.safetensors", {"m.weight": np.eye(4)})
    save_file({"m.weight": np.zeros((4, 4), ml_dtypes.float8_e4m3fn)}, "fp8.safetensors")
    done = cli("layouts", *words)
    assert done.exit_code in (1, 2)
    assert message in done.stderr
    assert not Path("x.toml").exists()


def test_the_command_that_shows_layouts_is_as_it_was(cli) -> None:
    shown = cli("layouts", "cogvideox")
    assert "transformer_blocks.{i}.attn1.to_q" in shown.stdout
    assert (
        cli("layouts", "cogvideox", "--mermaid").stdout
        == cli("layouts", "--mermaid", "cogvideox").stdout
        != shown.stdout
    )
    assert "CogVideoX" in cli("layouts").stdout
    assert cli("layouts", "klingon").exit_code == 1
    assert "layouts learn [OPTIONS] A B\n" in cli("layouts", "learn", "--help").stdout


def as_adapter(base: dict[str, np.ndarray], split: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """What a converter of LoRAs makes of a probe: B cut by rows, A copied, under Diffusers' names."""
    out = {}
    for key, tensor in base.items():
        path, _, factor = key.removeprefix("diffusion_model.").partition(".lora_")
        names = split[re.sub(r"\d+", "{}", path)]
        parts = np.split(tensor, len(names)) if factor == "B.weight" else [tensor] * len(names)
        for name, part in zip(names, parts, strict=True):
            out[f"transformer.{name.format(*re.findall(r'[0-9]+', path))}.lora_{factor}"] = part.copy()
    return out


def test_a_converter_of_loras_is_learned_from_a_probe_of_an_adapter(tmp_path: Path, cli) -> None:
    base = {f"blocks.{i}.qkv.weight": np.zeros((24, 8), np.float32) for i in range(3)}
    base |= {"out.weight": np.zeros((6, 8), np.float32), "conv.weight": np.zeros((8, 4, 2, 2), np.float32)}
    base |= {"norm.weight": np.ones(8, np.float32), "blocks.0.qkv.bias": np.zeros(24, np.float32)}
    source, made = saved(tmp_path / "a.safetensors", base), tmp_path / "p.safetensors"
    assert "10 tensors" in cli("layouts", "probe", source, "-o", made, "--adapter", "--rank", "4").stdout
    numbers = load_file(made)
    assert numbers["diffusion_model.conv.lora_A.weight"].shape == (4, 4, 2, 2)
    assert numbers["diffusion_model.conv.lora_B.weight"].shape == (8, 4, 1, 1)
    split = {"blocks.{}.qkv": ["layers.{}.q", "layers.{}.k", "layers.{}.v"], "out": ["proj_out"], "conv": ["patch"]}
    extra = {"embedding.weight": np.ones((2, 2)), "layers.0.q.alpha": np.ones(())}
    converted = saved(tmp_path / "c.safetensors", as_adapter(numbers, split) | extra)
    done = cli("layouts", "learn", made, converted, "-o", tmp_path / "x.toml", "--json")
    assert done.exit_code == 0, done.output
    check_schema(report := json.loads(done.stdout), "learn")
    assert report["left_out"] == {"no part of the model, or of the adapter": ["embedding"]}
    stacks = {t.text: len(s) for t, s in learned(tmp_path / "x.toml").layouts["original"].modules.items()}
    assert stacks == {"blocks.{i}.qkv": 3, "out": 1, "conv": 1}
    words = [tmp_path / "x.toml", *[made, converted] * 2]
    (tmp_path / "x.toml").write_text((tmp_path / "x.toml").read_text() + '\n[dimensions]\nproj_out = ["o", "64"]\n')
    checked = json.loads(cli("layouts", "check", *words, "--json").stdout)
    assert [pair["tensors"] for pair in checked["pairs"]] == [11, 11]
    assert checked["dimensions"] == {}  # the inputs are in no factor B


def test_two_layers_in_a_row_are_no_blocks(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    a = {f"cap.{n}.weight": random.random((4, 4)) for n in range(2)}
    a |= {f"blocks.{i}.ff.{n}.weight": random.random((4, 4)) for i in range(3) for n in range(2)}
    learn_pair(tmp_path, a, {key.replace("cap", "embed").replace("ff", "mlp"): t for key, t in a.items()})
    assert {t.text for t in learned(tmp_path / "x.toml").layouts["diffusers"].modules} == {
        "embed.0", "embed.1", "blocks.{i}.mlp.0", "blocks.{i}.mlp.1",
    }  # fmt: skip


def test_parameters_of_the_model_itself_and_of_other_names(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    a = {"head.modulation": random.random((1, 2, 4)), "tokens": random.random((1, 8)), "norm.scale": random.random(4)}
    a |= {f"blocks.{i}.table": random.random((1, 6, 4)) for i in range(3)}
    b = {"scale_shift_table": a["head.modulation"], "embed.tokens": a["tokens"], "norm.weight": a["norm.scale"]}
    b |= {f"layers.{i}.scale_shift_table": a[f"blocks.{i}.table"] for i in range(3)}
    done = learn_pair(tmp_path, a, b)
    assert not done.left_out
    arch = learned(tmp_path / "x.toml")
    of_a = {t.text: arch.named(s, "original") for t, s in arch.layouts["original"].modules.items()}
    assert of_a == {"head": ("modulation",), "": ("tokens",), "norm": ("scale",), "blocks.{i}": ("table",)}
    of_b = {t.text: arch.named(s, "diffusers") for t, s in arch.layouts["diffusers"].modules.items()}
    table = ("scale_shift_table",)
    assert of_b == {"": table, "embed": ("tokens",), "norm": ("weight",), "layers.{i}": table}
    check(tmp_path / "x.toml", [(tmp_path / "a.safetensors", tmp_path / "b.safetensors")])
    b = {"pos.table": a["head.modulation"], "tokens": a["tokens"]}
    a = {"table": a["head.modulation"], "tokens": a["tokens"], "m.weight": np.eye(5)}
    done = learn_pair(tmp_path / "two", a, b | {"n.weight": a["m.weight"]})
    assert done.left_out == {"parameters of one module go to several": ["tokens", "pos"]}


def test_rows_that_differ_in_one_number_are_not_the_same(tmp_path: Path) -> None:
    """In one of those, too, by which rows are not looked up."""
    random = np.random.default_rng(0)
    a = {"m.weight": random.random((4, 100)), "n.weight": random.random((4, 5))}
    for column in (0, 1, 50, 99):
        other = a["m.weight"].copy()
        other[2, column] += 1
        with pytest.raises(LoraforgeError, match=r"b\.safetensors has rows that .* in x\.weight; .* in m\.weight"):
            learn_pair(tmp_path, a, {"x.weight": other, "y.weight": a["n.weight"]})


def test_modules_of_a_that_become_one_are_shown(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    a = {f"blocks.{i}.{name}.weight": random.random((4, 5)) for i in range(3) for name in ("gate", "up")}
    b = {f"t.{i}.proj.weight": np.concatenate([a[f"blocks.{i}.{n}.weight"] for n in ("up", "gate")]) for i in range(3)}
    done = learn_pair(tmp_path, a, b)
    assert ("stacked", "t.{i}.proj = blocks.{i}.up, blocks.{i}.gate") in done.remarks


def test_parameters_of_two_names_are_not_taken_for_one(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    a = {"p.weight": random.random((4, 5)), "q.w": random.random((4, 5)), "m.weight": random.random((4, 5))}
    b = {"x.weight": np.concatenate([a["p.weight"], a["q.w"]]), "y.weight": a["m.weight"]}
    assert learn_pair(tmp_path / "stack", a, b).left_out == {"its parameters are of several modules": ["x"]}
    a = {f"blocks.{i}.norm.{'scale' if i == 0 else 'weight'}": random.random(4) for i in range(3)}
    learn_pair(tmp_path / "blocks", a, {f"t.{i}.norm.weight": tensor for i, tensor in enumerate(a.values())})
    arch = learned(tmp_path / "blocks" / "x.toml")
    stacks = {t.text: arch.named(stack, "original")[0] for t, stack in arch.layouts["original"].modules.items()}
    assert stacks == {"blocks.0.norm": "scale", "blocks.1.norm": "weight", "blocks.2.norm": "weight"}


def test_counters_and_empty_tensors_are_to_be_dropped(tmp_path: Path) -> None:
    a = {
        "m.weight": np.random.default_rng(0).random((4, 5)),
        "ids": np.arange(6).reshape(2, 3),
        "none": np.ones((0, 4)),
    }
    b = {"n.weight": a["m.weight"], "steps": np.arange(3), "empty": np.ones((0, 2))}
    with pytest.raises(LoraforgeError, match=r"in empty, steps; .* in ids\."):
        learn_pair(tmp_path, a, b)
    drop = [(name, "a counter") for name in ("ids", "steps", "empty")]
    done = learn_pair(tmp_path, a, b, drop=drop)
    assert {text for kind, text in done.remarks if kind == "dropped"} == {"ids", "empty", "steps"}
