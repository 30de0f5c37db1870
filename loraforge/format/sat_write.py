"""Writes SAT run folders: the base checkpoint with the LoRA beside it, streamed, and the YAML with the scale.

Sources: SwissArmyTransformer sat/training/model_io.py (`latest`, iteration folders, `{"module": ...}`),
sat/model/finetune/lora2.py (`.original.`, one rank, scaling = lora_alpha / r; what it adapts). SAT loads one
checkpoint, and leaves at random what is not in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from loraforge.algebra.lora import Array
from loraforge.errors import ConversionError, FileError, VerificationError, adding, names_in
from loraforge.files.digest import changed
from loraforge.files.mapped import steady
from loraforge.files.opening import open_tensors
from loraforge.files.tensorfile import TensorFile
from loraforge.files.torch_write import copy_chunks, write_torch
from loraforge.format.lorafile import LoraFileWriter
from loraforge.format.protocol import Header, Target, Use, Wanted
from loraforge.format.sat_names import CHECKPOINT, CONFIG, ITERATION, LORA_SECTION, ORIGIN, SAT_PREFIX, STYLE, is_lora
from loraforge.text import command, listed


class SatWriter(LoraFileWriter):
    """Writes a run folder that SAT loads, or one of bare LoRA tensors."""

    style = STYLE
    files: tuple[str, ...] = (f"{ITERATION}/{CHECKPOINT}", "latest", CONFIG)
    governs: tuple[str, ...] = ("*/*model_states.pt", "*model_states.pt")
    stored: Literal["tensors", "metadata", "config"] = "config"

    def __init__(self, wanted: Wanted, base: Path | None) -> None:
        """`base`: the checkpoint file of `wanted.base`. Raises ConversionError if the options contradict each other."""
        if (base is None) != wanted.lora_only:
            text = "--to sat needs the base model's SAT checkpoint: SAT loads a base and its LoRA from one file. "
            text += "--base names its folder: that of the SAT weights it was, or will be, run with."
            alone = adding("--lora-only", why="only the LoRA tensors, which SAT cannot load alone")
            if base is None or wanted.base is None:
                raise ConversionError(text, alone)
            raise ConversionError("--base and --lora-only exclude each other.", adding("--base", wanted.base), alone)
        self.alpha = 1.0 if wanted.target_alpha is None else float(wanted.target_alpha)
        if not 2.0**-64 <= self.alpha <= 2.0**64:  # its square, over a rank, must be a number too
            text = f"--target-alpha {self.alpha:g} is no lora_alpha SAT can use."
            raise ConversionError(text, adding("--target-alpha", "1"))
        self.base = _open_base(base) if base else None

    def scaling(self, rank: int) -> float | None:
        return self.alpha / rank

    def header(self, target: Target) -> dict[str, str]:
        """Empty: a torch checkpoint has no header. Raises ConversionError if the base has another size."""
        if self.base is None:
            return {}
        base, problems = self.base.tensors, []
        for path, delta in target.outlines.items():
            want = (sum(w.rows for w in delta), delta[0].A.shape[1])
            keys = (f"{SAT_PREFIX}{path}.weight", f"{SAT_PREFIX}{path}.original.weight")
            have = next((base[key].shape for key in keys if key in base), None)
            if have != want:
                problems.append(f"{path} is {list(have)}" if have else f"it has no {path}")
        if problems:
            raise ConversionError(
                f"{self.base.path} is not the base of this adapter, which needs {want[0]} x {want[1]} there: "
                f"{listed(problems, 3)}. Give the base model it was trained on.",
                command("loraforge", "inspect", self.base.path),
            )
        return {}

    def beside(self, target: Target) -> dict[str, str]:
        import yaml

        alpha = int(self.alpha) if self.alpha.is_integer() else self.alpha
        params = {"r": max(target.ranks.values()), "lora_alpha": alpha}
        section: dict[str, Any] = {"target": "sat.model.finetune.lora2.LoraMixin", "params": params}
        for key in reversed(LORA_SECTION[:-1]):
            section = {key: section}
        text = yaml.safe_dump(section, sort_keys=False) + yaml.safe_dump({ORIGIN: dict(target.metadata)})
        return {"latest": ITERATION, CONFIG: text}

    def size(self, header: Header) -> int:
        return super().size(header) + (super().size(_base_header(self.base, header)) if self.base else 0)

    def write(
        self, path: Path, header: Header, tensors: Iterable[tuple[str, Array]], metadata: Mapping[str, str]
    ) -> dict[str, int]:
        del metadata  # it is in the YAML
        if self.base is None:
            return write_torch(path, header, tensors)
        base, names = self.base, _renamed(self.base, header)
        copied = ((new, copy_chunks(base, key)) for key, new in names.items())
        with steady(*base.maps):
            sums = write_torch(path, {**_base_header(base, header), **header}, chain(copied, tensors))
            plain = {key: sums[new] for key, new in names.items() if base.tensors[key].strides is None}
            if wrong := [key for key in changed(base, plain) if key in plain]:
                what = f"the base's {listed(wrong, 5)} did not come through as it is"
                raise VerificationError(f"{what}. Nothing was kept.")
        return sums

    def use(self, path: Path, target: Target) -> Use:
        run = path.parent.parent
        params = f"r {max(target.ranks.values())}, lora_alpha {self.alpha:g}"
        if self.base is None:
            load = f"nothing loads it alone: SAT needs the base weights in the same file (--base), and {params}"
        else:
            load = f"in SAT's inference.yaml `load: {run}`, in its model YAML the lora_config of {run / CONFIG}"
        notes = []
        if self.base and (others := {_module(key) for key in self.base.tensors if is_lora(key)}):
            notes.append(f"the LoRA that {self.base.path.name} held ({len(others)} modules) is replaced")
        not_with = f"a lora_config with other numbers: SAT takes the scale from its YAML, here {params}"
        return Use(load, not_with, f", in SAT with {params}, as {CONFIG} says", tuple(notes))


def _renamed(base: TensorFile, header: Header) -> dict[str, str]:
    """Key of the base -> its key beside a LoRA. The base's own LoRA is left out."""
    adapted = {_module(key).removeprefix(SAT_PREFIX) for key in header}
    names = {}
    for key in base.tensors:
        stem, _, last = key.rpartition(".")
        if not is_lora(key):
            names[key] = f"{stem}.original.{last}" if stem.removeprefix(SAT_PREFIX) in adapted else key
    return names


def _base_header(base: TensorFile, header: Header) -> dict[str, tuple[str, tuple[int, ...]]]:
    return {new: (base.tensors[key].dtype, base.tensors[key].shape) for key, new in _renamed(base, header).items()}


def _open_base(path: Path) -> TensorFile:
    file, _ = open_tensors(path)
    look = names_in(path)
    if file.counts.get("mp_world_size", 1) > 1:
        raise FileError(f"--base {path} is one part of a model that is cut over several files: merge them first.", look)
    if file.opaque:
        raise FileError(f"{path} holds objects this tool cannot copy: {listed(list(file.opaque), 3)}.", look)
    if not any(key.startswith(f"{SAT_PREFIX}transformer.layers.") for key in file.tensors):
        raise FileError(f"--base {path} is no SAT checkpoint of CogVideoX: it has no {SAT_PREFIX}transformer.", look)
    return file


def _module(key: str) -> str:
    return key.partition(".matrix_")[0]
