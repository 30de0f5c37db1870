"""Adapters with one fault each, and adapters with none, written with torch, safetensors and pickle alone.

Nothing here knows how a fault is told: it makes what trainers, downloads and people make.
"""

from __future__ import annotations

import gzip
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from helpers.oracle import DATA, Case
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hostile.pickles import call

Tensors = dict[str, torch.Tensor]
Make = Callable[[Path], Path]

WEIGHTS = "pytorch_lora_weights.safetensors"
ENTRY = "lora_adapter_metadata"
BASES = DATA / "bases"
BLOCKS = "transformer.transformer_blocks"


@dataclass(frozen=True)
class Fault:
    """One file, what `loraforge doctor` is to say of it, and what it must name when it says why."""

    make: Make
    verdict: str
    why: str
    words: tuple[str, ...] = ()


def source() -> tuple[Tensors, dict[str, str]]:
    """What save_lora_weights of Diffusers wrote, rank 8 and alpha 4: its tensors, and its header."""
    file = DATA / "diffusers_save_lora_weights_meta" / WEIGHTS
    with safe_open(file, framework="pt") as opened:
        return load_file(file), dict(opened.metadata())


def saved(file: Path, tensors: Tensors, metadata: dict[str, str] | None = None) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file, metadata)
    return file


def changed(*changes: Callable[[Tensors, dict[str, str]], None], name: str = WEIGHTS) -> Make:
    """The file of Diffusers after each change."""

    def make(place: Path) -> Path:
        tensors, metadata = source()
        for change in changes:
            change(tensors, metadata)
        return saved(place / name, tensors, metadata)

    return make


def renamed(*pairs: tuple[str, str], only: str = "") -> Callable[[Tensors, dict[str, str]], None]:
    def change(tensors: Tensors, _: dict[str, str]) -> None:
        for key in [key for key in tensors if only in key]:
            new = key
            for old, word in pairs:
                new = new.replace(old, word)
            tensors[new] = tensors.pop(key)

    return change


def header(prefix: str = "transformer.", **entries: Any) -> Callable[[Tensors, dict[str, str]], None]:
    """Other entries in the header."""

    def change(_: Tensors, metadata: dict[str, str]) -> None:
        said = json.loads(metadata[ENTRY]) | {prefix + name: value for name, value in entries.items()}
        metadata[ENTRY] = json.dumps(said)

    return change


def header_text(text: str) -> Callable[[Tensors, dict[str, str]], None]:
    return lambda _, metadata: metadata.update({ENTRY: text})


def no_header(_: Tensors, metadata: dict[str, str]) -> None:
    metadata.pop(ENTRY)


def unprefixed_header(_: Tensors, metadata: dict[str, str]) -> None:
    said = json.loads(metadata[ENTRY])
    metadata[ENTRY] = json.dumps({name.removeprefix("transformer."): value for name, value in said.items()})


def filled(part: str, value: float, *, one: bool = False) -> Callable[[Tensors, dict[str, str]], None]:
    """A number in the tensors whose names hold `part`; in `one`, in the first number of the first alone."""

    def change(tensors: Tensors, _: dict[str, str]) -> None:
        for key in sorted(key for key in tensors if part in key)[: 1 if one else None]:
            tensors[key][(0, 0) if one else ...] = value

    return change


def dropped(part: str, *, one: bool = False) -> Callable[[Tensors, dict[str, str]], None]:
    def change(tensors: Tensors, _: dict[str, str]) -> None:
        for key in sorted(key for key in tensors if part in key)[: 1 if one else None]:
            del tensors[key]

    return change


def added(**tensors: torch.Tensor) -> Callable[[Tensors, dict[str, str]], None]:
    return lambda held, _: held.update({name.replace("__", "."): tensor for name, tensor in tensors.items()})


def alphas(tensors: Tensors, _: dict[str, str]) -> None:
    for key in [key for key in tensors if ".lora_A." in key]:
        tensors[key.replace(".lora_A.weight", ".alpha")] = torch.tensor(4.0)


