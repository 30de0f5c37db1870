"""Acceptance: a converted SAT run, loaded by the real diffusers at strength 1.0, is the model SAT trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from helpers.oracle import Case, assert_acts_as_trained
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

import loraforge


def sat_forward(case: Case, file: Path | None) -> tuple[torch.Tensor, list[float]]:
    """The transformer's output for the recorded inputs, and the scaling of every LoRA layer as peft applies it."""
    model = CogVideoXTransformer3DModel.from_pretrained(case.base, torch_dtype=torch.float32).eval()
    model.norm_out.norm.eps = 1e-6  # SAT's final norm; diffusers uses 1e-5
    if file is not None:
        state, metadata = CogVideoXPipeline.lora_state_dict(
            file.parent, weight_name=file.name, return_lora_metadata=True
        )
        CogVideoXPipeline.load_lora_into_transformer(state, model, metadata=metadata)
    inputs = load_file(case.base / "inputs.safetensors")
    extra = {"image_rotary_emb": (inputs["rope_cos"], inputs["rope_sin"])} if "rope_cos" in inputs else {}
    with torch.no_grad():
        output = model(inputs["x"], inputs["context"], inputs["timesteps"], return_dict=False, **extra)[0]
    scalings = [value for layer in model.modules() if isinstance(layer, LoraLayer) for value in layer.scaling.values()]
    return output, scalings


@pytest.mark.parametrize("stored", ["tensors", "metadata"])
@pytest.mark.parametrize("known", ["config beside it", "config named", "--alpha", "override"])
def test_forward_and_update_equal_the_recorded_ones(case: Case, known: str, stored: str, tmp_path: Path) -> None:
    run = case.run(tmp_path, config=known == "config beside it")
    alpha = case.manifest["lora_alpha"]
    said = {
        "config beside it": {},
        "config named": {"training_config": case.folder / "sat_config.yaml"},
        "--alpha": {"alpha": alpha},
        "override": {"trained_scale": case.scale, "override_scale": True},
    }[known]
    report = loraforge.convert(run, to="diffusers", out=tmp_path / "out", scale_in=stored, **said)
    assert report.scale.provenance == ("recorded" if "config" in known else "given")
    assert report.scalings == (case.scale,)
    assert {step.kind for step in report.steps} == {"exact"}

    file = Path(report.output["path"])
    output, scalings = sat_forward(case, file)
    recorded = load_file(case.folder / "forward.safetensors")["lora_on"]
    assert (output - recorded).abs().max().item() <= case.manifest["tolerance"]["forward"]
    assert len(scalings) == len(report.steps) == len(case.deltas)
    assert set(scalings) == {1.0 if stored == "tensors" else case.scale}
    if stored == "tensors":
        assert_acts_as_trained(file, case)


def test_the_forward_test_can_fail(case: Case) -> None:
    """Without the LoRA, the same comparison is off by far more than its tolerance."""
    output, _ = sat_forward(case, None)
    recorded = load_file(case.folder / "forward.safetensors")["lora_on"]
    assert (output - recorded).abs().max().item() > 100 * case.manifest["tolerance"]["forward"]


def test_without_a_config_sats_own_default_is_assumed_and_said(case: Case, tmp_path: Path) -> None:
    report = loraforge.convert(case.run(tmp_path, config=False), to="diffusers", out=tmp_path / "out")
    text = "\n".join(report.lines())
    assert report.scale.provenance == "assumed"
    assert "assumed: SAT's default lora_alpha 1" in text
    assert "as trained" not in text
    if case.manifest["lora_alpha"] == 1:
        assert_acts_as_trained(Path(report.output["path"]), case)


def test_the_whole_pipeline_class_loads_it(case: Case, tmp_path: Path) -> None:
    """`pipe.load_lora_weights(FOLDER)`, the line the report prints, on a pipeline object."""
    report = loraforge.convert(case.run(tmp_path), to="diffusers", out=tmp_path / "out")
    model = CogVideoXTransformer3DModel.from_pretrained(case.base)
    pipe = CogVideoXPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=model, scheduler=None)
    assert report.load.startswith(f"pipe.load_lora_weights({str(tmp_path / 'out')!r}, weight_name=")
    pipe.load_lora_weights(str(tmp_path / "out"))
    assert pipe.get_active_adapters() == ["default_0"]
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    assert len(layers) == len(case.deltas)
    assert {value for layer in layers for value in layer.scaling.values()} == {1.0}
