"""What is said of a UNet's adapter: its component is `unet`, in files, messages and cards."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from helpers.oracle import DATA
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.names.catalog import architecture
from loraforge.publishing.card import snippet

KOHYA = DATA / "architectures" / "sdxl_kohya" / "adapter.safetensors"


def test_it_is_the_unet_s(cli) -> None:
    assert loraforge.inspect(KOHYA).components == {"unet": 234, "text_encoder": 0}
    assert "LoRA modules: unet 234" in cli("inspect", KOHYA).stdout


def test_text_encoders_beside_it_are_named_and_left_out_when_told(tmp_path: Path, cli) -> None:
    word = "lora_te1_text_model_encoder_layers_0_self_attn_q_proj"
    ours = {f"{word}.lora_down.weight": np.ones((4, 8), "f4"), f"{word}.lora_up.weight": np.ones((8, 4), "f4")}
    save_file(load_file(KOHYA) | ours, tmp_path / "both.safetensors")
    refused = cli("convert", tmp_path / "both.safetensors", "--to", "diffusers", "-o", tmp_path / "out")
    assert refused.exit_code == 1 and "what is converted is the unet's" in refused.stderr
    done = cli(
        "convert", tmp_path / "both.safetensors", "--to", "diffusers", "-o", tmp_path / "out", "--drop", "lora_te*"
    )
    assert done.exit_code == 0 and "234 modules -> 234" in done.stdout


def test_the_keys_and_the_header_of_diffusers_file(tmp_path: Path) -> None:
    out = Path(loraforge.convert(KOHYA, to="diffusers", out=tmp_path / "a", scale_in="metadata").output["path"])
    assert all(key.startswith("unet.") for key in load_file(out))
    entry = json.loads(loraforge.inspect(out).metadata["lora_adapter_metadata"])
    assert all(key.startswith("unet.") for key in entry)
    some = loraforge.convert(out, to="peft", out=tmp_path / "b", drop=["down_blocks.*"])
    assert 0 < len(some.steps) < 234 and not any(step.module.startswith("down_blocks") for step in some.steps)


def test_the_lines_of_a_card_name_it() -> None:
    arch = architecture("sdxl")
    (variant,) = arch.variants
    for form, words in (("peft", "pipe.unet"), ("transformer", "unet=unet"), ("diffusers", "pipe.load_lora_weights")):
        text = str(snippet("me/x", variant.repo, form, "x.safetensors", arch, variant, "a cat"))
        assert words in text and "pipe.transformer" not in text and "transformer=" not in text
