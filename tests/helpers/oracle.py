"""The recorded truth: files that SAT, CogVideo and diffusers wrote, and the numbers they computed (tests/data)."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from helpers.tolerance import UPDATE, share

DATA = Path(__file__).parents[1] / "data"
SAT_CASES = (
    "sat_2b_r4",
    "sat_2b_r8_alpha4_layer1",
    "sat_2b_full_r4",
    "sat_5b_r8",
    "sat_5b_i2v_r8",
    "sat_1.5_t2v_r4",
)

FILE_CASES = {
    "peft_plain": ".",
    "peft_rslora": ".",
    "peft_patterns": ".",
    "peft_dora": ".",
    "diffusers_meta_patterns": ".",
    "diffusers_save_lora_adapter": ".",
    "diffusers_save_lora_weights_meta": ".",
    "finetrainers_dcp_ws1": ".",
    "diffusers_save_lora_weights_nometa": ".",
    "cogvideox_factory_alpha_half": ".",
    "cogvideo_trainer_plain": ".",
    "videox_fun_peft": "checkpoint-100.safetensors",
}
"""Case -> what of its folder a user would give."""

SILENT = (
    "diffusers_save_lora_weights_nometa",
    "cogvideox_factory_alpha_half",
    "cogvideo_trainer_plain",
    "videox_fun_peft",
)
"""Cases whose files record no scale."""


@dataclass(frozen=True)
class Case:
    """One folder of tests/data, written by the original software."""

    name: str

    @property
    def folder(self) -> Path:
        return DATA / self.name

    @cached_property
    def manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "manifest.json").read_text()))

    @property
    def base(self) -> Path:
        return DATA / self.manifest["base"]

    @property
    def scale(self) -> float:
        return float(self.manifest["intended_scale"])

    @property
    def source(self) -> Path:
        """What a user would give: the run folder, or the file or folder the trainer wrote."""
        return self.folder / FILE_CASES.get(self.name, "sat_ckpt")

    @property
    def said(self) -> dict[str, Any]:
        """What the user has to state: nothing, where the files record it."""
        if self.name in SAT_CASES:
            return {"training_config": self.folder / "sat_config.yaml"}
        return {"alpha": self.manifest["alpha"]} if self.name in SILENT else {}

    @property
    def sat_base(self) -> Path:
        """A SAT checkpoint of the base."""
        return self.source if self.name in SAT_CASES else DATA / "bases" / "2b" / "sat_base"

    def run(self, place: Path, *, config: bool = True) -> Path:
        """A copy of the SAT run folder as the trainer left it, with its training_config.yaml unless told otherwise."""
        run = place / "lora-disney-11-20-10-00"
        shutil.copytree(self.folder / "sat_ckpt", run)
        if config:
            shutil.copy(self.folder / "sat_config.yaml", run / "training_config.yaml")
        return run

    @cached_property
    def deltas(self) -> dict[str, np.ndarray]:
        """Diffusers module path -> the update training applied to its weight, [out, in]."""
        tensors = load_file(self.folder / "expected_delta.safetensors")
        return {
            key.removesuffix(".weight"): tensor.astype(np.float64) for key, tensor in tensors.items() if tensor.any()
        }


def updates(file: Path) -> dict[str, np.ndarray]:
    """Module path -> update of a Diffusers file as a loader that knows no metadata applies it: B @ A at 1.0, flat."""
    tensors = {key: tensor.reshape(tensor.shape[0], -1) for key, tensor in load_file(file).items()}
    paths = sorted(
        key.removeprefix("transformer.").removesuffix(".lora_A.weight") for key in tensors if ".lora_A." in key
    )
    return {
        path: tensors[f"transformer.{path}.lora_B.weight"].astype(np.float64)
        @ tensors[f"transformer.{path}.lora_A.weight"].astype(np.float64)
        for path in paths
    }


def assert_acts_as_trained(file: Path, case: Case, tolerance: float = UPDATE) -> None:
    """Per module, in float64: the file's update equals what training applied."""
    got = updates(file)
    assert got.keys() == case.deltas.keys()
    for path, want in case.deltas.items():
        error = share(got[path], want)
        assert error <= tolerance, f"{path} is off by {error:.1e}"
