"""Recorded adapters of every architecture: each update in every format and back, and in Diffusers' own class."""

from __future__ import annotations

import inspect
import json
import shlex
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tomli
import torch
from helpers.carry import carry
from helpers.oracle import DATA
from helpers.sparse import sparse
from helpers.tiny import TABLE, Tiny, tiny_models, whole
from helpers.tolerance import UPDATE, WEIGHT, share
from helpers.trained import SCALE, trained
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.conversion.real_loader import load_back
from loraforge.errors import ConversionError
from loraforge.format.registry import formats
from loraforge.names.catalog import architecture, architectures
from loraforge.publishing.card import snippet

FOLDER = DATA / "architectures"
CASES: dict[str, Any] = tomli.loads((FOLDER / "cases.toml").read_text("utf-8"))
Updates = dict[str, np.ndarray]
NO_CASE = {"cogvideox", "ltx2"}
"""CogVideoX has recorded files of its own (tests/data); of LTX-2 there are those that are made below."""


@dataclass(frozen=True)
class Case:
    """A recorded adapter, and what it does in the names of Diffusers' class."""

    name: str

    def __getattr__(self, entry: str) -> Any:
        return CASES[self.name].get(entry)

    @property
    def file(self) -> Path:
        return FOLDER / self.name / "adapter.safetensors"

    @cached_property
    def expected(self) -> Updates:
        """Module of Diffusers' class -> [rows, inputs x kernel], in float64."""
        stored = {
            key: array.astype(np.float64)
            for key, array in load_file(self.file.with_name("expected.safetensors")).items()
        }
        return {key[:-2]: stored[key] @ stored[f"{key[:-2]}.V"] for key in stored if key.endswith(".U")}

    def converted(self, out: Path, **options: Any) -> Path:
        """A Diffusers file of it in float32."""
        options = {"to": "diffusers", "dtype": "fp32"} | options
        return Path(loraforge.convert(self.file, out=out, **(options | (self.stated or {}))).output["path"])


def updates(file: Path) -> Updates:
    """Module -> update of a Diffusers file without alpha, a convolution's without the shape of its kernel."""
    tensors = {
        key.removeprefix("transformer.").removeprefix("unet."): array.astype(np.float64)
        for key, array in load_file(file).items()
    }
    factors = {key.removesuffix(".lora_A.weight") for key in tensors if key.endswith(".lora_A.weight")}
    assert 2 * len(factors) == len(tensors)
    flat = {key: array.reshape(array.shape[0], -1) for key, array in tensors.items()}
    return {path: flat[f"{path}.lora_B.weight"] @ flat[f"{path}.lora_A.weight"] for path in factors}


def same(have: Updates, want: Updates) -> None:
    assert have.keys() == want.keys()
    off = {path: share(have[path], want[path]) for path in want}
    assert {path: error for path, error in off.items() if error > UPDATE} == {}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_every_architecture_has_a_case() -> None:
    assert {entry["architecture"] for entry in CASES.values()} == architectures().keys() - NO_CASE


def test_the_updates_are_those_of_diffusers_base_converter(case: Case, tmp_path: Path) -> None:
    assert len(case.expected) == case.modules
    same(updates(case.converted(tmp_path)), case.expected)


def ways() -> list[Any]:
    """Every case, and every other format that has its architecture; of several cases of one, all but one are long."""
    every, seen = [], set[str]()
    for name, entry in CASES.items():
        for to, form in formats().items():
            if entry["architecture"] in form.layouts and form.writer and to not in ("diffusers", "sat"):
                marks = [pytest.mark.long] if entry["architecture"] in seen and to != entry["format"] else []
                every.append(pytest.param(Case(name), to, marks=marks, id=f"{name}-{to}"))
        seen.add(entry["architecture"])
    return every


@pytest.mark.parametrize(("case", "to"), ways())
def test_into_a_format_and_back(case: Case, to: str, tmp_path: Path) -> None:
    """Modules that the other format has no name for are refused, and can be dropped as the message says."""
    arch, stated, want = architecture(case.architecture), {"architecture": case.architecture}, dict(case.expected)
    have, put = (arch.layouts[formats()[name].layouts[arch.name]] for name in (case.format, to))
    lost = {s for stack in have.modules.values() if not put.absent.isdisjoint(stack) for s in stack}
    if lacking := [path for path in want if lost.issuperset(arch.layouts["diffusers"].stacked(path))]:
        with pytest.raises(ConversionError, match="has no module for") as refused:
            case.converted(tmp_path, to=to, **stated)
        words = shlex.split(str(refused.value.remedies[0]), comments=True)
        stated["drop"] = [word for before, word in pairwise(words) if before == "--drop"]
        want = {path: want[path] for path in want.keys() - lacking}
    there = case.converted(tmp_path / "there", to=to, **stated)
    back = loraforge.convert(there, to="diffusers", out=tmp_path / "back", dtype="fp32", architecture=arch.name)
    same(updates(Path(back.output["path"])), want)


BY_BASE = [
    name for name in TABLE if whole(name) and len(architecture(name).layouts) == 2 and "converter" in TABLE[name]
]
TINY = [tiny for tiny in tiny_models() if tiny.name in BY_BASE]


