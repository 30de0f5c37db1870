"""Keys of PEFT folders, bare state dicts and Diffusers files that do not belong together."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hostile.builders import HIDDEN, numbers, safetensors
from hostile.peft_builders import MODULE, OTHER, ROOT, A, B, Tensors, all_named, cases, lora, peft


def keys_that_do_not_belong(prefix: str) -> dict[str, tuple[dict[str, np.ndarray], str]]:
    """What may stand in a file of any prefix and makes it no plain adapter."""
    stem, healthy, one = f"{prefix}{MODULE}", lora(prefix), numbers(HIDDEN)
    return {
        "two adapters": (all_named(prefix, "one", "two"), "several adapters"),
        "a named adapter beside a plain one": (all_named(prefix, "", "default"), "several"),
        "A plain and B named": (
            {f"{stem}.lora_A.weight": A, f"{stem}.lora_B.default.weight": B},
            "several",
        ),
        "a bias of B": (healthy | {f"{stem}.lora_B.bias": numbers(HIDDEN + 1)}, "bias"),
        "a bias of a named B": (healthy | {f"{stem}.lora_B.default.bias": one}, "bias"),
        "a bias of nothing": (healthy | {f"{prefix}{OTHER}.lora_B.bias": one}, "bias"),
        "two biases of B": (healthy | {f"{stem}.lora_B{n}.bias": one for n in ("", ".default")}, "bias"),
        "an alpha": (healthy | {f"{stem}.alpha": numbers()}, "alpha"),
        "a whole weight": (healthy | {f"{prefix}proj_out.weight": A}, "whole weight"),
        "a whole bias": (healthy | {f"{prefix}proj_out.bias": one}, "whole weight"),
        "an embedding": (healthy | {f"{stem}.lora_embedding_A": A}, "embedding"),
        "a part of LoKr": (healthy | {f"{stem}.lokr_w1": A}, "LoKr"),
        "a part of LoKr, split": (healthy | {f"{stem}.lokr_w2_a": A}, "lokr_w2_a"),
        "a part of LoHa": (healthy | {f"{stem}.hada_w1_a": A}, "hada_w1_a"),
        "nothing but LoHa": ({f"{stem}.hada_w1_a": A, f"{stem}.hada_w1_b": B}, "hada_w1_a"),
        "nothing but LoKr": ({f"{stem}.lokr_w1": A, f"{stem}.lokr_w2": B}, "lokr_w1"),
        "a saved module": (healthy | {f"{prefix}proj_out.modules_to_save.weight": A}, "modules_to_save"),
        "a text encoder's": (healthy | {"text_encoder.encoder.q.lora_A.weight": A}, "text_encoder"),
        "half of an older spelling": ({f"{stem}.lora_A.weight": A, f"{stem}.lora.up.weight": B}, "lora.up"),
        "a module beside it in an older spelling": (
            healthy | {f"{prefix}{OTHER}.lora.down.weight": A, f"{prefix}{OTHER}.lora.up.weight": B},
            "lora.down",
        ),
        "a module CogVideoX has not": (healthy | lora(prefix, "blocks.0.q"), "blocks.0.q"),
        "a block 00": (healthy | lora(prefix, MODULE.replace(".0.", ".00.")), ".00."),
        "a block of 30 digits": (healthy | lora(prefix, MODULE.replace(".0.", f".{10**30}.")), "1000000"),
        "A twice named": (
            healthy | {f"{prefix}{OTHER}.lora_A.lora_A.weight": A, f"{prefix}{OTHER}.lora_B.lora_A.weight": B},
            "lora_A.lora_A",
        ),
        "a magnitude and nothing else": ({f"{stem}.lora_magnitude_vector": one}, "has no A"),
        "a magnitude of another module": (healthy | {f"{prefix}{OTHER}.lora_magnitude_vector": one}, "to_k has no A"),
        "a magnitude of another spelling": (
            healthy | {f"{stem}.lora_magnitude_vector.default.weight": one},
            "several",
        ),
        "a magnitude of no spelling": (healthy | {f"{stem}.lora_magnitude_vector.weight": one}, "magnitude"),
        "nothing": ({}, "0 tensors"),
    }


KEYS = {name: keys_that_do_not_belong(prefix) for name, prefix in (("folder", ROOT), ("transformer", "transformer."))}
KEYS["bare"] = keys_that_do_not_belong("")


@pytest.mark.parametrize("case", KEYS["folder"])
def test_keys_of_a_folder(tmp_path: Path, refused, case: str):
    tensors, fragment = KEYS["folder"][case]
    refused(peft(tmp_path / "x", tensors), fragment)


@pytest.mark.parametrize("case", KEYS["bare"])
@pytest.mark.parametrize("kind", ["bare", "transformer"])
def test_keys_of_a_file(tmp_path: Path, refused, kind: str, case: str):
    tensors, fragment = KEYS[kind][case]
    (tmp_path / "x.safetensors").write_bytes(safetensors(tensors))
    refused([tmp_path / "x.safetensors", "--as-loaded"], fragment)


@pytest.mark.parametrize("case", ["a part of LoHa", "a part of LoKr, split"])
def test_another_method_is_named(tmp_path: Path, refused, case: str):
    refused(peft(tmp_path / "x", KEYS["folder"][case][0]), ": LoHa" if "LoHa" in case else ": LoKr")


PREFIXES = {
    "bare and transformer.": (lora("") | lora("transformer.", OTHER), ""),
    "bare and transformer., one module": (lora("") | lora("transformer."), ""),
    "bare and PEFT's": (lora("") | lora(ROOT, OTHER), "several"),
    "transformer. and PEFT's": (lora("transformer.") | lora(ROOT, OTHER), ""),
    "bare and kohya's": (lora("") | {"lora_unet_x.lora_down.weight": A}, "lora_unet_x"),
    "told as such": (lora("") | lora("transformer.", OTHER), "several"),
}


@pytest.mark.parametrize(("tensors", "fragment"), **cases(PREFIXES))
def test_two_prefixes(tmp_path: Path, refused, tensors: Tensors, fragment: str):
    (tmp_path / "x.safetensors").write_bytes(safetensors(tensors))
    refused([tmp_path / "x.safetensors", "--as-loaded"], fragment)


OTHERS = {
    "DiffSynth's names": lora("", "blocks.0.self_attn.q"),
    "Wan's names": lora("diffusion_model.", "blocks.0.self_attn.q"),
    "Flux's names, almost": lora("transformer.", "single_transformer_blocks.0.att.to_q"),
    "almost CogVideoX's names": lora("transformer.", "transformer_blocks.0.attn3.to_q"),
    "kohya's names": {"lora_unet_q.lora_down.weight": A, "lora_unet_q.lora_up.weight": B},
    "a whole PEFT model": lora("") | {f"{MODULE}.base_layer.weight": A},
    "an adapter of no name": {f"{MODULE}.lora_A..weight": A, f"{MODULE}.lora_B..weight": B},
}


@pytest.mark.parametrize("tensors", **cases(OTHERS))
def test_another_model(tmp_path: Path, refused, tensors: Tensors):
    (tmp_path / "x.safetensors").write_bytes(safetensors(tensors))
    refused([tmp_path / "x.safetensors", "--as-loaded"])