def rank_cut(tensors: Tensors, _: dict[str, str]) -> None:
    key = next(key for key in sorted(tensors) if ".lora_B." in key)
    tensors[key] = tensors[key][:, :4]


def wider(tensors: Tensors, _: dict[str, str]) -> None:
    """The factors of a model with 3072 channels, as the real 5B has."""
    for key, tensor in tensors.items():
        size = (8, 3072) if ".lora_A." in key else (3072, 8)
        tensors[key] = torch.randn(size, generator=torch.Generator().manual_seed(len(key))) * tensor.std()


def rank_128(tensors: Tensors, metadata: dict[str, str]) -> None:
    """The default rank of CogVideo's trainer."""
    for key, tensor in tensors.items():
        tensors[key] = torch.cat([tensor] * 16, dim=0 if ".lora_A." in key else 1)
    metadata.pop(ENTRY)


def typed(dtype: torch.dtype) -> Callable[[Tensors, dict[str, str]], None]:
    return lambda tensors, _: tensors.update({key: tensor.to(dtype) for key, tensor in tensors.items()})


def raw(data: bytes, name: str = WEIGHTS) -> Make:
    def make(place: Path) -> Path:
        (place / name).write_bytes(data)
        return place / name

    return make


def truncated(place: Path) -> Path:
    file = changed()(place)
    file.write_bytes(file.read_bytes()[:-1000])
    return file


def zipped(place: Path) -> Path:
    file = changed()(place)
    file.write_bytes(gzip.compress(file.read_bytes()))
    return file


def only(tensors: Tensors, name: str = WEIGHTS) -> Make:
    """A file of these tensors, and no header."""
    return lambda place: saved(place / name, tensors)


def torch_saved(value: Any, name: str) -> Make:
    def make(place: Path) -> Path:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(value, place / name)
        return place / name

    return make


def copied(name: str, *, without: str = "", config: dict[str, Any] | None = None) -> Make:
    """What a trainer wrote in a folder of tests/data, less a file, or with other entries in its adapter_config.json."""

    def make(place: Path) -> Path:
        ours = shutil.ignore_patterns("expected_delta.*", "forward.*", "manifest.json")
        folder = Path(shutil.copytree(DATA / name, place / name, ignore=ours))
        if without:
            (folder / without).unlink()
        if config:
            said = json.loads((folder / "adapter_config.json").read_text())
            (folder / "adapter_config.json").write_text(json.dumps(said | config))
        return folder

    return make


