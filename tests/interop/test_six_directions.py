"""Acceptance: every recorded adapter, into every format it can go to, does in the real software what it did there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from helpers.oracle import DATA, FILE_CASES, SAT_CASES, Case
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

import loraforge
from loraforge.errors import ConversionError, FormatError

PREFIX = "model.diffusion_model."


@pytest.fixture(params=[*SAT_CASES, *FILE_CASES])
def any_case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def base_model(case: Case) -> CogVideoXTransformer3DModel:
    model = CogVideoXTransformer3DModel.from_pretrained(case.base, torch_dtype=torch.float32).eval()
    if case.name in SAT_CASES:
        model.norm_out.norm.eps = 1e-6  # SAT's final norm; diffusers uses 1e-5
    return model


def output(model: Any, case: Case) -> torch.Tensor:
    inputs = load_file(case.base / "inputs.safetensors")
    extra = {"image_rotary_emb": (inputs["rope_cos"], inputs["rope_sin"])} if "rope_cos" in inputs else {}
    with torch.no_grad():
        return model(inputs["x"], inputs["context"], inputs["timesteps"], return_dict=False, **extra)[0]


def assert_is_the_trained_model(model: Any, case: Case) -> None:
    """Its output is the recorded one; merged, each weight has moved by the recorded update, and no other has moved."""
    recorded = load_file(case.folder / "forward.safetensors")["lora_on"]
    assert (output(model, case) - recorded).abs().max().item() <= case.manifest["tolerance"]["forward"]
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    assert {name.removeprefix("base_model.model.") for name in layers} == set(case.deltas)
    for name, layer in layers.items():
        before = layer.get_base_layer().weight.detach().double().clone()
        layer.merge()
        moved = (layer.get_base_layer().weight.detach().double() - before).numpy()
        want = case.deltas[name.removeprefix("base_model.model.")]
        # float32 weights: a merge rounds each entry to their grid
        grid = 2.0**-23 * np.abs(before.numpy()).max()
        assert np.abs(moved - want).max() <= case.manifest["tolerance"]["delta"] + grid, name


def convert(case: Case, to: str, out: Path, **options: Any) -> loraforge.Report:
    return loraforge.convert(case.source, to=to, out=out, **case.said, **options)


@pytest.mark.parametrize("stored", ["tensors", "metadata"])
def test_diffusers_loads_it_as_trained(any_case: Case, stored: Any, tmp_path: Path) -> None:
    report = convert(any_case, "diffusers", tmp_path / "out", scale_in=stored)
    assert report.scale.provenance == ("given" if "alpha" in any_case.said else "recorded")
    model = base_model(any_case)
    pipe = CogVideoXPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=model, scheduler=None)
    pipe.load_lora_weights(str(tmp_path / "out"))
    assert_is_the_trained_model(model, any_case)


def test_peft_loads_it_as_trained(any_case: Case, tmp_path: Path) -> None:
    convert(any_case, "peft", tmp_path / "out")
    model = PeftModel.from_pretrained(base_model(any_case), str(tmp_path / "out"))
    assert_is_the_trained_model(model, any_case)


def sat_updates(run: Path) -> dict[str, np.ndarray]:
    """Diffusers module path -> the update SAT makes of a run folder: lora_alpha / r * B @ A, q then k then v."""
    iteration = (run / "latest").read_text().strip()
    checkpoint = torch.load(run / iteration / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    config = yaml.safe_load((run / "training_config.yaml").read_text())
    params = config["model"]["network_config"]["params"]["modules"]["lora_config"]["params"]
    found = {}
    for key, A in checkpoint.items():
        if ".matrix_A." not in key:
            continue
        assert A.shape[0] == params["r"]
        module, part = key.split(".matrix_A.")
        layer = module.split(".layers.")[1].split(".")[0]
        names = {"query_key_value": ["to_q", "to_k", "to_v"], "dense": ["to_out.0"]}[module.rpartition(".")[2]]
        B = checkpoint[key.replace(".matrix_A.", ".matrix_B.")]
        path = f"transformer_blocks.{layer}.attn1.{names[int(part)]}"
        found[path] = (B.double() @ A.double()).numpy() * params["lora_alpha"] / params["r"]
    return found


CANNOT = {"peft_dora": "magnitudes", "diffusers_meta_patterns": "ff.net"}
"""Cases SAT's LoRA cannot hold, and what the message names."""


