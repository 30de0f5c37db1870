"""Adapters in spellings of no format: read exactly, with a note on what was stripped, or refused by name."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from helpers.oracle import updates
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

import loraforge
from loraforge.errors import FormatError, LoraforgeError
from loraforge.format.grammar import grammar
from loraforge.tables import package_table

TABLE = package_table("format/spellings")
NAMES = {
    "cogvideox": [
        f"transformer_blocks.{i}.attn1.{m}" for i in (0, 1, 11) for m in ("to_q", "to_k", "to_v", "to_out.0")
    ],
    "wan": [f"blocks.{i}.{m}" for i in (0, 1, 11) for m in ("attn1.to_q", "attn2.to_k", "attn2.to_out.0", "ffn.net.2")],
}
"""Modules in Diffusers' names."""
RANK, WIDTH = 4, 64
Tensors = dict[str, np.ndarray]


def pair(path: str, rows: int = WIDTH, kind: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(sum(path.encode()))
    A, B = (random.standard_normal(shape) for shape in ((RANK, WIDTH), (rows, RANK)))
    return A.astype(kind), B.astype(kind)


def spelled(paths: list[str], stem: str, words: tuple[str, str], alpha: float | None = None, sep: str = ".") -> Tensors:
    """An adapter whose keys are `stem`, with the path in place of {}, and a word."""
    tensors: Tensors = {}
    for path in paths:
        start = stem.format(path.replace(".", sep))
        tensors |= dict(zip((start + words[0], start + words[1]), pair(path), strict=True))
        if alpha is not None:
            tensors[f"{start}.alpha"] = np.array(alpha, np.float32)
    return tensors


def converted(tensors: Tensors, place: Path, **stated) -> tuple[dict[str, np.ndarray], str]:
    """The updates that Diffusers applies of the converted file, and the notes of its report."""
    save_file(tensors, place / "x.safetensors")
    report = loraforge.convert(place / "x.safetensors", to="diffusers", out=place / "out", dtype="fp32", **stated)
    return updates(place / "out" / "pytorch_lora_weights.safetensors"), "\n".join(report.notes)


def assert_exact(got: dict[str, np.ndarray], paths: list[str], scale: float) -> None:
    assert sorted(got) == sorted(paths)
    for path in paths:
        A, B = (factor.astype(np.float64) for factor in pair(path))
        np.testing.assert_allclose(got[path], scale * B @ A, rtol=1e-6, atol=1e-6)


AB, DOWN_UP, DOTTED, PROCESSOR = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".lora.down.weight", ".lora.up.weight"),
    ("_lora.down.weight", "_lora.up.weight"),
)
MATRICES = (".matrix_A.0", ".matrix_B.0")
SEEN = {
    "DistributedDataParallel": ("module.{}", AB, ["`module` taken out"]),
    "torch.compile behind the component": ("transformer._orig_mod.{}", AB, ["`_orig_mod` taken out"]),
    "FSDP": ("_fsdp_wrapped_module.{}", AB, ["`_fsdp_wrapped_module` taken out"]),
    "two prefixes": ("transformer.base_model.model.{}", AB, ["as in Comfy-Org/ComfyUI#4347"]),
    "kohya's words": ("transformer.{}", DOWN_UP, ["as in Nerogar/OneTrainer#885"]),
    "alpha beside A and B": ("diffusion_model.{}", AB, ["as in kijai/ComfyUI-WanVideoWrapper#445"]),
    "an attribute path of a trainer": ("pipe.dit.{}", AB, ["keys like pipe.dit.MODULE", "an unusual spelling"]),
    "words that nobody writes there": ("base_model.model.{}", DOTTED, ["an unusual spelling"]),
    "SAT's words in Diffusers' names": ("transformer.{}", MATRICES, ["keys like transformer.MODULE.matrix_A.0"]),
}


@pytest.mark.parametrize("name", SEEN)
@pytest.mark.parametrize("alpha", [2.0, None])
def test_spellings_that_users_meet(name: str, alpha: float | None, tmp_path: Path) -> None:
    stem, words, said = SEEN[name]
    paths = NAMES["cogvideox"]
    stated = {"architecture": "cogvideox"} | ({} if alpha else {"trained_scale": 0.5})
    got, notes = converted(spelled(paths, stem, words, alpha), tmp_path, **stated)
    assert_exact(got, paths, 0.5)
    assert all(word in notes for word in said), notes


