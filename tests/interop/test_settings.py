"""What the table of settings says of Diffusers and PEFT is what they do."""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import pytest
import torch
from diffusers import CogVideoXImageToVideoPipeline, CogVideoXPipeline, CogVideoXTransformer3DModel
from helpers.oracle import DATA, Case
from helpers.tolerance import WEIGHT
from safetensors.torch import load_file

from loraforge.facts.setting_rules import compare
from loraforge.facts.variants import settings, table

VARIANTS = list(table()["variants"])


def tiny(name: str) -> Any:
    return CogVideoXTransformer3DModel.from_pretrained(DATA / "bases" / name, torch_dtype=torch.float32).eval()


def pipeline(model: Any = None) -> Any:
    return CogVideoXPipeline(tokenizer=None, text_encoder=None, vae=None, transformer=model, scheduler=None)


def run(model: Any, *, frames: int = 3, height: int = 8, width: int = 8, text: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, frames, model.config.in_channels, height, width, generator=generator)
    context = torch.randn(1, text, model.config.text_embed_dim, generator=generator)
    with torch.no_grad():
        return model(x, context, torch.tensor([10]), return_dict=False)[0]


def severity(variant: str, key: str, value: Any) -> str:
    (finding,) = compare({key: value}, variant)
    return finding.severity


@pytest.mark.parametrize("kind", [CogVideoXPipeline, CogVideoXImageToVideoPipeline])
def test_the_defaults_are_those_of_the_signatures(kind: Any) -> None:
    parameters = {**inspect.signature(kind.__call__).parameters, **inspect.signature(kind.fuse_lora).parameters}
    parameters["fuse_components"] = parameters["components"]
    for key, value in table()["defaults"].items():
        assert key == "source" or parameters[key].default == value, key


def test_the_transformer_is_all_there_is_to_fuse() -> None:
    assert CogVideoXPipeline._lora_loadable_modules == ["transformer"]
    with pytest.raises(ValueError, match="text_encoder"):
        pipeline(tiny("2b")).fuse_lora(components=["text_encoder"])
    assert severity("CogVideoX-2B", "fuse_components", ["text_encoder"]) == "wrong"


def test_set_adapters_and_lora_scale_are_multiplied() -> None:
    case = Case("diffusers_save_lora_weights_nometa")

    def fused(strength: float, scale: float) -> dict[str, torch.Tensor]:
        pipe = pipeline(tiny("2b"))
        pipe.load_lora_weights(str(case.source), adapter_name="a")
        pipe.set_adapters(["a"], [strength])
        pipe.fuse_lora(components=["transformer"], lora_scale=scale)
        pipe.unload_lora_weights()
        return dict(pipe.transformer.state_dict())

    base, both, quarter, half = tiny("2b").state_dict(), fused(0.5, 0.5), fused(1.0, 0.25), fused(0.5, 1.0)
    changed = [key for key in base if not torch.equal(base[key], half[key])]
    assert changed
    for key in base:
        torch.testing.assert_close(both[key], quarter[key], rtol=0, atol=WEIGHT)
    for key in changed:
        torch.testing.assert_close(both[key] - base[key], (half[key] - base[key]) / 2, rtol=0, atol=WEIGHT)
    findings = compare({"adapter_strength": 0.5, "lora_scale": 0.5}, "CogVideoX-2B")
    assert all("0.25 is applied" in finding.consequence for finding in findings)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_schedulers_exist(variant: str) -> None:
    assert hasattr(diffusers, settings(variant).scheduler)
    named = str(inspect.signature(CogVideoXPipeline.__init__).parameters["scheduler"].annotation)
    for name in ("CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"):
        assert hasattr(diffusers, name)
        assert name in named


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_plain_schedulers_do_not_know_the_shift(name: str) -> None:
    ours = diffusers.CogVideoXDDIMScheduler(
        snr_shift_scale=3.0, rescale_betas_zero_snr=True, prediction_type="v_prediction"
    )
    plain = getattr(diffusers, name).from_config(ours.config)
    assert "snr_shift_scale" not in inspect.signature(type(plain).__init__).parameters
    assert (ours.alphas_cumprod.double() - plain.alphas_cumprod.double()).abs().max() > 0.1
    assert severity("CogVideoX-2B", "scheduler", name) == "wrong"


