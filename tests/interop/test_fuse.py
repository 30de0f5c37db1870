"""Fused weights: in the real libraries, and in SAT's recorded numbers, they do what base and adapter did together."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from helpers.oracle import DATA, FILE_CASES, SAT_CASES, Case
from helpers.tolerance import FORWARD, WEIGHT, off_by
from peft import PeftModel
from safetensors.torch import load_file, save_file

import loraforge
from loraforge.files.torch_read import read_torch

PREFIX = "model.diffusion_model."
CASES = [*SAT_CASES, *FILE_CASES]


@pytest.fixture(params=CASES)
def any_case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture
def base32(tmp_path: Path):
    """A float32 copy of a case's base: there fusing is exact up to float32."""

    def copy(case: Case) -> Path:
        model = CogVideoXTransformer3DModel.from_pretrained(case.base, torch_dtype=torch.float32)
        model.save_pretrained(tmp_path / "base32")
        return tmp_path / "base32"

    return copy


def strictly_loaded(folder: Path, case: Case | None = None) -> Any:
    model, info = CogVideoXTransformer3DModel.from_pretrained(
        folder, torch_dtype=torch.float32, output_loading_info=True
    )
    assert not any(info[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    if case is not None and case.name in SAT_CASES:
        model.norm_out.norm.eps = 1e-6  # SAT's final norm; diffusers uses 1e-5
    return model.eval()


def output(model: Any, case: Case) -> torch.Tensor:
    inputs = load_file(case.base / "inputs.safetensors")
    extra = {"image_rotary_emb": (inputs["rope_cos"], inputs["rope_sin"])} if "rope_cos" in inputs else {}
    with torch.no_grad():
        return model(inputs["x"], inputs["context"], inputs["timesteps"], return_dict=False, **extra)[0]


def recorded(case: Case) -> torch.Tensor:
    return load_file(case.folder / "forward.safetensors")["lora_on"]


def numbers(file: Path) -> dict[str, np.ndarray]:
    return {key: tensor.float().numpy() for key, tensor in load_file(file).items()}


def test_a_fused_diffusers_base_is_the_trained_model(any_case: Case, base32: Any, tmp_path: Path) -> None:
    """Forward as recorded, every weight moved by the recorded update, every other tensor the same bytes."""
    before = load_file(base32(any_case) / "diffusion_pytorch_model.safetensors")
    report = loraforge.fuse(tmp_path / "base32", [any_case.source], tmp_path / "out", **any_case.said)
    model = strictly_loaded(tmp_path / "out", any_case)
    difference = (output(model, any_case) - recorded(any_case)).abs().max().item()
    assert difference <= any_case.manifest["tolerance"]["forward"]
    after = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors")
    assert after.keys() == before.keys()
    moved = {f"{path}.weight" for path in any_case.deltas}
    for key, tensor in before.items():
        if key not in moved:
            assert torch.equal(after[key], tensor), key
            continue
        delta = after[key].double() - tensor.double()
        grid = 2.0**-23 * tensor.abs().max().item()
        want = torch.from_numpy(any_case.deltas[key.removesuffix(".weight")]).reshape(delta.shape)
        assert (delta - want).abs().max().item() <= any_case.manifest["tolerance"]["delta"] + grid, key
    assert {r.module for r in report.modules} == moved
    assert report.total.relative_error < 1e-3
    assert report.copied == len(before) - len(moved)


@pytest.mark.parametrize("name", ["sat_2b_r4", "diffusers_meta_patterns", "peft_dora", "peft_rslora"])
def test_a_bf16_base_is_rounded_once(name: str, tmp_path: Path) -> None:
    """Every changed weight is the bf16 nearest to base + update, where float32 decides; the rest is byte for byte."""
    case = Case(name)
    loraforge.fuse(case.base, [case.source], tmp_path / "out", **case.said)
    before, after = (load_file(d / "diffusion_pytorch_model.safetensors") for d in (case.base, tmp_path / "out"))
    for key, tensor in after.items():
        assert tensor.dtype == torch.bfloat16
        path = key.removesuffix(".weight")
        if path not in case.deltas:
            assert torch.equal(tensor.view(torch.int16), before[key].view(torch.int16)), key
            continue
        ideal = before[key].double() + torch.from_numpy(case.deltas[path]).reshape(tensor.shape)
        off = (tensor.double() - ideal).abs()
        half = torch.exp2(torch.floor(torch.log2(ideal.abs().clamp_min(1e-30)))) * 2.0**-8
        assert (off <= half * 1.001 + 2e-6).all(), key
    strictly_loaded(tmp_path / "out")


def test_it_is_what_diffusers_and_peft_fuse(tmp_path: Path, base32: Any) -> None:
    case = Case("diffusers_meta_patterns")
    base = base32(case)
    loraforge.fuse(base, [case.source], tmp_path / "ours")
    model = CogVideoXTransformer3DModel.from_pretrained(base, torch_dtype=torch.float32)
    pipe = CogVideoXPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=model, scheduler=None)
    pipe.load_lora_weights(str(case.source))
    live = output(model, case)
    pipe.fuse_lora(components=["transformer"])
    pipe.unload_lora_weights()
    mine = strictly_loaded(tmp_path / "ours")
    assert off_by(output(mine, case), live) <= FORWARD
    theirs = model.state_dict()
    for key, tensor in mine.state_dict().items():
        assert off_by(tensor, theirs[key]) <= WEIGHT, key


def test_dora_is_pefts_merge(tmp_path: Path, base32: Any) -> None:
    case = Case("peft_dora")
    base = base32(case)
    for strength in (1.0, 0.5):
        loraforge.fuse(base, [case.source], tmp_path / f"{strength}", strength=[strength])
        model = PeftModel.from_pretrained(strictly_loaded(base), str(case.source))
        for layer in model.modules():
            if hasattr(layer, "scale_layer"):
                layer.scale_layer(strength)
        live = output(model, case)
        merged = model.merge_and_unload()
        mine = strictly_loaded(tmp_path / f"{strength}")
        for key, tensor in mine.state_dict().items():
            assert off_by(tensor, merged.state_dict()[key]) <= WEIGHT, key
        assert off_by(output(mine, case), live) <= FORWARD


def sat_tensors(file: Path) -> dict[str, torch.Tensor]:
    return torch.load(file, weights_only=True, map_location="cpu")["module"]


def test_a_diffusers_adapter_in_a_sat_base_is_the_sat_adapter_there(tmp_path: Path) -> None:
    """The same update, carried by another format and another layout, gives the same bytes; and upstream's numbers."""
    case = Case("sat_2b_r4")
    sat_base = DATA / "bases" / "2b" / "sat_base"
    for to in ("diffusers", "peft"):
        loraforge.convert(case.source, to=to, out=tmp_path / to, **case.said)
    for name, source in {"sat": case.source, "diffusers": tmp_path / "diffusers", "peft": tmp_path / "peft"}.items():
        loraforge.fuse(sat_base, [source], tmp_path / f"in-{name}", **(case.said if name == "sat" else {}))
    files = {name: next((tmp_path / f"in-{name}").glob("*/*.pt")) for name in ("sat", "diffusers", "peft")}
    fused = {name: sat_tensors(file) for name, file in files.items()}
    before = sat_tensors(next(sat_base.glob("*/*.pt")))
    for name in ("diffusers", "peft"):
        assert list(fused[name]) == list(before)
        assert all(torch.equal(fused[name][key], fused["sat"][key]) for key in before)
    assert (tmp_path / "in-sat" / "latest").read_text() == "1"
    # through the graph it is the same as fusing into the Diffusers base
    report = loraforge.convert_base(tmp_path / "in-diffusers", "diffusers", tmp_path / "there")
    assert report.cast == 0
    model = strictly_loaded(tmp_path / "there", case)
    model.patch_embed = strictly_loaded(case.base).patch_embed  # the sample size of the tiny base is recorded nowhere
    assert (output(model, case) - recorded(case)).abs().max() <= case.manifest["tolerance"]["forward"]


def test_it_is_what_sat_merged_itself(tmp_path: Path) -> None:
    """SAT's own merge_lora of this run, in its order: adapted weights to the order of the sums, others to the bit."""
    case = Case("sat_2b_r4")
    loraforge.fuse(case.source, [case.source], tmp_path / "out", **case.said)
    got, want = (sat_tensors(next(d.glob("*/*.pt"))) for d in (tmp_path / "out", case.folder / "sat_merged"))
    assert list(got) == list(want)
    before = torch.load(next(case.source.glob("*/*.pt")), weights_only=False, map_location="cpu")["module"]
    adapted = {key for key in want if key.endswith(".weight") and key.replace(".weight", ".matrix_A.0") in before}
    assert len(adapted) == 4
    assert all(torch.equal(got[key], want[key]) for key in want.keys() - adapted)
    for key in adapted:
        assert off_by(got[key], want[key]) <= WEIGHT, key
        assert off_by(want[key], before[key.replace(".weight", ".original.weight")]) > 1000 * WEIGHT, key


@pytest.mark.parametrize("name", SAT_CASES)
def test_a_sat_run_fused_into_itself_is_a_base(name: str, tmp_path: Path) -> None:
    """Names without `.original.`, no LoRA tensors, and SAT's recorded forward."""
    case = Case(name)
    run = case.run(tmp_path)
    report = loraforge.fuse(run, [run], tmp_path / "out")
    file = next((tmp_path / "out").glob("*/*.pt"))
    keys = set(sat_tensors(file))
    source = read_torch(next(run.glob("*/*.pt")))
    assert keys == {key.replace(".original.", ".") for key in source.tensors if ".matrix_" not in key}
    assert any("is left out" in note for note in report.notes)
    loraforge.convert_base(tmp_path / "out", "diffusers", tmp_path / "there")
    model = CogVideoXTransformer3DModel.from_config(json.loads((case.base / "config.json").read_text())).eval()
    model.load_state_dict(load_file(tmp_path / "there" / "diffusion_pytorch_model.safetensors"), strict=True)
    model.norm_out.norm.eps = 1e-6
    model = model.float()
    assert off_by(output(model, case), recorded(case)) <= case.manifest["tolerance"]["forward"]


def test_an_update_of_norms_modulation_crosses_the_row_reorder(tmp_path: Path) -> None:
    """adaLN: 12 chunks in SAT, 2 x 6 in Diffusers, another order. Fused in either, the forward is the live one."""
    torch.manual_seed(0)
    from peft import LoraConfig, get_peft_model

    case = Case("sat_2b_r4")
    model = get_peft_model(
        strictly_loaded(case.base), LoraConfig(r=3, lora_alpha=6, target_modules=["norm1.linear", "norm2.linear"])
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    live = output(model, case)
    loraforge.fuse(DATA / "bases" / "2b" / "sat_base", [tmp_path / "adapter"], tmp_path / "sat")
    loraforge.convert_base(tmp_path / "sat", "diffusers", tmp_path / "there")
    fused = strictly_loaded(case.base)
    fused.load_state_dict(load_file(tmp_path / "there" / "diffusion_pytorch_model.safetensors"), strict=True)
    assert off_by(output(fused, case), live) <= FORWARD


def test_opposite_strengths_give_the_base_back(tmp_path: Path) -> None:
    case = Case("diffusers_meta_patterns")
    loraforge.fuse(case.base, [case.source, case.source], tmp_path / "out", strength=[0.5, -0.5])
    before, after = (load_file(d / "diffusion_pytorch_model.safetensors") for d in (case.base, tmp_path / "out"))
    assert all(torch.equal(after[key].view(torch.int16), before[key].view(torch.int16)) for key in before)


def test_several_adapters_add_up_each_at_its_own_scale(tmp_path: Path, base32: Any) -> None:
    first, second = Case("diffusers_meta_patterns"), Case("sat_2b_r4")
    run = second.run(tmp_path)
    loraforge.fuse(base32(first), [first.source, run], tmp_path / "out", strength=[0.75, -2])
    before, after = (
        numbers(d / "diffusion_pytorch_model.safetensors") for d in (tmp_path / "base32", tmp_path / "out")
    )
    paths = first.deltas.keys() | second.deltas.keys()
    for path in paths:
        key = f"{path}.weight"
        want = 0.75 * first.deltas.get(path, 0) - 2.0 * second.deltas.get(path, 0)
        assert np.abs(after[key] - before[key] - want.reshape(after[key].shape)).max() <= 3e-6, path


def pipeline_folder(place: Path, shards: int = 3) -> Path:
    """A whole pipeline folder: a sharded transformer, a large file, a small one, a hidden one."""
    case = Case("sat_2b_r4")
    model = CogVideoXTransformer3DModel.from_pretrained(case.base, torch_dtype=torch.bfloat16)
    model.save_pretrained(
        place / "transformer", max_shard_size=f"{model.num_parameters() * 2 // shards // 1000 + 20}KB"
    )
    (place / "vae").mkdir()
    save_file({"x": torch.zeros(1 << 19)}, place / "vae" / "diffusion_pytorch_model.safetensors")
    (place / "vae" / "config.json").write_text("{}")
    (place / "model_index.json").write_text(json.dumps({"_class_name": "CogVideoXPipeline"}))
    (place / "README.md").write_text("a model")
    (place / ".cache").mkdir()
    (place / ".cache" / "x").write_text("1")
    return place


def test_a_pipeline_stays_one(tmp_path: Path) -> None:
    """Shards, index and configuration as before; the other components linked where large, copied where small."""
    base, case = pipeline_folder(tmp_path / "base"), Case("sat_2b_r4")
    run, out = case.run(tmp_path), tmp_path / "out"
    report = loraforge.fuse(base, [run], out)
    names = sorted(p.relative_to(base).as_posix() for p in base.rglob("*") if p.is_file() and ".cache" not in p.parts)
    assert sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()) == names
    assert len(report.output["files"]) >= 3
    large = "vae/diffusion_pytorch_model.safetensors"
    assert os.path.samefile(out / large, base / large)
    assert not os.path.samefile(out / "README.md", base / "README.md")
    for name in ("config.json", "diffusion_pytorch_model.safetensors.index.json"):
        assert (out / "transformer" / name).read_bytes() == (base / "transformer" / name).read_bytes()
    for file in (base / "transformer").glob("*.safetensors"):
        assert load_file(file).keys() == load_file(out / "transformer" / file.name).keys()
    assert CogVideoXTransformer3DModel.from_pretrained(out, subfolder="transformer") is not None
    strictly_loaded(out / "transformer")
    loraforge.fuse(base, [run], tmp_path / "alone", transformer_only=True)
    inner = {p.name for p in (base / "transformer").iterdir()}
    assert {p.name for p in (tmp_path / "alone").iterdir()} == inner
    for name in inner:
        if name.endswith(".safetensors"):
            one, other = (load_file(d / name) for d in (tmp_path / "alone", out / "transformer"))
            assert all(torch.equal(one[key], other[key]) for key in one)


def test_fp32_keeps_what_bf16_rounds(tmp_path: Path) -> None:
    base, case = pipeline_folder(tmp_path / "base"), Case("sat_2b_r4")
    run = case.run(tmp_path)
    rough = loraforge.fuse(base, [run], tmp_path / "rough")
    fine = loraforge.fuse(base, [run], tmp_path / "fine", dtype="fp32")
    assert fine.total.relative_error < 1e-5 < rough.total.relative_error
    assert (fine.cast, fine.copied, rough.cast) == (rough.copied, 0, 0)
    index = json.loads((tmp_path / "fine/transformer/diffusion_pytorch_model.safetensors.index.json").read_text())
    tensors = [t for f in (tmp_path / "fine/transformer").glob("*.safetensors") for t in load_file(f).values()]
    assert {t.dtype for t in tensors} == {torch.float32}
    assert index["metadata"]["total_size"] == sum(4 * t.numel() for t in tensors)
    strictly_loaded(tmp_path / "fine/transformer")


def test_the_same_input_gives_the_same_bytes_wherever_it_lies(tmp_path: Path) -> None:
    case = Case("sat_2b_r4")
    run = case.run(tmp_path)
    for base in (case.base, DATA / "bases" / "2b" / "sat_base"):
        kind = base.name
        loraforge.fuse(base, [run], tmp_path / kind / "a")
        loraforge.fuse(base, [run], tmp_path / kind / "elsewhere" / "b")
        one, other = (
            {p.relative_to(d).as_posix(): p.read_bytes() for p in d.rglob("*") if p.is_file()}
            for d in (tmp_path / kind / "a", tmp_path / kind / "elsewhere" / "b")
        )
        assert one == other
