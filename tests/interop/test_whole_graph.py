"""Every parameter of the base model: through the graph it is, bit for bit, what upstream's own converter made of it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import tomli
import torch
from helpers.carry import carry
from helpers.oracle import DATA, SAT_CASES, Case
from safetensors.torch import load_file

from loraforge.names import layout
from loraforge.names.bijection import parse
from loraforge.names.catalog import architecture
from loraforge.names.layout import Architecture

PREFIX = "model.diffusion_model."
SOURCES = [*SAT_CASES, "bases/2b/sat_base"]


def sat_file(name: str) -> Path:
    folder = DATA / name if name.startswith("bases") else DATA / name / "sat_ckpt"
    return next(folder.glob("*/*.pt"))


def upstream(name: str) -> dict[str, np.ndarray]:
    """What upstream's converter wrote, widened to float32, which changes no value."""
    folder = DATA / "bases" / "2b" if name.startswith("bases") else Case(name).base
    return {key: t.float().numpy() for key, t in load_file(folder / "diffusion_pytorch_model.safetensors").items()}


def sat_state(name: str) -> dict[str, np.ndarray]:
    """The transformer SAT saved, without the LoRA and its spelling."""
    state = torch.load(sat_file(name), weights_only=False, map_location="cpu")["module"]
    return {
        key.removeprefix(PREFIX).replace(".original.", "."): tensor.numpy()
        for key, tensor in state.items()
        if key.startswith(PREFIX) and ".matrix_" not in key
    }