def test_wrappers_inside_a_path(tmp_path: Path) -> None:
    paths = NAMES["cogvideox"]
    tensors = spelled(paths, "transformer.{}", AB)
    inside = {key.replace(".attn1.", "._checkpoint_wrapped_module.attn1."): tensor for key, tensor in tensors.items()}
    got, notes = converted(inside, tmp_path, trained_scale=0.5, architecture="cogvideox")
    assert_exact(got, paths, 0.5)
    assert "`_checkpoint_wrapped_module` taken out, of activation checkpointing" in notes


def test_attention_processors_of_2023(tmp_path: Path) -> None:
    paths = NAMES["cogvideox"]
    tensors = spelled(paths, "transformer.{}", PROCESSOR)
    old = {
        key.replace(".attn1.", ".attn1.processor.").replace("to_out.0_", "to_out_"): tensor
        for key, tensor in tensors.items()
    }
    got, notes = converted(old, tmp_path, trained_scale=0.5, architecture="cogvideox")
    assert_exact(got, paths, 0.5)
    assert "Comfy-Org/ComfyUI#1144" in notes


def test_an_underscore_after_the_module(tmp_path: Path) -> None:
    paths = NAMES["cogvideox"]
    tensors = spelled(paths, "lora_unet_{}_", DOWN_UP, 2.0, sep="_")
    got, notes = converted(tensors, tmp_path, architecture="cogvideox")
    assert_exact(got, paths, 0.5)
    assert "`_ after the module` taken out" in notes


def test_two_adapters_are_refused_by_name(tmp_path: Path) -> None:
    paths = NAMES["cogvideox"]
    both = spelled(paths, "module.{}", (".lora_A.one.weight", ".lora_B.one.weight"))
    both |= spelled(paths, "module.{}", (".lora_A.two.weight", ".lora_B.two.weight"))
    with pytest.raises(FormatError, match="several adapters") as refusal:
        converted(both, tmp_path, trained_scale=1.0, architecture="cogvideox")
    assert ".lora_A.one." in refusal.value.message and ".lora_A.two." in refusal.value.message


def test_a_key_that_can_be_read_in_two_ways_is_refused(tmp_path: Path) -> None:
    """`x_transformer_blocks_0_attn1_to_k`: CogVideoX's module after x_, or Wan's `blocks` after x_transformer_."""
    paths = NAMES["cogvideox"]
    with pytest.raises(FormatError, match=r"in two ways, as alpha of transformer_blocks_.* and alpha of blocks_"):
        converted(spelled(paths, "x_{}", DOWN_UP, 2.0, sep="_"), tmp_path)


@pytest.mark.parametrize(("paths", "words", "said"), [
    (["double_blocks.{}.img_attn.qkv"], (".matrix_A.{}", ".matrix_B.{}"), r"not read: `\.matrix_A\.0`, `\.matrix_A"),
    (["double_blocks.{}.img_attn.qkv", "double_blocks.{}.img_attn.proj", "double_blocks.{}.txt_attn.proj",
      "double_blocks.{}.img_mlp.2"], (".matrix_A.{}", ".matrix_B.{}"), "several pairs of a module, as SAT stores them"),
    (["transformer_blocks.{}.attn1.to_q"], (".matrix_A", ".matrix_B"), r"not read: `\.matrix_A`"),
    (["layers.{}.attention.dense"], (".matrix_A.{}", ".matrix_B.{}"), "not named as those of any model that is known"),
])  # fmt: skip
def test_words_of_sat_that_cannot_be_read_are_named(paths: list[str], words, said: str, tmp_path: Path) -> None:
    tensors: Tensors = {}
    for path in paths:
        for block, part in ((block, part) for block in range(2) for part in range(3 if path == paths[0] else 1)):
            keys = (f"{path.format(block)}{word.format(part)}" for word in words)
            tensors |= dict(zip(keys, pair(path), strict=True))
    with pytest.raises(LoraforgeError, match=said):
        converted(tensors, tmp_path, trained_scale=1.0)