@pytest.mark.parametrize("alpha", [None, 4.0, 3.0])
def test_sat_applies_what_was_trained(any_case: Case, alpha: float | None, tmp_path: Path) -> None:
    out = tmp_path / "run"
    if any_case.name in CANNOT:
        with pytest.raises(ConversionError, match=CANNOT[any_case.name]):
            convert(any_case, "sat", out, base=any_case.sat_base)
        assert not out.exists()
        return
    convert(any_case, "sat", out, base=any_case.sat_base, target_alpha=alpha)
    got = sat_updates(out)
    assert {path for path, update in got.items() if update.any()} == any_case.deltas.keys()
    exact = alpha in (None, 4.0) or any_case.name in SAT_CASES
    for path, want in any_case.deltas.items():
        error = np.linalg.norm(got[path] - want) / np.linalg.norm(want)
        assert error <= (1e-6 if exact else 4e-7), f"{path} is off by {error:.1e}"


def test_a_sat_checkpoint_is_laid_out_as_sats_own(tmp_path: Path) -> None:
    """Key set, shapes and element types of a real run folder of the same rank; every base tensor bit by bit."""
    case = Case("sat_2b_r4")
    real = torch.load(case.source / "1000" / "mp_rank_00_model_states.pt", weights_only=False)["module"]
    convert(case, "diffusers", tmp_path / "d")
    base = DATA / "bases" / "2b" / "sat_base"
    loraforge.convert(tmp_path / "d", to="sat", out=tmp_path / "run", base=base)
    ours = torch.load(tmp_path / "run" / "1" / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    assert {key: (t.shape, t.dtype) for key, t in ours.items()} == {key: (t.shape, t.dtype) for key, t in real.items()}
    assert all(torch.equal(ours[key], tensor) for key, tensor in real.items())
    assert (tmp_path / "run" / "latest").read_text() == "1"  # SAT exits on anything but a number


def test_modules_to_save_is_refused_by_name(tmp_path: Path) -> None:
    for to in ("diffusers", "peft", "sat"):
        with pytest.raises(FormatError, match="modules_to_save proj_out"):
            loraforge.convert(DATA / "peft_modules_to_save", to=to, out=tmp_path / "out", lora_only=to == "sat")


def test_sat_needs_a_base_or_a_word_that_there_is_none(tmp_path: Path) -> None:
    case = Case("peft_plain")
    with pytest.raises(ConversionError, match="needs the base model's SAT checkpoint") as refusal:
        convert(case, "sat", tmp_path / "run")
    assert [remedy.command.split()[0] for remedy in refusal.value.remedies] == ["--lora-only"]
    with pytest.raises(ConversionError, match="is not the base of this adapter"):
        convert(case, "sat", tmp_path / "run", base=Case("sat_1.5_t2v_r4").source, dry_run=True, force=True)
    smaller = torch.load(case.sat_base / "1" / "mp_rank_00_model_states.pt", weights_only=False)
    key = f"{PREFIX}transformer.layers.1.attention.dense.weight"
    smaller["module"][key] = smaller["module"][key][:, :-1].clone()
    torch.save({"module": smaller["module"]}, tmp_path / "smaller.pt")
    with pytest.raises(ConversionError, match=r"needs 64 x 64 there: .*attention\.dense is \[64, 63\]"):
        convert(case, "sat", tmp_path / "run", base=tmp_path / "smaller.pt")
    report = convert(case, "sat", tmp_path / "run", lora_only=True)
    assert "nothing loads it alone" in report.load
    alone = torch.load(tmp_path / "run" / "1" / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    assert all(".matrix_" in key for key in alone)
    assert loraforge.verify(case.source, tmp_path / "run").same


def test_a_base_that_holds_another_lora_loses_it_and_says_so(tmp_path: Path) -> None:
    report = convert(Case("videox_fun_peft"), "sat", tmp_path / "run", base=Case("sat_2b_r4").source)
    assert "the LoRA that mp_rank_00_model_states.pt held (4 modules) is replaced" in report.notes
    assert loraforge.verify(Case("videox_fun_peft").source, tmp_path / "run").strength == pytest.approx(0.5)