@pytest.mark.parametrize("tiny", TINY, ids=str)
def test_every_matrix_moves_as_diffusers_moves_the_base(tiny: Tiny, tmp_path: Path) -> None:
    """An adapter of all of them, in the original's names: the updates as weights of an original checkpoint."""
    want = trained(tiny, tmp_path / "a.safetensors")
    stated = {"architecture": tiny.name, "trained_scale": SCALE}
    done = loraforge.convert(tmp_path / "a.safetensors", to="comfyui", out=tmp_path / "b", dtype="fp32", **stated)
    tensors = load_file(done.output["path"])
    checkpoint, _ = carry(tiny.state, tiny.arch, "diffusers", "original", [tiny.variant])
    for key in (key for key in tensors if key.endswith(".lora_A.weight")):
        path, A, B = key.removesuffix(".lora_A.weight"), tensors[key], tensors[key.replace("_A", "_B")]
        weight = f"{path.removeprefix('diffusion_model.')}.weight"
        product = B.astype("f8").reshape(len(B), -1) @ A.astype("f8").reshape(len(A), -1)
        checkpoint[weight] = product.reshape(checkpoint[weight].shape).astype("f4")
    have = tiny.by_diffusers(checkpoint)
    same({path: have[f"{path}.weight"] for path in want}, want)


def test_diffusers_class_applies_every_module(case: Case, tmp_path: Path) -> None:
    arch = architecture(case.architecture)
    torch.manual_seed(0)
    model = getattr(diffusers, arch.transformer)(**case.config)
    file = case.converted(tmp_path)
    loader = getattr(diffusers, next(iter(arch.pipelines)))
    if not hasattr(loader, "lora_state_dict"):  # a pipeline that takes no adapters: its model does
        model.load_lora_adapter(str(file))
    else:
        state, into = loader.lora_state_dict(str(file)), getattr(loader, f"load_lora_into_{arch.component}")
        state = state[0] if isinstance(state, tuple) else state
        alphas = {"network_alphas"} & inspect.signature(into).parameters.keys()
        into(state, **{arch.component: model}, **dict.fromkeys(alphas))
    layers = {path: layer for path, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)}
    assert layers.keys() == case.expected.keys()
    before = {path: layer.get_base_layer().weight.detach().clone().double() for path, layer in layers.items()}
    model.fuse_lora()
    for path, layer in layers.items():
        weight = layer.get_base_layer().weight.detach().double()
        want = torch.from_numpy(case.expected[path]).reshape(weight.shape)
        error = (weight - before[path] - want).abs().max() / torch.maximum(weight.abs().max(), want.abs().max())
        assert error <= WEIGHT, f"{path} is off by {error:.1e}"


def test_a_variant_of_another_class_is_loaded_into_that(tmp_path: Path) -> None:
    """Of VACE's own blocks Diffusers' other class of Wan has none."""
    variant = next(one for one in architecture("wan").variants if one.name == "Wan2.1-VACE-1.3B")
    every = {"blocks": variant.depth("self_q"), "vace_blocks": variant.depth("vace_self_q")}
    modules = {f"{kind}.{n}.attn1.to_q": (128, 128) for kind, count in every.items() for n in range(count)}
    file = sparse(tmp_path / "a.safetensors", modules)
    adapter = loraforge.read(file, trained_scale=1)
    assert load_back(file, adapter, "diffusers").modules.keys() == modules.keys()
    text = snippet("me/x", variant.repo, "transformer", "x.safetensors", adapter.model, variant, "a cat")
    assert "WanVACETransformer3DModel.from_pretrained" in str(text)


def test_a_base_of_another_class_is_fused_and_known_by_it(tmp_path: Path) -> None:
    tiny = next(tiny for tiny in tiny_models() if tiny.variant.name.startswith("Wan2.1-VACE"))
    tiny.model().save_pretrained(tmp_path / "model")
    save_file(tiny.state, tmp_path / "model" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    words = [f"{kind}.to_{m}" for kind in ("attn1", "attn2") for m in "qkv"]
    want = trained(tiny, tmp_path / "a.safetensors", *words)
    done = loraforge.fuse(tmp_path / "model", [tmp_path / "a.safetensors"], tmp_path / "out", trained_scale=SCALE)
    assert "WanVACETransformer3DModel.from_pretrained" in done.load
    fused = diffusers.WanVACETransformer3DModel.from_pretrained(tmp_path / "out").state_dict()
    for key, before in tiny.state.items():
        update = want.get(key.removesuffix(".weight"), 0.0)
        assert np.abs(fused[key].numpy() - (before + update)).max() <= 4 * WEIGHT, key


def test_a_pipeline_with_a_unet_is_fused_in_its_unet(tmp_path: Path) -> None:
    tiny, pipeline = Tiny("sd", 1), tmp_path / "pipeline"
    tiny.model().save_pretrained(pipeline / "unet")
    save_file(tiny.state, pipeline / "unet" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    (pipeline / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}', "utf-8")
    want = trained(tiny, tmp_path / "a.safetensors", "attn1.to_q", "proj_in", "conv1")
    stated = {"trained_scale": SCALE, "architecture": "sd"}
    loraforge.fuse(pipeline, [tmp_path / "a.safetensors"], tmp_path / "out", **stated)
    fused = load_file(tmp_path / "out" / "unet" / "diffusion_pytorch_model.safetensors")
    assert fused.keys() == tiny.state.keys() and want
    for key, before in tiny.state.items():
        update = want.get(key.removesuffix(".weight"))
        added = 0.0 if update is None else update.reshape(before.shape)
        assert np.abs(fused[key] - (before + added)).max() <= 4 * WEIGHT * max(1.0, np.abs(before).max()), key


@pytest.mark.parametrize("name", sorted(architecture("wan").transformers))
def test_a_configuration_that_names_a_class_of_it_settles_the_model(name: str, tmp_path: Path) -> None:
    modules = {f"blocks.0.attn1.to_{m}": (128, 128) for m in "qkv"}
    sparse(tmp_path / "adapter_model.safetensors", modules, prefix="base_model.model.")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "auto_mapping": {"base_model_class": name}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    assert loraforge.read(tmp_path).shown.endswith(f"adapter_config.json names {name}")
