"""Every module a LoRA can touch, as rows: SAT's own base weights through our graph are what upstream's converter made.

The load-time checks of a layout cannot see two segments exchanged; only a comparison with the original can.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.oracle import Case
from safetensors.torch import load_file

from loraforge.adapter.relayout import relayout
from loraforge.algebra.lora import LoraWeight
from loraforge.names.catalog import architecture

PREFIX = "model.diffusion_model."


def sat_base(case: Case) -> dict[str, np.ndarray]:
    """Module path -> weight as [out, everything else], of the modules in the architecture file."""
    file: Path = next((case.folder / "sat_ckpt").glob("*/*.pt"))
    state = torch.load(file, weights_only=False)["module"]
    weights = {
        key.removeprefix(PREFIX).removesuffix(".weight").removesuffix(".original"): tensor.double().numpy()
        for key, tensor in state.items()
        if key.startswith(PREFIX) and key.endswith(".weight")
    }
    layout = architecture("cogvideox").layouts["sat"]
    return {path: weight.reshape(len(weight), -1) for path, weight in weights.items() if layout.locate(path)}


def test_base_weights_through_the_graph_are_upstreams(case: Case) -> None:
    source = sat_base(case)
    whole = {path: (LoraWeight(np.eye(weight.shape[1]), weight, 1.0),) for path, weight in source.items()}
    want = load_file(case.base / "diffusion_pytorch_model.safetensors")
    relaid = relayout(whole, architecture("cogvideox"), "sat", "diffusers")
    assert len(relaid) > len(source)
    for path, (delta, _) in relaid.items():
        got = np.concatenate([w.B @ w.A for w in delta])
        recorded = want[f"{path}.weight"].double().numpy()
        assert np.array_equal(got, recorded.reshape(len(recorded), -1)), path


def test_every_linear_and_convolution_of_the_diffusers_class_has_a_place(case: Case) -> None:
    from diffusers import CogVideoXTransformer3DModel

    layout = architecture("cogvideox").layouts["diffusers"]
    with torch.device("meta"):
        model = CogVideoXTransformer3DModel.from_config(CogVideoXTransformer3DModel.load_config(case.base))
    modules = [name for name, m in model.named_modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    assert len(modules) > 10
    assert [name for name in modules if layout.locate(name) is None] == []


@pytest.mark.parametrize(
    "swapped", [("mod2_video", "mod1_text"), ("k", "v"), ("time1", "time2"), ("mod1_video", "mod2_video")]
)
def test_the_comparison_sees_two_segments_exchanged(swapped: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.resources import files

    import tomli

    from loraforge.names import bijection

    text = (files("loraforge") / "names" / "architectures" / "cogvideox.toml").read_text("utf-8")
    head, _, rest = text.partition("[layouts.sat.modules]")
    sat, _, tail = rest.partition("[layouts.diffusers.modules]")
    one, other = (f'"{name}"' for name in swapped)
    sat = sat.replace(one, "@").replace(other, one).replace("@", other)
    wrong = bijection.parse(
        tomli.loads(f"{head}[layouts.sat.modules]{sat}[layouts.diffusers.modules]{tail}"), "wrong.toml"
    )
    monkeypatch.setattr(f"{__name__}.architecture", lambda _: wrong)
    with pytest.raises(AssertionError):
        test_base_weights_through_the_graph_are_upstreams(Case("sat_5b_r8"))
