"""What goes wrong with PEFT's folders, by kind: each is made of two adapters, one of them rank-stabilised."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from helpers.oracle import DATA, Case
from hostile.doctor_corpus import Tensors, saved
from safetensors.torch import load_file

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ROOT = "base_model.model."


@dataclass
class Folder:
    """What save_pretrained wrote, and the update of its training."""

    tensors: Tensors
    config: dict[str, Any]
    truth: Tensors
    weights: str = WEIGHTS
    text: str | None = None
    """The configuration, where it is not the JSON of the entries; empty: there is none."""
    more: dict[str, Tensors] = field(default_factory=dict)

    def written(self, place: Path) -> Path:
        if self.weights.endswith(".bin"):
            place.mkdir(parents=True)
            torch.save(self.tensors, place / self.weights)
        else:
            saved(place / self.weights, self.tensors, {"format": "pt"})
        text = json.dumps(self.config) if self.text is None else self.text
        if text:
            (place / CONFIG).write_text(text)
        return place


Change = Callable[[Folder], None]


def folders() -> dict[str, Folder]:
    found = {}
    for name in ("peft_plain", "peft_rslora"):
        place = DATA / name
        config = json.loads((place / CONFIG).read_text())
        truth = load_file(Case(name).folder / "expected_delta.safetensors")
        found[name.removeprefix("peft_")] = Folder(load_file(place / WEIGHTS), config, truth)
    return found


def said(**entries: Any) -> Change:
    return lambda folder: folder.config.update(entries)


def least(folder: Folder) -> None:
    """The fields that each PEFT knows."""
    kept = ("peft_type", "r", "lora_alpha", "target_modules", "use_rslora")
    folder.config = {key: folder.config[key] for key in kept}


def renamed(old: str, new: str) -> Change:
    def change(folder: Folder) -> None:
        folder.tensors = {key.replace(old, new): tensor for key, tensor in folder.tensors.items()}

    return change


def filled(part: str, value: float) -> Change:
    def change(folder: Folder) -> None:
        for key in sorted(key for key in folder.tensors if part in key):
            folder.tensors[key] = torch.full_like(folder.tensors[key], value)

    return change


def dropped(part: str) -> Change:
    def change(folder: Folder) -> None:
        folder.tensors = {key: tensor for key, tensor in folder.tensors.items() if part not in key}

    return change


def file(weights: str) -> Change:
    def change(folder: Folder) -> None:
        folder.weights = weights

    return change


def text(words: str) -> Change:
    def change(folder: Folder) -> None:
        folder.text = words

    return change


def halved(*, pattern: bool) -> Change:
    """Half the rank in the queries, at the same scale where it is said."""

    def change(folder: Folder) -> None:
        r = folder.config["r"] // 2
        for key in (key for key in folder.tensors if ".to_q." in key):
            folder.tensors[key] = (folder.tensors[key][:r] if ".lora_A." in key else folder.tensors[key][:, :r]) * 1.0
        scaling = folder.config["lora_alpha"] / (r**0.5 if folder.config["use_rslora"] else r)
        for name in (name for name in folder.truth if ".to_q." in name):
            A, B = (folder.tensors[f"{ROOT}{name}".replace(".weight", f".lora_{half}.weight")] for half in "AB")
            folder.truth[name] = scaling * B @ A
        if pattern:
            folder.config["rank_pattern"] = {"to_q": r}

    return change


def transposed(folder: Folder) -> None:
    folder.tensors = {key: tensor.T for key, tensor in folder.tensors.items()}


def bias(folder: Folder) -> None:
    for key in [key for key in folder.tensors if ".lora_B." in key]:
        folder.tensors[key.replace(".weight", ".bias")] = torch.ones(folder.tensors[key].shape[0])


KINDS: dict[str, Change] = {
    "nothing wrong": lambda _: None,
    "fewest fields": least,
    "a torch file": file("adapter_model.bin"),
    "another file name": file("my_style.safetensors"),
    "config: none": text(""),
    "config: no JSON": text("{"),
    "config: a field nobody knows": said(magic=1),
    "config: twice the rank": lambda folder: folder.config.update(r=2 * folder.config["r"]),
    "config: alpha 0": said(lora_alpha=0),
    "config: not all modules": said(target_modules=["to_q"]),
    "config: LoHa": said(peft_type="LOHA"),
    "config: DoRA without magnitudes": said(use_dora=True),
    "config: a pattern that matches nothing": said(rank_pattern={"to_query": 4}),
    "config: fan_in_fan_out": said(fan_in_fan_out=True),
    "config: modules_to_save": said(modules_to_save=["proj_out"]),
    "config: lora_bias": said(lora_bias=True),
    "config: no rank": lambda folder: folder.config.pop("r"),
    "config: no target_modules": said(target_modules=None),
    "config: target_modules left out": lambda folder: folder.config.pop("target_modules"),
    "names: no prefix": renamed(ROOT, ""),
    "names: Diffusers' prefix": renamed(ROOT, "transformer."),
    "names: default inside": renamed(".weight", ".default.weight"),
    "names: style inside": renamed(".weight", ".style.weight"),
    "names: compiled": renamed(ROOT, f"_orig_mod.{ROOT}"),
    "names: lora_down and lora_up": lambda folder: [
        renamed(f".lora_{a}.", f".lora_{b}.")(folder) for a, b in (("A", "down"), ("B", "up"))
    ],
    "ranks mixed, said": halved(pattern=True),
    "ranks mixed, unsaid": halved(pattern=False),
    "beside: a bias of the LoRA": bias,
    "B is zero": filled(".lora_B.", 0.0),
    "one module is zero": filled("0.attn1.to_q.lora_B", 0.0),
    "NaN": filled("0.attn1.to_q.lora_A", float("nan")),
    "A without B": dropped("0.attn1.to_q.lora_B"),
    "A and B transposed": transposed,
}  # fmt: skip
