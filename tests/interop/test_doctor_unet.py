"""What doctor predicts of Diffusers' UNet loader is what it does with a tiny UNet, file by file."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from helpers.tiny import Tiny
from peft.tuners.lora import LoraLayer
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.programs.table import runtime

PIPELINES = {"sd": StableDiffusionPipeline, "sdxl": StableDiffusionXLPipeline}
ROWS = {"sd": "diffusers-unet", "sdxl": "diffusers-unet-xl"}
KINDS = {
    "Diffusers": ("diffusers", [2]), "Diffusers, several ranks": ("diffusers", [2, 3, 4]),
    "Diffusers, header with alpha_pattern": ("diffusers", [2]), "kohya": ("kohya", [2]),
    "kohya, resized": ("kohya", [2, 3, 4]),
}  # fmt: skip
"""A kind of file -> its format, and the ranks of its modules in turn; in kohya's each has an alpha of its own."""


def made(tiny: Tiny, kind: str, folder: Path) -> Path:
    """An adapter of each matrix in an attention, of its projections in and out, and of convolutions in blocks."""
    rng, (to, ranks) = np.random.default_rng(3), KINDS[kind]
    state, alphas = {}, {}
    chosen = [one for one in tiny.placed if len(one[3]) > 1 and ("attentions" in one[0] or "resnets.1.conv" in one[0])]
    for n, (path, _, _, shape) in enumerate(chosen):
        rank, ones = ranks[n % len(ranks)], (1,) * len(shape[2:])
        state[f"unet.{path}.lora_A.weight"] = rng.standard_normal((rank, *shape[1:])).astype("f4")
        state[f"unet.{path}.lora_B.weight"] = rng.standard_normal((shape[0], rank, *ones)).astype("f4")
        alphas[path] = float(rank * (1, 1, 4, 0.5)[n % 4]) if kind != "Diffusers, several ranks" else float(rank)
    config = {"r": 2, "lora_alpha": 2, "alpha_pattern": alphas, "rank_pattern": {}, "target_modules": [*alphas]}
    entry = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in config.items()})}
    kept = "header" in kind or (to == "kohya" and "resized" in kind)
    file = folder / "x.safetensors"
    save_file(state, file, entry if kept and len(ranks) == 1 else None)
    if to == "kohya":
        stated = {} if kept and len(ranks) == 1 else {"trained_scale": 0.5}
        done = loraforge.convert(file, to="kohya", out=folder / "y.safetensors", architecture=tiny.name, **stated)
        file = Path(done.output["path"])
    if kind == "kohya, resized":
        tensors = load_file(file)
        for n, key in enumerate(sorted(key for key in tensors if key.endswith(".alpha"))):
            tensors[key] = np.asarray(tensors[key] * (1, 1, 4, 0.5)[n % 4])
        save_file(tensors, file)
    return file


def loaded(tiny: Tiny, file: Path) -> dict[str, np.ndarray]:
    """Module -> the update that Diffusers applies, by load_lora_weights' own steps."""
    kind, unet = PIPELINES[tiny.name], tiny.model()
    state, alphas, known = kind.lora_state_dict(str(file), unet_config=unet.config, return_lora_metadata=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind.load_lora_into_unet(state, network_alphas=alphas, unet=unet, adapter_name="a", metadata=known)
    out = {}
    for name, layer in unet.named_modules():
        if isinstance(layer, LoraLayer) and layer.r:
            A, B = (part["a"].weight.detach().numpy() for part in (layer.lora_A, layer.lora_B))
            out[name] = layer.scaling["a"] * (B.reshape(len(B), -1) @ A.reshape(len(A), -1))
    return out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ROWS)
def test_the_unet_loader_does_what_is_predicted(name: str, kind: str, tmp_path: Path) -> None:
    tiny = Tiny(name, 1)
    file, stated = made(tiny, kind, tmp_path), {"architecture": name}
    stated |= {"trained_scale": 0.5} if kind in ("Diffusers", "Diffusers, several ranks") else {}
    (row,) = loraforge.doctor(file, runtime_=ROWS[name], **stated).outlooks
    done = loraforge.convert(file, to="diffusers", out=tmp_path / "right", dtype="fp32", **stated)
    wanted = load_file(done.output["path"])
    updates = {
        key.removeprefix("unet.").removesuffix(".lora_A.weight"): B.reshape(len(B), -1) @ A.reshape(len(A), -1)
        for key, A in wanted.items()
        if key.endswith(".lora_A.weight")
        for B in [wanted[key.replace("lora_A", "lora_B")]]
    }
    does = loaded(tiny, file)
    assert does.keys() == updates.keys() and row.applied == row.modules == len(updates)
    ratios = {path: float(np.vdot(does[path], want) / np.vdot(want, want)) for path, want in updates.items()}
    assert all(np.allclose(does[path], ratios[path] * want, atol=1e-4) for path, want in updates.items())
    assert {f"{ratio:.4g}" for ratio in ratios.values()} == {f"{ratio:.4g}" for ratio in row.ratios}
    assert (len(row.ratios) > 1) == ("resized" in kind)  # of projections in attentions no alpha is found


def test_the_table_s_mark_is_the_number_of_these_files() -> None:
    for row in ROWS.values():
        (run,) = runtime(row).run
        assert run.files == run.agreed == len(KINDS)
