"""The keys of a file are read a kind at a time, and what is wrong with one block is still said of that block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import loraforge
from loraforge.errors import FormatError
from loraforge.files.tensorfile import TensorFile, TensorInfo
from loraforge.format.diffusers import STYLE
from loraforge.format.keys import KeyStyle, Spelling
from loraforge.names.catalog import architecture
from loraforge.names.layout import ANY, Template

MODULE = "transformer.transformer_blocks.{}.attn1.{}"
KOHYA = KeyStyle((Spelling(".lora_down.weight", ".lora_up.weight", "", ".alpha"),), ("lora_unet_",), sep="_")


def adapter(blocks: int) -> dict[str, TensorInfo]:
    """Keys and shapes of an adapter of rank 4."""
    names = [MODULE.format(n, word) for n in range(blocks) for word in ("to_q", "to_k", "to_out.0")]
    shapes = {".lora_A.weight": (4, 8), ".lora_B.weight": (8, 4)}
    return {name + suffix: TensorInfo("F32", shape, 0) for name in names for suffix, shape in shapes.items()}


def fused(blocks: int) -> dict[str, TensorInfo]:
    """The same of a module that stacks three and is itself in no architecture, in kohya's names."""
    names = [f"lora_unet_transformer_blocks_{n}_attn1_to_qkv" for n in range(blocks)]
    shapes = {".lora_down.weight": (4, 8), ".lora_up.weight": (24, 4), ".alpha": ()}
    return {name + suffix: TensorInfo("F32", shape, 0) for name in names for suffix, shape in shapes.items()}


@pytest.mark.parametrize(("style", "made"), [(STYLE, adapter), (KOHYA, fused)])
def test_a_kind_of_key_is_read_and_located_once(style: KeyStyle, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def counting(owner: type, name: str) -> None:
        plain = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *args: (calls.append(name), plain(*args))[1])

    counting(KeyStyle, "_readings")
    counting(Template, "match")
    counts = []
    for blocks in (3, 300):
        calls.clear()
        style._parsed.clear()
        layout = architecture("cogvideox").layouts["diffusers"]
        layout._located.clear()
        found = style.find(made(blocks), architecture("cogvideox"), "diffusers")
        assert len(found) == blocks * 3
        counts.append(len(calls))
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("verb", [loraforge.inspect, lambda path: loraforge.read(path, alpha=4).scalings])
def test_of_modules_that_are_alike_one_is_read(verb: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    plain = TensorFile.views
    monkeypatch.setattr(TensorFile, "views", lambda file, keys: plain(file, (read.append(key) or key for key in keys)))
    counts = []
    for blocks in (6, 60):
        read.clear()
        tensors = {key: np.ones(info.shape, np.float32) for key, info in adapter(blocks).items()}
        save_file(tensors, tmp_path / f"{blocks}.safetensors")
        verb(tmp_path / f"{blocks}.safetensors")
        counts.append(len(read))
    assert counts[0] == counts[1] > 0
    assert len(loraforge.read(tmp_path / "60.safetensors", alpha=4).modules["transformer_blocks.59.attn1.to_q"]) == 1


def test_each_alpha_of_modules_that_are_alike_counts(tmp_path: Path) -> None:
    tensors = {key: np.ones(info.shape, np.float32) for key, info in fused(12).items()}
    tensors |= {key: np.array(1 + n, np.float16) for n, key in enumerate(key for key in tensors if ".alpha" in key)}
    save_file(tensors, tmp_path / "x.safetensors")
    read = loraforge.read(tmp_path / "x.safetensors", "kohya", architecture="cogvideox", trained_by="sd-scripts")
    for n in range(12):
        assert {w.scaling for w in read.modules[f"transformer_blocks.{n}.attn1.to_k"]} == {(1 + n) / 4}
    assert read.scalings == tuple((1 + n) / 4 for n in range(12))
    assert (
        len({*map(tuple, loraforge.inspect(tmp_path / "x.safetensors", architecture="cogvideox").ranks.items())}) == 1
    )


def test_one_block_may_be_fused_and_the_next_not() -> None:
    apart = {
        key.replace("to_qkv", word): info._replace(shape=(8, *info.shape[1:]) if "up" in key else info.shape)
        for key, info in fused(2).items()
        if "_1_" in key
        for word in ("to_q", "to_k", "to_v")
    }
    mixed = {key: info for key, info in fused(2).items() if "_0_" in key} | apart
    found = KOHYA.find(mixed, architecture("cogvideox"), "diffusers")
    assert found["transformer_blocks.0.attn1.to_k"][0].like.rows == slice(8, 16)
    assert found["transformer_blocks.1.attn1.to_k"][0].like.rows == slice(None)


def test_the_parts_of_a_fused_module_have_rows_of_their_own() -> None:
    found = KOHYA.find(fused(12), architecture("cogvideox"), "diffusers")
    for n in range(12):
        words = [f"transformer_blocks.{n}.attn1.{word}" for word in ("to_q", "to_k", "to_v")]
        assert [found[word][0].like.rows for word in words] == [slice(0, 8), slice(8, 16), slice(16, 24)]


Q = MODULE.format(7, "to_q")
FAULTS = {
    "type": ({f"{Q}.lora_A.weight": TensorInfo("U8", (4, 8), 0)}, f"{Q}.lora_A.weight is U8"),
    "rank": ({f"{Q}.lora_A.weight": TensorInfo("F32", (5, 8), 0)}, "attn1.to_q: A [5, 8] and B [8, 4] disagree"),
    "repeats": ({f"{Q}.lora_B.weight": TensorInfo("F32", (8, 4), 0, (0, 1))}, f"{Q}.lora_B.weight repeats"),
    "convolution": (
        {
            f"{Q}.lora_A.weight": TensorInfo("F32", (4, 8, 3, 3), 0),
            f"{Q}.lora_B.weight": TensorInfo("F32", (8, 4, 1, 1), 0),
        },
        "attn1.to_q is no convolution",
    ),
    "doubled": ({f"{Q[12:]}.lora_A.weight": TensorInfo("F32", (4, 8), 0)}, "lora_A.weight"),
    "number": ({f"{MODULE.format('07', 'to_q')}.lora_A.weight": TensorInfo("F32", (4, 8), 0)}, "no LoRA key"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_one_block_of_many_is_said_of_that_block(name: str) -> None:
    changed, message = FAULTS[name]
    with pytest.raises(FormatError) as refusal:
        STYLE.find(adapter(12) | changed, architecture("cogvideox"), "diffusers")
    assert message in refusal.value.message
    assert "_blocks.8." not in refusal.value.message


def test_a_missing_factor_is_said_of_its_block() -> None:
    tensors = adapter(12)
    del tensors[f"{Q}.lora_B.weight"]
    with pytest.raises(FormatError, match=r"transformer_blocks\.7\.attn1\.to_q has no B"):
        STYLE.find(tensors, architecture("cogvideox"), "diffusers")


@pytest.mark.parametrize(("name", "last"), [("cogvideox", None), ("flux", None), ("sd3", 7), ("mochi", 7), ("wan", 7)])
def test_a_module_is_located_as_by_its_own_path(name: str, last: int | None) -> None:
    """What is known of one number holds of the others, except of the last block and of words that are numbers."""
    for layout in architecture(name).ending(last).layouts.values():
        for template in layout.modules:
            for number in (0, 2, 7, 41, int(ANY)):
                path = template.fill(tuple((hole[1:-1], number) for hole in template.holes))
                for sep in "._":
                    spelled = path.replace(".", sep)
                    assert layout.locate(spelled, sep) == layout._matching(spelled, sep)
