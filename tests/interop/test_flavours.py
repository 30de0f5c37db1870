"""Files that VideoX-Fun, CogVideoX-Fun and DiffSynth wrote, and every pair of formats there is."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
import shlex
import shutil
from itertools import permutations
from pathlib import Path
from typing import Any

import checker
import numpy as np
import pytest
import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from helpers.oracle import DATA, Case, updates
from helpers.tolerance import UPDATE, WEIGHT, share
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch

import loraforge
from loraforge.adapter.adapter import Adapter
from loraforge.errors import ConversionError, FormatError, LoraforgeError, ScaleError
from loraforge.names.catalog import architecture
from loraforge.testing import make_adapter

FORMATS = sorted(name for name, form in loraforge.formats().items() if "cogvideox" in form.layouts and form.writer)
FUN = "cogvideox_fun_2024_kohya_te_fp16"
RECORDED = {
    "videox_fun_kohya_attn_fp32": ("checkpoint-100.safetensors", {}),
    FUN: ("checkpoint-100.safetensors", {"drop": ["lora_te*"]}),
    "diffsynth_cogdit": ("lora.safetensors", {"alpha": 8}),
    "diffsynth_cogdit, its checkpoint": ("epoch=0-step=500.ckpt", {"alpha": 8}),
    "videox_fun_peft": ("checkpoint-100-compatible_with_comfyui.safetensors", {"alpha": 4}),
}
"""Case -> its file, and what a user has to say."""


@pytest.fixture(params=RECORDED)
def recorded(request: pytest.FixtureRequest) -> tuple[Case, Path, dict[str, Any]]:
    case = Case(request.param.partition(",")[0])
    file, said = RECORDED[request.param]
    return case, case.folder / file, said


def test_the_update_is_the_recorded_one(recorded: tuple[Case, Path, dict[str, Any]], tmp_path: Path) -> None:
    case, file, said = recorded
    report = loraforge.convert(file, to="diffusers", out=tmp_path, dtype="fp32", **said)
    got = updates(Path(report.output["path"]))
    assert got.keys() == case.deltas.keys()
    for path, want in case.deltas.items():
        error = share(got[path], want.reshape(want.shape[0], -1))
        assert error <= UPDATE, f"{path} is off by {error:.1e}"


@pytest.mark.parametrize(
    "recorded", [name for name in RECORDED if "diffsynth" not in name], indirect=True
)  # DiffSynth's forward is its own model's; its update is compared above
def test_the_real_diffusers_does_what_was_trained(recorded: tuple[Case, Path, dict[str, Any]], tmp_path: Path) -> None:
    case, file, said = recorded
    loraforge.convert(file, to="diffusers", out=tmp_path, dtype="fp32", **said)
    model = CogVideoXTransformer3DModel.from_pretrained(case.base, torch_dtype=torch.float32).eval()
    pipe = CogVideoXPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=model, scheduler=None)
    pipe.load_lora_weights(str(tmp_path))
    inputs = load_torch(case.base / "inputs.safetensors")
    with torch.no_grad():
        got = model(inputs["x"], inputs["context"], inputs["timesteps"], return_dict=False)[0]
    want = load_torch(case.folder / "forward.safetensors")["lora_on"]
    assert (got - want).abs().max().item() <= case.manifest["tolerance"]["forward"]


@pytest.mark.parametrize("to", FORMATS)
def test_a_reader_that_shares_no_line_with_loraforge_agrees(
    recorded: tuple[Case, Path, dict[str, Any]], to: str, tmp_path: Path
) -> None:
    case, file, said = recorded
    try:
        options = {"lora_only": True} if to == "sat" else {}
        loraforge.convert(file, to=to, out=tmp_path / "out", architecture="cogvideox", **said, **options)
    except ConversionError as refusal:
        assert (to, case.name) == ("sat", FUN) and "adapts only" in refusal.message
        return
    found = checker.differences(checker.read(file, said.get("alpha")), checker.read(tmp_path / "out"))
    assert len(found) == len(case.deltas)
    assert all(off <= limit for off, limit in found.values()), found


def test_files_without_an_alpha_are_refused_without_a_statement(tmp_path: Path) -> None:
    for name, (file, said) in RECORDED.items():
        if "alpha" in said:
            with pytest.raises(ScaleError, match="does not record the scale"):
                loraforge.convert(Case(name.partition(",")[0]).folder / file, to="diffusers", out=tmp_path / "x")


def test_text_encoder_keys_are_never_left_out_unasked(tmp_path: Path) -> None:
    file = Case(FUN).folder / "checkpoint-100.safetensors"
    with pytest.raises(FormatError, match=r"of its tensors adapt the text encoder \(lora_te_encoder") as refusal:
        loraforge.convert(file, to="diffusers", out=tmp_path / "x")
    assert refusal.value.remedies[0].command == "--drop 'lora_te*'"
    with pytest.raises(FormatError, match="adapt the text encoder"):
        loraforge.convert(file, to="diffusers", out=tmp_path / "x", drop=["lora_te_encoder_block_0_*_k.*"])
    report = loraforge.convert(file, to="diffusers", out=tmp_path / "x", drop=["lora_te*"])
    count = sum(key.startswith("lora_te") for key in load_file(file))
    assert f"left out, as --drop says: {count} tensors of the text encoder" in report.notes


def test_an_extra_unit_axis_is_put_in_and_taken_out(tmp_path: Path) -> None:
    """DiffSynth's patchify.proj is a convolution over one frame; Diffusers' patch_embed.proj has no such axis."""
    random = np.random.default_rng(0)
    A, B = (random.standard_normal(shape).astype(np.float32) for shape in ((4, 16, 2, 2), (8, 4, 1, 1)))
    stem = "transformer.patch_embed.proj"
    save_file({f"{stem}.lora_A.weight": A, f"{stem}.lora_B.weight": B}, tmp_path / "x.safetensors")
    loraforge.convert(tmp_path / "x.safetensors", to="diffsynth", out=tmp_path / "d", as_loaded=True)
    written = load_file(tmp_path / "d" / "diffsynth.safetensors")
    np.testing.assert_array_equal(written["patchify.proj.lora_A.default.weight"], A[:, :, None])
    np.testing.assert_array_equal(written["patchify.proj.lora_B.default.weight"], B[..., None])
    assert loraforge.verify(tmp_path / "x.safetensors", tmp_path / "d").same
    flat = {key: (t[:, :, 0] if "lora_A" in key else t[..., 0]) for key, t in written.items()}
    save_file(flat, tmp_path / "flat.safetensors")
    with pytest.raises(FormatError, match="not how this format has that convolution"):
        loraforge.convert(tmp_path / "flat.safetensors", to="diffusers", out=tmp_path / "y", as_loaded=True)


@pytest.mark.parametrize(("one", "other"), list(permutations(FORMATS, 2)), ids=lambda name: name)
def test_every_pair_of_formats(one: str, other: str, tmp_path: Path) -> None:
    """There and back: the same update, or a refusal that names what the target cannot hold."""
    source, target = loraforge.formats()[one], loraforge.formats()[other]
    for arch in ("cogvideox",):
        layout = source.layouts[arch]
        segments = target.storage.segments or source.storage.segments
        adapter = make_adapter(arch, layout, segments)
        places = [tmp_path / f"{arch}-{n}" for n in range(3)]
        alone = {"sat": {"lora_only": True}}
        loraforge.write(adapter, one, places[0], **alone.get(one, {}))
        stated = {"architecture": arch} | _stated(places[0], arch)
        drop: list[str] = []
        lacking = _segments(arch, layout) - _segments(arch, target.layouts[arch])
        if _paths(adapter, lacking):
            with pytest.raises(ConversionError, match="has no module for") as refusal:
                loraforge.convert(places[0], to=other, out=places[1], **alone.get(other, {}), **stated)
            drop = shlex.split(refusal.value.remedies[0].command)[1::2]
            assert all(any(fnmatch.fnmatch(path, p) for p in drop) for path in _paths(adapter, lacking))
            adapter = dataclasses.replace(
                adapter,
                modules={k: v for k, v in adapter.modules.items() if not any(fnmatch.fnmatch(k, p) for p in drop)},
            )
            shutil.rmtree(places[0])
            loraforge.write(adapter, one, places[0], **alone.get(one, {}))
        loraforge.convert(places[0], to=other, out=places[1], **alone.get(other, {}), **stated)
        assert loraforge.verify(places[0], places[1], architecture=arch).same
        loraforge.convert(
            places[1], to=one, out=places[2], **alone.get(one, {}), architecture=arch, **_stated(places[1], arch)
        )
        assert loraforge.verify(places[0], places[2], architecture=arch).same


def test_a_flavour_without_the_architecture_is_refused_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"xlabs has no names for CogVideoX; there are sat, .*kohya") as refusal:
        loraforge.convert(DATA / "peft_plain", to="xlabs", out=tmp_path / "x")
    assert refusal.value.remedies[0].options == ("--to", "sat")
    assert not (tmp_path / "x").exists()


def test_earlier_names_are_kept_and_said(tmp_path: Path, cli) -> None:
    done = cli("convert", DATA / "peft_plain", "--to", "comfyui-native", "-o", tmp_path / "x")
    assert done.exit_code == 0 and "comfyui-native is read as comfyui" in done.stderr
    report = loraforge.convert(DATA / "peft_plain", to="cogvideox-fun", out=tmp_path / "y")
    assert report.output["format"] == "videox-fun"


def test_two_flavours_with_the_same_files_are_one(tmp_path: Path) -> None:
    written = {to: loraforge.convert(DATA / "peft_plain", to=to, out=tmp_path / to) for to in ("kohya", "musubi")}
    files = [load_file(tmp_path / to / f"{to}.safetensors") for to in written]
    assert files[0].keys() == files[1].keys()
    assert all((files[0][key] == files[1][key]).all() for key in files[0])
    assert any("--to kohya writes the same tensors" in note for note in written["musubi"].notes)
    assert loraforge.inspect(tmp_path / "musubi" / "musubi.safetensors").format == "kohya"


def _stated(place: Path, arch: str) -> dict[str, float]:
    scale = loraforge.inspect(place, architecture=arch).scale
    return {"trained_scale": 1.0} if scale and scale.provenance == "ambiguous" else {}


@pytest.mark.parametrize("target", FORMATS)
def test_dora_is_carried_or_refused_everywhere(target: str, tmp_path: Path) -> None:
    form = loraforge.formats()[target]
    options = {"lora_only": True} if target == "sat" else {}
    if not form.storage.magnitude:
        with pytest.raises(LoraforgeError, match="magnitudes"):
            loraforge.convert(DATA / "peft_dora", to=target, out=tmp_path / "x", **options)
        return
    loraforge.convert(DATA / "peft_dora", to=target, out=tmp_path / "x", **options)
    assert loraforge.verify(DATA / "peft_dora", tmp_path / "x").same


def _segments(arch: str, layout: str) -> set[str]:
    """The segments of a layout that a LoRA may adapt."""
    known = architecture(arch)
    return {s for stack in known.layouts[layout].modules.values() for s in stack} - known.unadapted.keys()


def _paths(adapter: Adapter, segments: set[str]) -> list[str]:
    layout = adapter.model.layouts[adapter.layout]
    return [path for path in adapter.modules if set(layout.stacked(path)) & segments]


def test_comfyuis_own_names_hold_what_they_say(tmp_path: Path) -> None:
    """No trainer writes these names, so they are spelled out here, from ComfyUI's model."""
    names = {"to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "attn_out"}
    loraforge.convert(DATA / "peft_plain", to="comfyui", out=tmp_path)
    written = load_file(tmp_path / "comfyui.safetensors")
    case = Case("peft_plain")
    for path, want in case.deltas.items():
        block, name = re.fullmatch(r"transformer_blocks\.(\d+)\.attn1\.(.*)", path).groups()
        stem = f"diffusion_model.blocks.{block}.{names[name]}"
        got = written[f"{stem}.lora_B.weight"].astype(np.float64) @ written[f"{stem}.lora_A.weight"]
        np.testing.assert_allclose(got, want, atol=WEIGHT)
    assert len(written) == 2 * len(case.deltas)
