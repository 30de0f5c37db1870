"""Healthy checkpoints that hold no adapter, or no adapter of this kind: the message says what the file IS."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostile.builders import (
    CHECKPOINT,
    HIDDEN,
    checkpoint,
    deepspeed,
    diffusers_lora,
    numbers,
    safetensors,
    sat,
)

W = numbers(HIDDEN, HIDDEN)
SAT_BASE = {
    f"model.diffusion_model.{name}.weight": W
    for name in ("transformer.layers.0.attention.dense", "mixins.patch_embed.proj", "time_embed.0")
}
DIFFUSERS_BASE = {
    f"{name}.weight": W
    for name in ("transformer_blocks.0.attn1.to_q", "transformer_blocks.0.ff.net.2", "patch_embed.proj", "proj_out")
}
T5 = {f"encoder.block.0.layer.0.SelfAttention.{name}.weight": W for name in "qkvo"} | {"shared.weight": W}
VAE = {f"{side}.conv_in.conv.weight": numbers(8, 3, 3, 3, 3) for side in ("encoder", "decoder")}
ADAM = {"state": {0: {"step": 3, "exp_avg": W, "exp_avg_sq": W}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}
ZERO2 = {"optimizer_state_dict": {"base_optimizer_state": ADAM, "zero_stage": 2}, "ds_version": "0.16.0"}
PEFT = {
    key.removeprefix("transformer.").replace(".weight", ".default.weight"): value
    for key, value in diffusers_lora().items()
}

KINDS = {
    "a full SAT model": ("x.pt", sat(SAT_BASE), ["CogVideoX transformer"]),
    "a full SAT model, bare": (
        "x.pt",
        sat({key.removeprefix("model.diffusion_model."): value for key, value in SAT_BASE.items()}),
        ["CogVideoX transformer"],
    ),
    "a full SAT model with T5 and VAE": (
        "x.pt",
        sat(
            SAT_BASE
            | {f"conditioner.embedders.0.transformer.{key}": value for key, value in T5.items()}
            | {f"first_stage_model.{key}": value for key, value in VAE.items()}
        ),
        ["CogVideoX transformer"],
    ),
    "a full Diffusers model": ("x.safetensors", safetensors(DIFFUSERS_BASE), ["CogVideoX transformer"]),
    "a full Diffusers model in a torch file": ("x.pt", checkpoint(DIFFUSERS_BASE), ["CogVideoX transformer"]),
    "the model of a Diffusers trainer under DeepSpeed": ("x.pt", deepspeed(DIFFUSERS_BASE), ["transformer"]),
    "the adapter of a Diffusers trainer under DeepSpeed": ("x.pt", deepspeed(PEFT), ["Diffusers"]),
    "a T5": ("x.safetensors", safetensors(T5), ["T5"]),
    "a T5 in a torch file": ("x.pt", checkpoint(T5), ["T5"]),
    "a VAE": ("x.safetensors", safetensors(VAE), ["VAE"]),
    "a VAE as SAT wants it": ("x.pt", checkpoint({"state_dict": VAE | {"loss.logvar": numbers()}}), ["VAE"]),
    "an optimizer": ("x.pt", checkpoint(ADAM), ["optimizer"]),
    "an optimizer's share under ZeRO-2": ("x.pt", checkpoint(ZERO2), ["optimizer"]),
    "tensors of another kind": ("x.safetensors", safetensors({"conv1.weight": W}), []),
    "a list of tensors": ("x.pt", checkpoint([1, 2, 3]), []),
}


@pytest.mark.parametrize(("name", "data", "fragments"), KINDS.values(), ids=KINDS)
def test_a_checkpoint_of_another_kind(tmp_path: Path, refused, name: str, data: bytes, fragments: list[str]):
    (tmp_path / name).write_bytes(data)
    refused(tmp_path / name, *fragments)


TORCH = {name: case for name, case in KINDS.items() if case[0] == "x.pt"}


@pytest.mark.parametrize(("name", "data", "fragments"), TORCH.values(), ids=TORCH)
def test_the_same_when_told_it_is_sat(tmp_path: Path, refused, name: str, data: bytes, fragments: list[str]):
    (tmp_path / name).write_bytes(data)
    refused([tmp_path / name, "--from", "sat"], *fragments)


@pytest.mark.parametrize(("name", "data", "fragments"), KINDS.values(), ids=KINDS)
def test_the_same_when_told_it_is_diffusers(tmp_path: Path, refused, name: str, data: bytes, fragments: list[str]):
    (tmp_path / name).write_bytes(data)
    refused([tmp_path / name, "--from", "diffusers"])


def test_a_folder_of_cogvideos_other_trainer(tmp_path: Path, refused):
    """CogVideo's finetune/ under DeepSpeed: checkpoint-3/ holds the adapter, and pytorch_model/ the trainer's state."""
    folder = tmp_path / "checkpoint-3"
    state = folder / "pytorch_model"
    state.mkdir(parents=True)
    (folder / "latest").write_text("pytorch_model")
    (state / CHECKPOINT).write_bytes(deepspeed(DIFFUSERS_BASE | PEFT))
    (state / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(checkpoint(ZERO2))
    refused(folder, "Diffusers")
    refused(state, "Diffusers")
    refused(state / CHECKPOINT, "Diffusers")
    refused(state / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "optimizer")
    (folder / "pytorch_lora_weights.safetensors").write_bytes(safetensors(diffusers_lora()))
    refused(folder, "pytorch_lora_weights.safetensors")