def same(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> None:
    assert got.keys() == want.keys()
    for key, array in want.items():
        assert got[key].shape == array.shape, key
        equal = got[key].tobytes() == array.tobytes()  # pytest would describe every byte that differs
        assert equal, key


def assert_both_ways(arch: Architecture, name: str) -> None:
    sat, diffusers = sat_state(name), upstream(name)
    variants = arch.like(sat["mixins.patch_embed.proj.weight"].shape)
    assert variants
    there, dropped = carry(sat, arch, "sat", "diffusers", variants)
    same(there, diffusers)
    back, none = carry(diffusers, arch, "diffusers", "sat", variants)
    same(back, {key: array for key, array in sat.items() if key not in dropped})
    assert none == {}


@pytest.mark.parametrize("name", SOURCES)
def test_every_parameter_is_upstreams_and_back(name: str) -> None:
    assert_both_ways(architecture("cogvideox"), name)


def test_what_is_dropped_is_what_no_other_layout_has() -> None:
    """The learned positions of 5B-I2V are carried; the computed ones of the others are left, with a reason."""
    arch, stray = architecture("cogvideox"), "transformer.position_embeddings.weight"
    rotary = {"mixins.pos_embed.freqs_sin", "mixins.pos_embed.freqs_cos"}
    want = {
        "sat_2b_r4": {"mixins.pos_embed.pos_embedding"},
        "sat_5b_r8": {stray, *rotary},
        "sat_5b_i2v_r8": {stray, *rotary},
        "sat_1.5_t2v_r4": {stray},
    }
    for name, keys in want.items():
        sat = sat_state(name)
        out, dropped = carry(sat, arch, "sat", "diffusers", arch.like(sat["mixins.patch_embed.proj.weight"].shape))
        assert dropped.keys() == keys
        assert all(dropped.values())
        assert ("patch_embed.pos_embedding" in out) == (name == "sat_5b_i2v_r8")


EXCHANGED = [
    ("k", "v"),
    ("q", "k"),
    ("mod1_video", "mod2_video"),
    ("mod1_text", "mod2_text"),
    ("mod2_video", "mod1_text"),
    ("time1", "time2"),
    ("norm_q", "norm_k"),
    ("norm1", "norm2"),
    ("norm_final", "norm_out"),
    ("norm1", "norm_q"),
]


@pytest.mark.parametrize("name", ["sat_2b_r4", "sat_5b_i2v_r8", "sat_1.5_t2v_r4"])
@pytest.mark.parametrize("exchanged", EXCHANGED, ids="-".join)
def test_the_comparison_sees_two_segments_exchanged(exchanged: tuple[str, str], name: str) -> None:
    data = tomli.loads((files("loraforge") / "names" / "architectures" / "cogvideox.toml").read_text("utf-8"))
    other = dict(zip(exchanged, reversed(exchanged), strict=True))
    modules = data["layouts"]["sat"]["modules"]
    for path, stack in modules.items():
        modules[path] = [other.get(segment, segment) for segment in stack]
    wrong = parse(data, "wrong.toml")
    with pytest.raises(AssertionError):
        assert_both_ways(wrong, name)


FIVE = {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
ONE_FIVE = FIVE | {"patch_size_t": 2, "patch_bias": False, "max_text_seq_length": 224, "sample_frames": 81}
CONFIGS = {
    "CogVideoX-2B": {"num_attention_heads": 30, "num_layers": 30, "use_rotary_positional_embeddings": False},
    "CogVideoX-5B": FIVE,
    "CogVideoX-5B-I2V": FIVE | {"in_channels": 32, "use_learned_positional_embeddings": True},
    "CogVideoX1.5-5B": ONE_FIVE,
    "CogVideoX1.5-5B-I2V": ONE_FIVE | {"in_channels": 32, "ofs_embed_dim": 512},
}


def meta_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Every key of the released model's state, at its real size."""
    from diffusers import CogVideoXTransformer3DModel

    out = {"out_channels": 16, "attention_head_dim": 64, "text_embed_dim": 4096, "time_embed_dim": 512}
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel(**out | CONFIGS[name])
    names = {key for key, _ in model.named_parameters()}
    state = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    assert names <= state.keys()
    return state


@pytest.mark.parametrize("variant", architecture("cogvideox").variants, ids=lambda v: v.name)
def test_the_parameters_of_every_variant_fill_its_segments_exactly(variant: layout.Variant) -> None:
    arch = architecture("cogvideox")
    diffusers = arch.layouts["diffusers"]
    found: dict[tuple[str, layout.Index, str], str] = {}
    shapes = meta_shapes(variant.name)
    for key, shape in shapes.items():
        path, _, parameter = key.rpartition(".")
        place = diffusers.locate(path)
        assert place, key
        segments = diffusers.modules[place[0]]
        for segment in segments:
            found[segment, place[1], parameter] = key
        if parameter == "weight" and len(segments) == 1:
            assert variant.objection(segments[0], place[1], shape) is None
            assert (len(shape) == 1) == (arch.unadapted.get(segments[0]) == "norm"), key
    want = set()
    for template, segments in diffusers.modules.items():
        for segment in set(segments) - variant.absent:
            numbers = range(variant.blocks) if template.holes else [None]
            for number in numbers:
                index = () if number is None else (("i", number),)
                want |= {(segment, index, name) for name in arch.named((segment,))}
    assert found.keys() == want
    assert variant in arch.like(shapes["patch_embed.proj.weight"])


@pytest.mark.parametrize("variant", architecture("cogvideox").variants, ids=lambda v: v.name)
def test_every_variant_goes_to_sat_and_back_at_its_real_size(variant: layout.Variant) -> None:
    """Names and shapes alone; the adaLN of the real sizes, and the positions that only one variant has."""
    from loraforge.base.route import route

    arch, shapes = architecture("cogvideox"), meta_shapes(variant.name)

    def sizes(pieces: dict, of: dict) -> dict[str, tuple[int, ...]]:
        return {
            key: (sum(part.stop - part.start for part in parts), *of[parts[0].key][1:]) for key, parts in pieces.items()
        }

    sat = sizes(route(shapes, arch, "diffusers", "sat", [variant])[0], shapes)
    hidden = shapes["norm_final.weight"][0]
    assert sat["mixins.adaln_layer.adaLN_modulations.0.1.weight"] == (12 * hidden, 512)
    assert ("mixins.pos_embed.pos_embedding" in sat) == (variant.name == "CogVideoX-5B-I2V")
    assert sizes(route(sat, arch, "sat", "diffusers", [variant])[0], sat) == shapes
