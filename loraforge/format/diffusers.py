"""Diffusers: `pytorch_lora_weights.safetensors`, names prefixed by the component, the scale in the header or nowhere.

Sources: diffusers loaders/lora_base.py (file name, `lora_adapter_metadata`), loaders/peft.py (prefix, and
`save_lora_adapter`, which writes bare names), utils/state_dict_utils.py (older spellings), finetrainers
trainer/sft_trainer (`lora_config`), CogVideo tools/load_cogvideox_lora.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from loraforge.adapter.adapter import Adapter, Storage
from loraforge.adapter.differences import LORA_BIAS
from loraforge.files.tensorfile import TensorFile
from loraforge.format import checkpoints
from loraforge.format.keys import PEFT_SPELLINGS, KeyStyle, Spelling, kinds
from loraforge.format.lorafile import LoraFileWriter, read_lora_file
from loraforge.format.not_an_adapter import not_an_adapter
from loraforge.format.protocol import NOT_TWICE, Found, Target, Use, Wanted, Writer
from loraforge.names.catalog import best_known, having, matching, outdone
from loraforge.names.layout import COMPONENTS
from loraforge.scale import peft_config
from loraforge.scale.recorded import header_configs
from loraforge.scale.rule import Choice

_SPELLINGS = (*PEFT_SPELLINGS, Spelling(".lora.down.weight", ".lora.up.weight"))
STYLE = KeyStyle(_SPELLINGS, (*(f"{name}." for name in COMPONENTS), ""))
FILES = ("pytorch_lora_weights.safetensors", "pytorch_lora_weights.bin")


class DiffusersWriter(LoraFileWriter):
    """Writes one file with the canonical name."""

    files: tuple[str, ...] = FILES[:1]

    def __init__(self, wanted: Wanted) -> None:
        self.component = wanted.component
        self.style = replace(STYLE, prefixes=(f"{wanted.component}.",))
        self.stored: Literal["tensors", "metadata", "config"] = wanted.scale_in

    def scaling(self, _: int) -> float | None:
        return 1.0 if self.stored == "tensors" else None

    def header(self, target: Target) -> dict[str, str]:
        least = peft_config.config(target.ranks, target.scalings, dora=target.dora, bias=target.bias)
        # prefixed by the component, and only what is needed: diffusers raises for unprefixed or unknown keys
        metadata = {f"{self.component}.{key}": value for key, value in least.items()}
        return {"format": "pt", "lora_adapter_metadata": json.dumps(metadata, indent=2, sort_keys=True)}

    def use(self, path: Path, _: Target) -> Use:
        # always with the file name: Diffusers does not look for one if HF_HUB_OFFLINE is set
        load = f"pipe.load_lora_weights({str(path.parent)!r}, weight_name={path.name!r})"
        reads = ", where a loader reads the scale in the header (others apply 1.0)"
        return Use(f"{load}   # strength 1.0, no other number", NOT_TWICE, reads if self.stored == "metadata" else "")


class DiffusersFormat:
    """Reads and writes what `load_lora_weights` loads."""

    name = "diffusers"
    summary = f"Diffusers' load_lora_weights: {FILES[0]}"
    storage = Storage(differences={"bias": LORA_BIAS})
    writer: Callable[[Wanted], Writer] | None = DiffusersWriter
    options = frozenset({"scale_in", "pad_ranks"})
    style = STYLE

    @property
    def layouts(self) -> Mapping[str, str]:
        """Every architecture with a layout of Diffusers' names."""
        return having("diffusers")

    def find(self, source: Path, choice: Choice) -> Found | None:
        return checkpoints.choose(source, FILES, choice)

    def claims(self, file: TensorFile) -> bool:
        hits = STYLE.hits(kinds(file))
        paths = [hit.path for hit in hits]
        if matching(paths, self.layouts) is None:  # Diffusers too finds no module of these names
            return False
        return not outdone(paths, self.layouts) if any(hit.prefix for hit in hits) else bool(header_configs(file))

    def read(self, file: TensorFile, choice: Choice) -> Adapter:
        hits = [hit.path for hit in STYLE.hits(kinds(file))]
        if not hits:
            raise not_an_adapter(file, "Diffusers adapter")
        arch = best_known(hits, self.layouts, choice.architecture)
        return read_lora_file(file, choice, STYLE, arch, "diffusers", writes=self.name)
