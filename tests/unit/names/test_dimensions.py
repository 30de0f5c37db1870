"""The shapes of a file are checked against each other, before any released model is asked."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from helpers.oracle import FILE_CASES, SAT_CASES, Case
from helpers.sparse import attention, every_matrix, sparse
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.adapter.fits import broken
from loraforge.errors import FormatError, LayoutError
from loraforge.names.bijection import parse
from loraforge.names.catalog import architecture
from loraforge.names.dimensions import Sized, solve, term

VARIANTS = {variant.name: variant for variant in architecture("cogvideox").variants}
Q = "transformer_blocks.7.attn1.to_q"
FF, FF2 = "transformer_blocks.3.ff.net.0.proj", "transformer_blocks.3.ff.net.2"
MOD = "transformer_blocks.5.norm1.linear"


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("rank", [128, pytest.param(4, marks=pytest.mark.long)])
def test_every_matrix_of_a_released_model_passes(name: str, rank: int, tmp_path: Path) -> None:
    file = sparse(tmp_path / "x.safetensors", every_matrix(VARIANTS[name]), rank)
    found = loraforge.inspect(file, architecture="cogvideox")
    assert found.problem is None
    assert found.fits == (name,)
    assert loraforge.inspect(file).evidence  # its width and its blocks


@pytest.mark.parametrize("name", [*SAT_CASES, *FILE_CASES])
def test_every_recorded_case_passes(name: str) -> None:
    assert loraforge.inspect(Case(name).source).problem is None


def with_(base: dict[str, tuple[int, ...]], **changed: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return base | {path.replace("__", "."): shape for path, shape in changed.items()}


WHOLE = attention(1920, 30)
CONTRADICTIONS = {
    "q of 1920 inputs and 3072 rows": (WHOLE | {Q: (3072, 1920)}, [Q]),
    "q of half the height": (WHOLE | {Q: (960, 1920)}, [Q]),
    "a block of another model": (WHOLE | attention(3072, 1, 29), list(attention(1, 1, 29))),
    "feed-forward of three times": (WHOLE | {FF: (3 * 1920, 1920)}, [FF]),
    "feed-forward upside down": (WHOLE | {FF2: (7680, 1920), FF: (1920, 7680)}, [FF, FF2]),
    "adaLN of five": (WHOLE | {MOD: (5 * 1920, 512)}, [MOD]),
    "adaLN of two widths": (WHOLE | {MOD: (6 * 1920, 512), MOD.replace("5", "6"): (6 * 1920, 512),
                                     MOD.replace("5", "8"): (6 * 1920, 256)}, [MOD.replace("5", "8")]),
    "a width that is no multiple": (WHOLE | {"norm_out.linear": (3841, 512)}, ["norm_out.linear"]),
    "half of each": (attention(1920, 15) | attention(3072, 15, 15),
                     ["transformer_blocks.7.attn1.to_q", "[1920 x 1920]", "[3072 x 3072]",
                      "transformer_blocks.16.attn1.to_q"]),
    "half of each, and one block between": (
        attention(1920, 10) | attention(1920, 5, 11) | attention(3072, 1, 10) | attention(3072, 14, 16),
        ["transformer_blocks.2.attn1.to_v", "transformer_blocks.10.attn1.to_v"]),
    "q is all there is, and not square": (
        {path: (3072, 1920) for path in WHOLE if path.endswith("to_q")}, [Q]),
}  # fmt: skip


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_shapes_that_contradict_each_other_are_refused(name: str, tmp_path: Path, cli) -> None:
    modules, odd = CONTRADICTIONS[name]
    file = sparse(tmp_path / "x.safetensors", modules)
    for words in (
        ["convert", file, "--to", "diffusers", "--alpha", "4", "-o", tmp_path / "o.safetensors"],
        ["inspect", file],
        ["stamp", file, "--alpha", "4"],
        ["verify", file, file],
        ["push", file, "me/x", "--dry-run", "--alpha", "4"],
        ["doctor", file, "--alpha", "4"],
    ):
        done = cli(*words, "--architecture", "cogvideox")  # which settles what it is, and not what is wrong with it
        assert done.exit_code == 1, words
        if words[0] != "push":
            assert all(module in done.output for module in odd), words
        assert "acts as trained" not in done.output
        if words[0] == "doctor":
            assert done.stdout.startswith("broken file:")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_the_majority_is_not_named(tmp_path: Path) -> None:
    file = sparse(tmp_path / "x.safetensors", WHOLE | {Q: (3072, 1920)})
    assert "transformer_blocks.8." not in str(loraforge.inspect(file).problem)


@pytest.mark.parametrize("turned", [attention(64, 2), attention(1920, 2), {Q: (320, 320)}])
def test_transposed_factors(turned: dict[str, tuple[int, ...]], tmp_path: Path, cli) -> None:
    file = sparse(tmp_path / "x.safetensors", turned, turned=True)
    done = cli("doctor", file, "--alpha", "4", "--architecture", "cogvideox")
    assert done.stdout.startswith("broken file:")
    assert "look transposed" in done.stdout
    remedy = cli(*shlex.split(done.stdout.rpartition("fix")[2])[1:])
    assert remedy.exit_code == 0


def test_some_transposed_factors(tmp_path: Path) -> None:
    odd = dict.fromkeys(attention(64, 1), (4, 4))
    good = sparse(tmp_path / "good.safetensors", attention(64, 2, 1))
    tensors = load_file(good) | load_file(sparse(tmp_path / "odd.safetensors", odd, 64))
    save_file(tensors, tmp_path / "x.safetensors")
    said = loraforge.inspect(tmp_path / "x.safetensors").problem
    assert "transposed" in said
    assert "transformer_blocks.0.attn1.to_q" in said
    assert "[4 x 4]" in said
    assert "transformer_blocks.1" not in said


def test_transposed_factors_of_a_weight_that_is_not_square(tmp_path: Path) -> None:
    file = sparse(tmp_path / "x.safetensors", {FF: (256, 64)}, turned=True)
    assert "the factors look transposed" in loraforge.inspect(file).problem


@pytest.mark.parametrize(
    "module", [("proj_out", (64, 1920)), ("patch_embed.proj", (1920, 16, 2, 2)), (MOD, (11520, 512))]
)
def test_a_rank_above_a_narrow_weight_is_normal(module: tuple[str, tuple[int, ...]], tmp_path: Path) -> None:
    path, shape = module
    only_cogvideox_has = {"patch_embed.text_proj": (1920, 4096)}
    file = sparse(tmp_path / "x.safetensors", {path: shape} | only_cogvideox_has, 128)
    assert loraforge.inspect(file).problem is None


def test_blocks_may_have_gaps(tmp_path: Path) -> None:
    kept = {path: shape for path, shape in WHOLE.items() if ".29." in path or ".3." in path}
    assert loraforge.inspect(sparse(tmp_path / "x.safetensors", kept)).problem is None


@pytest.mark.parametrize(("width", "block"), [(1920, 30), (3072, 48), (1920, 55)])
def test_a_block_that_no_released_model_of_that_width_has(width: int, block: int, tmp_path: Path, cli) -> None:
    modules = attention(width, 2) | attention(width, 1, block)
    file = sparse(tmp_path / "x.safetensors", modules)
    done = cli("doctor", file, "--alpha", "4", "--architecture", "cogvideox")
    assert done.exit_code == 1
    assert done.stdout.startswith("wrong base:")
    assert f"block {block}" in done.stdout
    refused = cli("convert", file, "--to", "peft", "--alpha", "4", "-o", tmp_path / "o")
    assert refused.exit_code == 1
    assert not (tmp_path / "o").exists()
    line = re.search(r"try: loraforge (.*?)   #", refused.stderr)
    assert line is not None
    assert cli(*shlex.split(line[1])).exit_code == 0


def test_what_is_left_out_contradicts_nothing(tmp_path: Path) -> None:
    file = sparse(tmp_path / "x.safetensors", attention(1920, 2) | {Q: (960, 1920)})
    assert loraforge.convert(file, to="peft", alpha=4, drop=[Q], out=tmp_path / "o").dropped_modules == (Q,)


def test_blocks_of_another_width_are_said_to_be_unchecked(tmp_path: Path) -> None:
    found = loraforge.inspect(sparse(tmp_path / "x.safetensors", attention(1024, 2) | attention(1024, 1, 55)))
    assert found.problem is None
    assert any("block numbers: unchecked" in line for line in found.lines())


def test_base_weights_beside_an_adapter_count(tmp_path: Path) -> None:
    adapter = loraforge.read(Case("sat_2b_r4").run(tmp_path))
    assert not broken(adapter)
    half = {path: tuple(w.take(0, w.rows // 2) for w in delta) for path, delta in adapter.modules.items()}
    from dataclasses import replace

    assert "query_key_value" in broken(replace(adapter, modules=half))


TOY = {
    "architecture": "toy", "title": "Toy", "segments": ["q", "k", "mlp"], "rows": {"mlp": 4},
    "layouts": {"one": {"modules": {"b.{i}.all": ["q", "k", "mlp"]}}},
    "variants": {"T": {"repo": "t/t", "blocks": 2, "shapes": {"q": [8, 8]}}},
    "dimensions": {"q": ["d", "d"], "k": ["d", "d"], "mlp": ["4 d", "d"]},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"dimensions": {"z": ["d", "d"]}}, "dimensions: unknown segment 'z'"),
        ({"dimensions": {"q": ["d", "d"], "k": ["2 d", "d"]}}, "are not as dimensions has them"),
        ({"dimensions": {"q": ["2 d", "d"]}}, "variant T: dimensions do not allow"),
        (
            {"layouts": {"one": {"modules": {"b.{i}.all": ["q", "k", "mlp"]}, "own": ["c.{i}"]}}},
            "own: 'c.{i}' is no module",
        ),
    ],
)
def test_a_table_that_cannot_be_right_is_refused(changed: dict[str, object], said: str) -> None:
    parse(TOY, "toy")
    with pytest.raises(LayoutError) as refused:
        parse(TOY | changed, "toy")
    assert said in str(refused.value)


def test_terms() -> None:
    assert [term(text) for text in ("4 d", "d", "64", "t2")] == [(4, "d"), (1, "d"), (64, ""), (1, "t2")]
    assert [term(text) for text in ("", "4d", "d 4", "0 d", "4 ", "D", "d+d")] == [None] * 7


def test_a_number_alone_is_that_number() -> None:
    table = {"a": ((1, "d"), (64, ""))}
    assert not solve([Sized("m", "a", 8, 64)], table).odd
    assert solve([Sized("m", "a", 8, 32)], table).odd


def test_an_architecture_without_the_table_is_said_to_be_unchecked(tmp_path: Path) -> None:
    text = 'architecture = "toy"\ntitle = "Toy"\nsegments = ["q"]\n[layouts.diffusers.modules]\n"t.{i}.q" = ["q"]\n'
    (tmp_path / "toy.toml").write_text(text)
    loraforge.use_plugin(tmp_path / "toy.toml")
    file = sparse(tmp_path / "x.safetensors", {"t.0.q": (8, 4)}, 2)
    assert any("no sizes of Toy are known" in note for note in loraforge.inspect(file).notes)
    report = loraforge.convert(file, to="peft", alpha=2, out=tmp_path / "o")
    assert any("no sizes of Toy are known" in note for note in report.notes)


def test_the_message_is_one_of_the_reader(tmp_path: Path) -> None:
    with pytest.raises(FormatError):
        loraforge.read(sparse(tmp_path / "x.safetensors", WHOLE | {Q: (3072, 1920)}), alpha=4)