def in_peft(name: str, change: Callable[[Tensors], None], **config: Any) -> Make:
    """A PEFT folder of tests/data with other tensors, and entries of its configuration."""

    def make(place: Path) -> Path:
        folder = copied(name, config=config)(place)
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        saved(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
        return folder

    return make


def file_of(make: Make, name: str) -> Make:
    """One file of the folder that `make` makes."""
    return lambda place: make(place) / name


def lora_bias(tensors: Tensors) -> None:
    for key in [key for key in tensors if key.endswith(".lora_B.weight")]:
        tensors[key.replace(".weight", ".bias")] = torch.ones(64)


def beside(make: Make, name: str, text: str) -> Make:
    """And a configuration beside it."""

    def made(place: Path) -> Path:
        file = make(place)
        ((file if file.is_dir() else file.parent) / name).write_text(text)
        return file

    return made


def sat_run(name: str, *, config: bool = True) -> Make:
    return lambda place: Case(name).run(place, config=config)


def zero3(place: Path) -> Path:
    """A run of DeepSpeed's ZeRO-3: every rank holds a part of each tensor, and names without numbers."""
    run = place / "run" / "global_step10"
    run.mkdir(parents=True)
    empty = {key: torch.empty(0) for key in source()[0]}
    for rank in range(2):
        torch.save({"module": empty}, run / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        torch.save({"optimizer_state_dict": {}}, run / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
    (run.parent / "latest").write_text("global_step10")
    return run.parent


def emptied(tensors: Tensors, _: dict[str, str]) -> None:
    """What a save under ZeRO-3 leaves when the parameters were not gathered."""
    tensors.update({key: torch.empty(0) for key in tensors})


def patch_embed(place: Path) -> Path:
    """An adapter of the convolution that takes 32 channels in the image-to-video model, and 16 in the other."""
    tensors, metadata = source()
    stem = "transformer.patch_embed.proj"
    A, B = torch.randn(8, 32, 2, 2) * 0.1, torch.randn(64, 8, 1, 1) * 0.1
    tensors |= {f"{stem}.lora_A.weight": A, f"{stem}.lora_B.weight": B}
    said = json.loads(metadata[ENTRY])
    said["transformer.target_modules"] = [*said["transformer.target_modules"], "proj"]
    return saved(place / WEIGHTS, tensors, {**metadata, ENTRY: json.dumps(said)})


def two_adapters(tensors: Tensors, _: dict[str, str]) -> None:
    for key in list(tensors):
        tensor = tensors.pop(key)
        for name in ("style", "motion"):
            tensors[key.replace(".weight", f".{name}.weight")] = tensor.clone()


def duplicates(tensors: Tensors, _: dict[str, str]) -> None:
    for key in [key for key in tensors if ".lora_A." in key or ".lora_B." in key]:
        other = key.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up.")
        tensors[other] = tensors[key].clone()


def loha(tensors: Tensors, metadata: dict[str, str]) -> None:
    metadata.pop(ENTRY)
    for key in [key for key in tensors if ".lora_A." in key]:
        stem = key.removesuffix(".lora_A.weight")
        A, B = tensors.pop(key), tensors.pop(f"{stem}.lora_B.weight")
        for n in (1, 2):
            tensors |= {f"{stem}.hada_w{n}_a": B.clone(), f"{stem}.hada_w{n}_b": A.clone()}


def quantised(place: Path) -> Path:
    """The base as an 8-bit export has it: half of the matrices are int8, with a scale beside each."""
    base = Path(shutil.copytree(BASES / "2b", place / "base"))
    file = base / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    for key in [key for key in tensors if ".attn1.to_" in key and key.endswith(".weight")]:
        tensors[key.replace(".weight", ".weight_scale")] = torch.ones(())
        tensors[key] = tensors[key].to(torch.int8)
    saved(file, tensors, {"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "torchao", "quant_type": "int8wo"}
    (base / "config.json").write_text(json.dumps(config))
    return base


def bundle(name: str) -> Tensors:
    return load_file(BASES / name / "diffusion_pytorch_model.safetensors")


T5 = {f"encoder.block.{n}.layer.0.SelfAttention.q.weight": torch.randn(8, 8) for n in range(2)}
VAE = {f"{half}.conv_in.conv.weight": torch.randn(4, 3, 3, 3, 3) for half in ("encoder", "decoder")}
OTHER = {
    f"transformer.single_transformer_blocks.{n}.proj_mlp.lora_{half}.weight": torch.randn(8, 8)
    for n in range(2)
    for half in "AB"
}
TEXT = {
    f"text_encoder.encoder.block.{n}.layer.0.SelfAttention.q.lora_{half}.weight": torch.randn(8, 8)
    for n in range(2)
    for half in "AB"
}
HOSTILE = b"\x80\x04" + call("os.mkdir", "executed").code + b"."
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 3571234567\n"
PAGE = b"<!DOCTYPE html>\n<html><body>404</body></html>"
BARE = pickle.dumps({"module": {}}, 2)


def base_layers() -> Tensors:
    """A Diffusers trainer's state: the whole model, with PEFT's layers in it."""
    every = {key: tensor for key, tensor in bundle("2b").items() if ".attn1.to_" not in key}
    for key, tensor in bundle("2b").items():
        if ".attn1.to_" in key:
            every[key.replace(".weight", ".base_layer.weight").replace(".bias", ".base_layer.bias")] = tensor
    for key, tensor in source()[0].items():
        every[key.removeprefix("transformer.").replace(".weight", ".default.weight")] = tensor
    return every
