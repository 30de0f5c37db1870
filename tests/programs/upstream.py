"""A plugin of pytest for Diffusers' own LoRA tests: what they load is converted first, and nothing is downloaded.

It is active in the runs of upstream_tests.py. LORAFORGE_THROUGH has the formats that each file or state_dict goes
through, the last of which is Diffusers'; empty to load it as it is. LORAFORGE_RECORD is the file that it writes:
outcome of each test, and how many loads were converted, or given on as they were, and why.

The tensors of text encoders are put back as they were: loraforge converts those of the transformer.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers.loaders.lora_pipeline
import pytest
import torch
import transformers
from helpers import encoders
from safetensors import safe_open
from safetensors.torch import save_file

import loraforge
from loraforge.errors import LoraforgeError
from loraforge.names.catalog import architectures

THROUGH = os.environ.get("LORAFORGE_THROUGH", "").split()
ENTRY = "lora_adapter_metadata"
"""The entry of a header in which Diffusers keeps the LoraConfig of each component, as JSON."""
_TEXT = "text_encoder"
_LOADS: Counter[str] = Counter()
_OUTCOMES: dict[str, str] = {}

MADE: dict[str, Callable[..., Any]] = {
    "T5EncoderModel": encoders.t5, "CLIPTextModel": encoders.clip, "LlamaModel": encoders.llama,
    "CLIPTextModelWithProjection": encoders.clip_projected, "GemmaForCausalLM": encoders.gemma,
    "Qwen2_5_VLForConditionalGeneration": encoders.qwen_vl, "Gemma3ForConditionalGeneration": encoders.gemma_vl,
    "Mistral3ForConditionalGeneration": encoders.mistral_vl, "CLIPTokenizer": encoders.clip_words,
    "Qwen2Tokenizer": encoders.qwen_words, "LlamaTokenizerFast": encoders.llama_words,
    "LlamaTokenizer": encoders.llama_words, "AutoProcessor": encoders.llama_words,
    "AutoConfig": lambda: encoders.t5().config,
}  # fmt: skip
"""Class whose `from_pretrained` a test calls -> what it gets."""
CHANGED: dict[str, dict[str, Any]] = {
    "Lumina2LoRATests": {"hidden_size": 24, "num_attention_heads": 3, "num_kv_heads": 1}
}
"""Class of tests -> arguments of its transformer. Lumina 2 has three heads of queries to one of keys and values."""


def _instead(kind: type, source: str) -> Any:
    if kind.__name__ == "AutoTokenizer":
        return encoders.gemma_words() if "gemma" in source else encoders.t5_words()
    wide = (8,) if kind.__name__ == "CLIPTextModel" and "hunyuanvideo" in source else ()
    made = MADE[kind.__name__](*wide)
    if isinstance(made, transformers.PreTrainedModel):  # a saved adapter names it, and it is made again
        made.name_or_path = made.config.name_or_path = source
    return made


def _made_here(owner: Any) -> None:
    """Let `owner.from_pretrained` make what would come from a repository for tests."""
    plain = owner.from_pretrained.__func__

    @functools.wraps(plain)
    def from_pretrained(kind: Any, source: Any, *args: Any, **options: Any) -> Any:
        if "internal-testing/" in str(source):
            return _instead(kind, str(source))
        return plain(kind, source, *args, **options)

    owner.from_pretrained = classmethod(from_pretrained)


def _converting(owner: Any) -> None:
    """Let `owner.load_lora_weights` get the converted file."""
    plain = owner.load_lora_weights

    @functools.wraps(plain)
    def load_lora_weights(pipe: Any, source: Any, *args: Any, **options: Any) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            made = converted(source, options.get("weight_name"), type(pipe.transformer).__name__, Path(folder))
            return plain(pipe, source if made is None else str(made), *args, **options)

    owner.load_lora_weights = load_lora_weights


def converted(source: Any, name: str | None, transformer: str, folder: Path) -> Path | None:
    """The converted file; None if what is loaded is no adapter of a transformer, and is given on as it is.

    `transformer`: the class that it is loaded into.
    """
    if not isinstance(source, dict):
        path = Path(source) / (name or "pytorch_lora_weights.safetensors") if Path(source).is_dir() else Path(source)
        tensors, metadata = _read(path)
    else:
        tensors, metadata = source, {}
    tensors = {key: torch.as_tensor(value).detach().contiguous() for key, value in tensors.items()}  # alpha: a number
    mine = {key: tensor for key, tensor in tensors.items() if not key.startswith(_TEXT)}
    rest = {key: tensor for key, tensor in tensors.items() if key.startswith(_TEXT)}
    if not mine:
        _LOADS["of a text encoder alone"] += 1
        return None
    file = folder / "pytorch_lora_weights.safetensors"
    save_file(mine, file, _without_text(metadata))
    try:
        for before, to in itertools.pairwise(("diffusers", *THROUGH)):
            file = _convert(file, before, to, transformer, folder / f"{before}-{to}")
    except LoraforgeError as error:
        _LOADS[f"given on as it was: {error.message.replace(str(folder), '')[:160]}"] += 1
        return None
    _LOADS["converted"] += 1
    own, header = _read(file)
    # Diffusers takes an entry to be of every component
    entry = json.loads(header.get(ENTRY, "{}")) if ENTRY in metadata or not rest else {}
    entry |= {key: value for key, value in json.loads(metadata.get(ENTRY, "{}")).items() if key.startswith(_TEXT)}
    result = folder / "result" / "pytorch_lora_weights.safetensors"
    result.parent.mkdir()
    header = {key: text for key, text in header.items() if key != ENTRY}
    save_file({**own, **rest}, result, header | ({ENTRY: json.dumps(entry)} if entry else {}))
    return result


def _without_text(metadata: dict[str, str]) -> dict[str, str]:
    if ENTRY not in metadata:
        return metadata
    entry = {key: value for key, value in json.loads(metadata[ENTRY]).items() if not key.startswith(_TEXT)}
    return {**metadata, ENTRY: json.dumps(entry)}


def _convert(file: Path, before: str, to: str, transformer: str, out: Path) -> Path:
    """The file in a format, with what its refusals ask for: what it is, and what Diffusers does with it today."""
    out.mkdir()
    wanted = out if to == "peft" else out / "pytorch_lora_weights.safetensors"
    named = {"architecture": next(n for n, arch in architectures().items() if transformer in arch.transformers)}
    named["from_"] = before
    loaded = {"as_loaded": True}
    ways: dict[str, dict[str, Any]] = {
        "": {}, "as loaded": loaded, "said what it is": named, "as loaded, said what it is": named | loaded
    }  # fmt: skip
    for way, given in ways.items():
        try:
            report = loraforge.convert(file, to=to, out=wanted, force=True, **given)
        except LoraforgeError as error:
            refused = error
        else:
            _LOADS[f"{to}, scale {report.scale.provenance} {way}".strip()] += 1
            return wanted
    raise refused


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    if path.suffix != ".safetensors":
        return torch.load(path, weights_only=True), {}
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118 - no mapping


def pytest_configure(config: pytest.Config) -> None:
    """Change the classes before a test file is read."""
    for owner in (transformers.PreTrainedModel, transformers.PreTrainedTokenizerBase, transformers.AutoTokenizer):
        _made_here(owner)
    _made_here(transformers.AutoProcessor)
    _made_here(transformers.AutoConfig)
    mixins = vars(diffusers.loaders.lora_pipeline).values()
    for owner in {each for each in mixins if isinstance(each, type) and "load_lora_weights" in vars(each)}:
        if THROUGH and owner.__module__ == diffusers.loaders.lora_pipeline.__name__:
            _converting(owner)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give a test's transformer the shares that its architecture has."""
    kind = getattr(item, "cls", None)
    if kind is not None and kind.__name__ in CHANGED:
        kind.transformer_kwargs = kind.transformer_kwargs | CHANGED[kind.__name__]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Keep the outcome of a test."""
    if report.when == "call" or report.outcome != "passed":
        text = str(report.longrepr).strip().splitlines()[-1][:200] if report.failed else ""
        _OUTCOMES[report.nodeid.partition("::")[2]] = f"{report.outcome} {text}".strip()


def pytest_sessionfinish() -> None:
    """Write the record."""
    record = {"outcomes": _OUTCOMES, "loads": dict(_LOADS)}
    Path(os.environ["LORAFORGE_RECORD"]).write_text(json.dumps(record, indent=1), "utf-8")
