"""What the tests of HunyuanVideo share: adapters in its original names, and their updates in full."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from diffusers.loaders.single_file_utils import convert_hunyuan_video_transformer_to_diffusers
from safetensors.numpy import load_file, save_file

import loraforge

WIDTH = 3072  # diffusers' converters cut linear1 at this number
INPUTS = 6
"""Of what is no width of the model: text, frequencies, pooled text."""
HEIGHTS = {
    **{
        f"double_blocks.{i}.{stream}{name}": height
        for i in (0, 19)
        for stream in ("img", "txt")
        for name, height in {"_attn_qkv": 3, "_attn_proj": 1, "_mlp.fc1": 4, "_mlp.fc2": 1, "_mod.linear": 6}.items()
    },
    **{
        f"single_blocks.{i}.{name}": height
        for i in (0, 39)
        for name, height in {"linear1": 7, "linear2": 1, "modulation.linear": 3}.items()
    },
    **{
        f"txt_in.individual_token_refiner.blocks.{i}.{name}": height
        for i in (0, 1)
        for name, height in {
            "self_attn_qkv": 3, "self_attn_proj": 1, "mlp.fc1": 4, "mlp.fc2": 1, "adaLN_modulation.1": 2,
        }.items()
    },
    **dict.fromkeys(
        (
            "txt_in.input_embedder", "txt_in.t_embedder.mlp.0", "txt_in.t_embedder.mlp.2",
            "txt_in.c_embedder.linear_1", "txt_in.c_embedder.linear_2", "img_in.proj", "time_in.mlp.0", "time_in.mlp.2",
            "guidance_in.mlp.0", "guidance_in.mlp.2", "vector_in.in_layer", "vector_in.out_layer", "final_layer.linear",
        ),
        1,
    ),
    "final_layer.adaLN_modulation.1": 2,
}  # fmt: skip
"""Every module of the original model that has a matrix, and its rows as multiples of the width."""
WRONG = ("self_attn_qkv", "final_layer.adaLN_modulation.1")
"""What diffusers' LoRA converter gets wrong: it cuts and exchanges the rows of lora_A, which are the rank's."""

WIDE = (
    "_attn_qkv",
    "_attn_proj",
    "mlp.fc1",
    "_mod.linear",
    "linear1",
    "modulation.linear",
    "adaLN_modulation.1",
    "mlp.2",
    "c_embedder.linear_2",
    "out_layer",
    "final_layer.linear",
)
"""How the paths end of modules whose inputs are the model's width."""
LONG = {"mlp.fc2": 4, "linear2": 5}
"""And of those that have several widths."""
PROBES = 8

Dense = dict[str, np.ndarray]


def inputs(path: str) -> int:
    times = next((n for end, n in LONG.items() if path.endswith(end)), int(path.endswith(WIDE)))
    return times * WIDTH or INPUTS


@cache
def probes(width: int) -> np.ndarray:
    """What updates of many inputs are applied to, so that they need not be held in full."""
    return np.eye(width) if width < 1000 else np.random.default_rng(width).standard_normal((width, PROBES)) / width**0.5


def random_adapter(rank: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """Module path -> A and B, as `<path>.lora_A.weight`; the patch embedding's as a convolution has them."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for path, height in HEIGHTS.items():
        conv = path == "img_in.proj"
        A = rng.standard_normal((rank, 16, 1, 2, 2) if conv else (rank, inputs(path)), np.float32)
        B = rng.standard_normal((height * WIDTH, rank), np.float32)
        tensors[f"{path}.lora_A.weight"] = A
        tensors[f"{path}.lora_B.weight"] = B.reshape(*B.shape, 1, 1, 1) if conv else B
    return tensors


def dense(tensors: Mapping[str, np.ndarray], prefix: str = "", ends: tuple[str, str] = (".lora_A", ".lora_B")) -> Dense:
    """Module path -> B A in float64, or B A P for probes P, times alpha / rank where there is one."""
    updates = {}
    for key, A in tensors.items():
        stem, found, _ = key.partition(f"{ends[0]}.weight")
        if not found:
            continue
        B = tensors[f"{stem}{ends[1]}.weight"]
        seen = A.reshape(len(A), -1).astype(np.float64)
        product = B.reshape(-1, len(A)).astype(np.float64) @ (seen @ probes(seen.shape[1]))
        scale = float(tensors[f"{stem}.alpha"]) / len(A) if f"{stem}.alpha" in tensors else 1.0
        updates[stem.removeprefix(prefix)] = scale * product
    return updates


def of_base_weights(updates: Dense) -> Dense:
    """The updates under diffusers' names, moved as its converter moves base weights."""
    state = {f"{path}.weight": torch.from_numpy(update) for path, update in updates.items()}
    moved = convert_hunyuan_video_transformer_to_diffusers(state)
    return {key.removesuffix(".weight"): tensor.numpy() for key, tensor in moved.items()}


def assert_same(have: Dense, want: Dense) -> None:
    assert have.keys() == want.keys()
    for path, update in want.items():
        assert have[path].shape == update.shape, path
        np.testing.assert_allclose(have[path], update, rtol=1e-6, atol=1e-5, err_msg=path)


def saved(tensors: Mapping[str, np.ndarray], path: Path, prefix: str = "") -> Path:
    save_file({prefix + key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}, path)
    return path


def converted(source: Path, to: str, out: Path, **options: object) -> dict[str, np.ndarray]:
    loraforge.convert(source, to=to, out=out, architecture="hunyuanvideo", **options)
    return load_file(out)


def ranks(tensors: Mapping[str, np.ndarray]) -> dict[str, int]:
    return {key.partition(".lora_A")[0]: len(A) for key, A in tensors.items() if ".lora_A" in key}


def original_to_diffusers(folder: Path) -> None:
    """Every module, against the converter of base weights."""
    tensors = random_adapter()
    source = saved(tensors, folder / "original.safetensors", "transformer.")
    out = converted(source, "diffusers", folder / "out.safetensors", trained_scale=1)
    assert_same(dense(out, "transformer."), of_base_weights(dense(tensors)))
