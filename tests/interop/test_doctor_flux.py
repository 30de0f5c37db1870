"""What doctor predicts of Diffusers' Flux loader is what it does with a tiny Flux, file by file."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.lora_pipeline import FluxLoraLoaderMixin
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

import loraforge
from loraforge.programs.table import runtime

WIDTH, RANK = 64, 4
CONFIG = {
    "in_channels": 16, "num_layers": 2, "num_single_layers": 2, "attention_head_dim": 16, "num_attention_heads": 4,
    "joint_attention_dim": 24, "pooled_projection_dim": 12, "guidance_embeds": True, "axes_dims_rope": [4, 4, 8],
}  # fmt: skip
BLOCKS = {
    "double_blocks.0.img_attn.qkv": (3, 1), "double_blocks.0.img_attn.proj": (1, 1),
    "double_blocks.1.img_mod.lin": (6, 1), "double_blocks.1.txt_mlp.2": (1, 4), "single_blocks.0.linear2": (1, 5),
    "single_blocks.1.modulation.lin": (3, 1),
}  # fmt: skip
"""Module in the names of Flux's own code -> rows and inputs in widths. Diffusers cuts linear1 at 3072 rows only."""
OUTER = {"img_in": (WIDTH, 16), "time_in.out_layer": (WIDTH, WIDTH), "final_layer.linear": (16, WIDTH)}
DIFFUSERS = {
    "transformer_blocks.0.attn.to_q": (1, 1), "transformer_blocks.1.ff.net.2": (1, 4),
    "single_transformer_blocks.1.proj_mlp": (4, 1), "single_transformer_blocks.0.norm.linear": (3, 1),
}  # fmt: skip

Tensors = dict[str, torch.Tensor]


def factors(
    modules: dict[str, tuple[int, int]], unit: int, words: tuple[str, str], stem: str, sep: str = "."
) -> Iterator[tuple[str, torch.Tensor]]:
    for module, (rows, inputs) in modules.items():
        name = stem + module.replace(".", sep)
        yield f"{name}.{words[0]}.weight", torch.randn(RANK, inputs * unit)
        yield f"{name}.{words[1]}.weight", torch.randn(rows * unit, RANK)


def with_alphas(tensors: Tensors, *alphas: float) -> Tensors:
    names = sorted({key.partition(".lora_")[0] for key in tensors})
    return tensors | {f"{name}.alpha": torch.tensor(alphas[n % len(alphas)]) for n, name in enumerate(names)}


KOHYA, PEFT = ("lora_down", "lora_up"), ("lora_A", "lora_B")


def made(kind: str) -> tuple[Tensors, dict[str, str]]:
    torch.manual_seed(3)
    words = PEFT if "lora_A" in kind else KOHYA
    if kind == "Diffusers, lora_down, resized":
        return with_alphas(dict(factors(DIFFUSERS, WIDTH, KOHYA, "transformer.")), 1.0, 2.0, 8.0, 4.0), {}
    if kind.startswith("Diffusers"):
        pattern = {"transformer_blocks.0.attn.to_q": 1, "single_transformer_blocks.1.proj_mlp": 16}
        said = {"r": RANK, "lora_alpha": 2, "alpha_pattern": pattern, "target_modules": list(DIFFUSERS)}
        entry = {"lora_adapter_metadata": json.dumps({f"transformer.{key}": value for key, value in said.items()})}
        return dict(factors(DIFFUSERS, WIDTH, PEFT, "transformer.")), entry if "header" in kind else {}
    stem, sep = ("lora_unet_", "_") if kind.startswith("kohya") else ("diffusion_model.", ".")
    tensors = dict(factors(BLOCKS, WIDTH, words, stem, sep))
    if "embedders" in kind:
        tensors |= dict(factors(OUTER, 1, words, stem, sep))
    if words == KOHYA:
        tensors = with_alphas(tensors, *((1.0, 2.0, 8.0, 3.0) if "resized" in kind else (2.0,)))
    if "split_qkv" not in kind:
        return tensors, {}
    qkv = "lora_unet_double_blocks_0_img_attn_qkv.lora_"  # three times the rank, block-diagonal: as sd-scripts has it
    downs, ups = torch.randn(3 * RANK, WIDTH), [torch.randn(WIDTH, RANK) for _ in range(3)]
    tensors |= {f"{qkv}down.weight": downs, f"{qkv}up.weight": torch.block_diag(*ups)}
    return tensors, {"ss_network_args": '{"split_qkv": "True"}', "ss_network_dim": str(RANK), "ss_network_alpha": "2.0"}


def loaded(file: Path) -> Tensors:
    """Module -> the update that Diffusers applies to a Flux of these sizes, by load_lora_weights' own steps."""

    class Pipeline(FluxLoraLoaderMixin):
        transformer = FluxTransformer2DModel(**CONFIG)

    state, alphas, known = Pipeline.lora_state_dict(file, return_alphas=True, return_lora_metadata=True)
    ours = {key: t for key, t in state.items() if key.startswith("transformer.") and "lora" in key}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Pipeline.load_lora_into_transformer(
            ours, network_alphas=alphas, transformer=Pipeline.transformer, adapter_name="a", metadata=known
        )
    layers = {name: m for name, m in Pipeline.transformer.named_modules() if isinstance(m, LoraLayer) and m.r}
    return {name: (m.lora_B["a"].weight @ m.lora_A["a"].weight * m.scaling["a"]).detach() for name, m in layers.items()}


KINDS = [
    "Diffusers", "Diffusers, header with alpha_pattern", "Diffusers, lora_down, resized", "kohya", "kohya, split_qkv",
    "kohya, resized", "kohya, resized, embedders", "ComfyUI, lora_down, resized", "ComfyUI, lora_A",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_flux_s_loader_does_what_is_predicted(kind: str, tmp_path: Path) -> None:
    tensors, metadata = made(kind)
    save_file(tensors, tmp_path / "x.safetensors", metadata)
    stated = {"architecture": "flux"} | ({"trained_scale": 0.5} if kind in ("Diffusers", "ComfyUI, lora_A") else {})
    (row,) = loraforge.doctor(tmp_path / "x.safetensors", runtime_="diffusers-flux", **stated).outlooks
    right = tmp_path / "right.safetensors"
    loraforge.convert(tmp_path / "x.safetensors", to="diffusers", out=right, scale_in="tensors", **stated)
    wanted = load_file(right)
    updates = {
        key.removeprefix("transformer.").removesuffix(".lora_A.weight"): wanted[key.replace("lora_A", "lora_B")] @ A
        for key, A in wanted.items()
        if key.endswith(".lora_A.weight")
    }
    does = loaded(tmp_path / "x.safetensors")
    ratios = {round((does[name] / updates[name]).median().item(), 4) for name in does}
    assert ratios == {round(ratio, 4) for ratio in row.ratios}
    for name, update in does.items():
        assert any(torch.allclose(update, updates[name] * ratio, atol=1e-5) for ratio in row.ratios)
    whole = len(does) == len(updates)
    assert whole == (row.applied == row.modules) and bool(does) == bool(row.applied)
    if not whole and does:
        assert row.modules - row.applied == len(OUTER) and len(updates) - len(does) == len(OUTER)


def test_the_table_s_mark_is_the_number_of_these_files() -> None:
    (run,) = runtime("diffusers-flux").run
    assert run.files == run.agreed == len(KINDS)
