"""PEFT: a folder of `adapter_model.safetensors` and `adapter_config.json`, which records its scale.

Also the bare state dicts that CogKit and VideoX-Fun (`--use_peft_lora`) write: the same names without configuration.

Sources: peft utils/save_and_load.py (keys), utils/constants.py (file names), config.py (optional entries),
CogKit utils/lora.py, VideoX-Fun utils/lora_utils.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from loraforge.adapter.adapter import Adapter, Storage
from loraforge.adapter.differences import LORA_BIAS
from loraforge.errors import FileError, VariantError
from loraforge.files.tensorfile import TensorFile
from loraforge.format import checkpoints
from loraforge.format.keys import PEFT_SPELLINGS, KeyStyle, kinds
from loraforge.format.lorafile import LoraFileWriter, read_lora_file
from loraforge.format.not_an_adapter import not_an_adapter, of_training
from loraforge.format.protocol import Found, Target, Use, Wanted, Writer
from loraforge.hub.address import is_repo
from loraforge.names.catalog import best_known, having, matching, outdone
from loraforge.names.layout import COMPONENTS
from loraforge.scale import peft_config
from loraforge.scale.recorded import PEFT_CONFIG, PEFT_FILES, header_configs, read_config
from loraforge.scale.rule import Choice
from loraforge.scale.run_folders import adapters

STYLE = KeyStyle(PEFT_SPELLINGS, prefixes=("base_model.model.", ""))
FILES = PEFT_FILES
CONFIG = PEFT_CONFIG


class PeftWriter(LoraFileWriter):
    """Writes a folder for `PeftModel.from_pretrained`: unchanged tensors, the scale in the configuration."""

    style = STYLE
    files: tuple[str, ...] = (FILES[0], CONFIG)
    governs: tuple[str, ...] = ("adapter_model.*",)
    stored: Literal["tensors", "metadata", "config"] = "config"

    def __init__(self, _: Wanted) -> None:
        """No option applies."""

    def scaling(self, _: int) -> float | None:
        return None

    def beside(self, target: Target) -> dict[str, str]:
        least = peft_config.config(target.ranks, target.scalings, dora=target.dora, bias=target.bias, older=True)
        entries = {"peft_type": "LORA", "base_model_name_or_path": target.base_model, "inference_mode": True} | least
        return {CONFIG: json.dumps(entries, indent=2, sort_keys=True) + "\n"}

    def use(self, path: Path, _: Target) -> Use:
        load = f"PeftModel.from_pretrained(pipe.transformer, {str(path.parent)!r})   # strength 1.0, no other number"
        not_with = "pipe.load_lora_weights, which knows none of PEFT's names: it warns and loads nothing"
        return Use(load, not_with, f", with the {CONFIG} beside it")


class PeftFormat:
    """Reads and writes what `PeftModel.from_pretrained` loads; also reads bare state dicts."""

    name = "peft"
    summary = f"PEFT's save_pretrained folder, and bare state dicts (CogKit, VideoX-Fun): {FILES[0]}"
    storage = Storage(differences={"bias": LORA_BIAS})
    writer: Callable[[Wanted], Writer] | None = PeftWriter
    options: frozenset[str] = frozenset({"pad_ranks"})
    style = STYLE

    @property
    def layouts(self) -> Mapping[str, str]:
        """Every architecture with a layout of Diffusers' names: PEFT uses the names of the model."""
        return having("diffusers")

    def find(self, source: Path, choice: Choice) -> Found | None:
        found = checkpoints.choose(source, FILES, choice)
        names = sorted(path.parent.name for path in source.glob(f"*/{CONFIG}"))
        others = [name for name in names if not name.startswith("checkpoint-")]
        if found and others and found.path.parent == source:
            note = f"{source.name} holds other adapters too, in folders of their own: {', '.join(others[:5])}"
            return replace(found, notes=(*found.notes, note))
        if found is None and (source / CONFIG).is_file() and not adapters(source):
            raise FileError(f"{source} has {CONFIG}, but neither {' nor '.join(FILES)}.")
        return found

    def claims(self, file: TensorFile) -> bool:
        hits = STYLE.hits(kinds(file))
        if config_path(file):
            # diffusion-pipe's folder has one too, but ComfyUI's names, or original ones behind the component
            starts = tuple(f"{name}." for name in COMPONENTS)
            paths = [hit.path.partition(".")[2] if hit.path.startswith(starts) else hit.path for hit in hits]
            return not outdone(paths, self.layouts) and not any(path.startswith("diffusion_model.") for path in paths)
        paths = [hit.path for hit in hits]
        if of_training(file) or matching(paths, self.layouts) is None or outdone(paths, self.layouts):
            return False
        return any(hit.prefix for hit in hits) or not header_configs(file)

    def read(self, file: TensorFile, choice: Choice) -> Adapter:
        path = config_path(file)
        config = read_config(path) if path else None
        if config and (odd := peft_config.unsupported(config)):
            raise VariantError(f"{file.path}: its {CONFIG} has {odd}.")
        hits = [hit.path for hit in STYLE.hits(kinds(file))]
        if not hits:
            raise not_an_adapter(file, "PEFT adapter")
        arch = best_known(hits, self.layouts, choice.architecture)
        base = (config or {}).get("base_model_name_or_path")
        base_model = base if is_repo(base) else None
        return read_lora_file(file, choice, STYLE, arch, "diffusers", writes=self.name, base_model=base_model)


def config_path(file: TensorFile) -> Path | None:
    """The configuration of a tensor file; None if it has none, or does not have one of PEFT's names."""
    path = file.path.with_name(CONFIG)
    return path if file.path.name in FILES and os.path.lexists(path) else None