@pytest.mark.parametrize("name", ["CogVideoXDDIMScheduler", "CogVideoXDPMScheduler"])
@pytest.mark.parametrize("steps", [10, 30, 50])
def test_leading_begins_before_the_last_timestep(name: str, steps: int) -> None:
    begins = {}
    for spacing in ("leading", "linspace", "trailing"):
        scheduler = getattr(diffusers, name)(timestep_spacing=spacing, rescale_betas_zero_snr=True)
        scheduler.set_timesteps(steps)
        begins[spacing] = int(scheduler.timesteps[0])
    assert begins["trailing"] == begins["linspace"] == 999
    assert begins["leading"] < 999


def test_frames_that_come_of_a_number() -> None:
    pipe = pipeline()
    pipe.scheduler = diffusers.CogVideoXDDIMScheduler()
    for count in range(1, 201):
        latents = pipe.prepare_latents(1, 1, count, 16, 16, torch.float32, torch.device("cpu"), torch.Generator())
        made = (latents.shape[1] - 1) * 4 + 1
        (finding,) = compare({"num_frames": count}, "CogVideoX-5B")
        assert (f"so {made} frames are made" in finding.consequence) == (made != count and (count - 1) % 8 != 0)


def test_learned_positions_refuse_another_size() -> None:
    model = tiny("5b_i2v")
    assert run(model).shape[-2:] == (8, 8)
    with pytest.raises(ValueError, match="different resolution"):
        run(model, height=16)
    assert severity("CogVideoX-5B-I2V", "height", 512) == "wrong"
    for other in ("2b", "5b"):
        assert run(tiny(other), height=16).shape[-2:] == (16, 8)
    assert severity("CogVideoX-2B", "height", 512) == "differs"


def test_learned_positions_are_left_out_for_another_number_of_frames() -> None:
    model = tiny("5b_i2v")
    same, fewer = run(model, frames=3), run(model, frames=2)
    model.patch_embed.pos_embedding.data.zero_()
    assert not torch.equal(run(model, frames=3), same)
    assert torch.equal(run(model, frames=2), fewer)
    assert severity("CogVideoX-5B-I2V", "num_frames", 33) == "differs"


@pytest.mark.parametrize(("name", "variant"), [("2b", "CogVideoX-2B"), ("5b_i2v", "CogVideoX-5B-I2V")])
def test_other_text_lengths_fail_where_positions_are_added(name: str, variant: str) -> None:
    with pytest.raises(RuntimeError, match="size of tensor"):
        run(tiny(name), text=7)
    assert severity(variant, "max_sequence_length", 100) == "wrong"
    run(tiny("5b"), text=7)
    assert severity("CogVideoX-5B", "max_sequence_length", 100) == "differs"


def test_a_size_that_is_no_multiple_of_16_is_not_kept() -> None:
    with pytest.raises(ValueError, match="divisible by 8"):
        pipeline().check_inputs("a", 484, 720, None, ["latents"], None, None)
    assert run(tiny("2b"), height=9).shape[-2:] != (9, 8)  # 72 pixels, a multiple of 8 only


def test_guidance_of_one_is_none() -> None:
    source = inspect.getsource(CogVideoXPipeline.__call__)
    assert "do_classifier_free_guidance = guidance_scale > 1.0" in source
    assert "num_inference_steps - t.item()" in source  # the timestep, where SAT has the number of the step


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_devices_draw_different_noise() -> None:
    cpu, cuda = (torch.randn(64, generator=torch.Generator(d).manual_seed(42), device=d).cpu() for d in ("cpu", "cuda"))
    assert not torch.allclose(cpu, cuda)


def test_a_generator_draws_on_its_own_device() -> None:
    from diffusers.utils.torch_utils import randn_tensor

    wanted = torch.randn((2, 3), generator=torch.Generator("cpu").manual_seed(42))
    assert torch.equal(randn_tensor((2, 3), torch.Generator("cpu").manual_seed(42), torch.device("cpu")), wanted)
    assert 'rand_device = "cpu"' in inspect.getsource(randn_tensor)


def test_the_tiny_bases_are_what_the_tests_say() -> None:
    assert load_file(DATA / "bases" / "5b_i2v" / "diffusion_pytorch_model.safetensors").keys() >= {
        "patch_embed.pos_embedding"
    }