def test_a_key_beside_them_that_is_not_understood_is_named(tmp_path: Path) -> None:
    tensors = spelled(NAMES["cogvideox"], "module.{}", AB) | {
        "module.transformer_blocks.0.odd.lora_A.weight": pair("")[0]
    }
    with pytest.raises(LoraforgeError, match=r"transformer_blocks\.0\.odd\.lora_A"):
        converted(tensors, tmp_path, trained_scale=1.0, architecture="cogvideox")


# --- the axes of the grammar


PREFIXES = ["", *TABLE["prefixes"], "pipe.dit.", "network."]
WRAPPERS = [word for word in TABLE["wrappers"] if word != "processor"]


@given(data=st.data())
def test_every_axis(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    arch = data.draw(st.sampled_from(sorted(NAMES)))
    prefix = data.draw(st.sampled_from(PREFIXES))
    flat = prefix.endswith("_")
    second = "" if flat else data.draw(st.sampled_from(["", "base_model.model."]))
    wrapper = (
        "" if flat else data.draw(st.sampled_from(["", *(f"{w}." for w in TABLE["wrappers"] if w != "processor")]))
    )
    words = data.draw(st.sampled_from([(one["A"], one["B"]) for one in TABLE["factors"] if "_lora." not in one["A"]]))
    adapter = data.draw(st.sampled_from(["default", "default_0", "my style", "3"]))
    alpha = data.draw(st.sampled_from([None, 2.0, 8.0]))
    magnitude = data.draw(st.sampled_from([None, ".dora_scale", ".lora_magnitude_vector"]))
    words = (words[0].replace("{name}", adapter), words[1].replace("{name}", adapter))
    place = tmp_path_factory.mktemp("axis")
    paths = NAMES[arch]
    stem = "".join(data.draw(st.permutations([prefix, second]))) + wrapper + "{}"
    tensors = spelled(paths, stem, words, alpha, sep="_" if flat else ".")
    lengths = np.random.default_rng(1).random((WIDTH, 1) if magnitude == ".dora_scale" else (WIDTH,)).astype(np.float32)
    for path in paths if magnitude else ():
        tensors[stem.format(path.replace(".", "_" if flat else ".")) + magnitude] = lengths
    scale = alpha / RANK if alpha else 0.25
    stated = {} if alpha else {"trained_scale": scale}
    try:
        got, _ = converted(tensors, place, architecture=arch, **stated)
    except LoraforgeError as refusal:
        odd = [word for word in (prefix, second, wrapper, words[0], ".alpha", magnitude) if word]
        assert any(word.strip("._") in refusal.message for word in odd), refusal.message
        assert not (place / "out").exists()
    else:
        assert_exact(got, paths, scale)


def test_a_reading_depends_on_the_key_alone() -> None:
    """Keys of one kind are taken apart once; the number is put back."""
    style, keys = grammar(), [f"module.transformer_blocks.{n}.attn1.to_q.lora_A.weight" for n in (0, 3, 41)]
    assert [hit.path for hit in style.hits(keys)] == [key[7:-14] for key in keys]
    alone = [grammar().hits([key])[0] for key in keys]
    assert alone == style.hits(keys)
    assert [h.spelled for h in style.hits([f"proj_out.lora_A.{n}.weight" for n in (1, 2)])] == [
        "....lora_A.1.weight",
        "....lora_A.2.weight",
    ]


# --- what is stored otherwise than it acts


@pytest.mark.parametrize("kind", [ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2])
def test_eight_bits_are_widened_exactly(kind: type, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    numbers = np.arange(256, dtype=np.uint8).view(kind)
    numbers = numbers[np.isfinite(numbers.astype(np.float32))][: WIDTH * 3].astype(np.float32)[: WIDTH * 3]
    A = np.resize(numbers, (RANK, WIDTH)).astype(kind)
    B = np.resize(numbers[::-1], (WIDTH, RANK)).astype(kind)
    name = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}[np.dtype(kind).name]
    stem = "transformer.transformer_blocks.0.attn1.to_q"
    tensors = {
        f"{stem}.lora_{factor}.weight": torch.from_numpy(array.view(np.uint8)).view(name)
        for factor, array in (("A", A), ("B", B))
    }
    save_torch(tensors, tmp_path / "x.safetensors")
    report = loraforge.convert(
        tmp_path / "x.safetensors", to="peft", out=tmp_path / "out", trained_scale=1.0, architecture="cogvideox"
    )
    assert any("2 factors of 8 bits were widened to bfloat16" in note for note in report.notes)
    back = loraforge.read(tmp_path / "out").modules["transformer_blocks.0.attn1.to_q"][0]
    assert back.A.dtype == back.B.dtype == np.dtype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(back.A.astype(np.float32), A.astype(np.float32))
    np.testing.assert_array_equal(back.B.astype(np.float32), B.astype(np.float32))


def test_a_linear_module_stored_as_a_convolution(tmp_path: Path) -> None:
    paths = NAMES["cogvideox"]
    tensors = {key: tensor[..., None, None] for key, tensor in spelled(paths, "transformer.{}", AB).items()}
    got, notes = converted(tensors, tmp_path, trained_scale=0.5, architecture="cogvideox")
    assert_exact(got, paths, 0.5)
    assert "12 linear modules were stored as 1x1 convolutions" in notes
    wide = {key: np.repeat(tensor, 2, -1) if "lora_A" in key else tensor for key, tensor in tensors.items()}
    (tmp_path / "w").mkdir()
    with pytest.raises(FormatError, match="is no convolution"):
        converted(wide, tmp_path / "w", trained_scale=0.5, architecture="cogvideox")


@pytest.mark.parametrize("dora", [False, True])
def test_fused_projections_are_cut(dora: bool, tmp_path: Path) -> None:
    parts = ("to_q", "to_k", "to_v")
    tensors: Tensors = {}
    for n in range(2):
        stem = f"transformer.transformer_blocks.{n}.attn1.to_qkv"
        A, B = pair(stem, 3 * WIDTH)
        tensors |= {f"{stem}.lora_A.weight": A, f"{stem}.lora_B.weight": B}
        if dora:
            tensors[f"{stem}.lora_magnitude_vector"] = np.arange(1, 3 * WIDTH + 1, dtype=np.float32)
    got, notes = converted(tensors, tmp_path, trained_scale=0.5, architecture="cogvideox")
    assert "2 fused modules like transformer.transformer_blocks.0.attn1.to_qkv.lora_B.weight were cut" in notes
    assert len(got) == 6
    for n in range(2):
        A, B = pair(f"transformer.transformer_blocks.{n}.attn1.to_qkv", 3 * WIDTH)
        for m, part in enumerate(parts):
            rows = slice(m * WIDTH, (m + 1) * WIDTH)
            np.testing.assert_allclose(got[f"transformer_blocks.{n}.attn1.{part}"], 0.5 * B[rows] @ A, atol=1e-5)
    if dora:
        back = loraforge.read(tmp_path / "out", architecture="cogvideox", trained_scale=1.0, override_scale=True)
        magnitude = back.modules["transformer_blocks.1.attn1.to_v"][0].magnitude
        np.testing.assert_array_equal(magnitude, np.arange(2 * WIDTH + 1, 3 * WIDTH + 1))


def test_rows_of_a_fused_module_that_cannot_be_divided(tmp_path: Path) -> None:
    stem = "transformer.transformer_blocks.0.attn1.to_qkv"
    A, B = pair(stem, 3 * WIDTH + 1)
    tensors = {f"{stem}.lora_A.weight": A, f"{stem}.lora_B.weight": B}
    with pytest.raises(FormatError, match=r"the 193 rows of .* cannot be divided"):
        converted(tensors, tmp_path, trained_scale=0.5, architecture="cogvideox")


def test_a_module_beside_the_fused_one_it_is_in(tmp_path: Path) -> None:
    stem = "transformer.transformer_blocks.0.attn1.to_qkv"
    A, B = pair(stem, 3 * WIDTH)
    tensors = {f"{stem}.lora_A.weight": A, f"{stem}.lora_B.weight": B}
    tensors |= spelled(NAMES["cogvideox"][:4], "transformer.{}", AB)
    with pytest.raises(FormatError, match=r"are both A of transformer_blocks\.0\.attn1\.to_q"):
        converted(tensors, tmp_path, trained_scale=0.5, architecture="cogvideox")
