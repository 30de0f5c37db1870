"""What load_into loads acts, in a pipeline in any state, or is refused with the pipeline as it was.

Judged by a forward against the same transformer whose weights had the update added in float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import save_file

import loraforge
from loraforge.errors import LoraforgeError
from loraforge.pipeline import set_strength

D, R, SCALE = 64, 4, 0.5
PATHS = tuple(f"transformer_blocks.{i}.attn1.{m}" for i in range(2) for m in ("to_q", "to_k", "to_v", "to_out.0"))
Deltas = dict[str, Any]


def adapter(
    place: Path, seed: int = 1, *, paths: tuple[str, ...] = PATHS, of_a: float = 0.2, of_b: float = 0.2
) -> tuple[Path, Deltas]:
    """A Diffusers file that records nothing (trained at SCALE), and its updates in float64."""
    rng = np.random.default_rng(seed)
    pairs = {
        p: (rng.standard_normal((R, D)).astype("f4") * of_a, rng.standard_normal((D, R)).astype("f4") * of_b)
        for p in paths
    }
    file = place / f"adapter{seed}.safetensors"
    save_file(
        {
            f"transformer.{p}.lora_{k}.weight": t.astype("f4")
            for p, ab in pairs.items()
            for k, t in zip("AB", ab, strict=True)
        },
        file,
    )
    return file, {p: SCALE * b.astype("f8") @ a.astype("f8") for p, (a, b) in pairs.items()}


def model(*updates: Deltas) -> Any:
    torch.manual_seed(0)
    made = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=32, in_channels=16, out_channels=16, time_embed_dim=32,
        text_embed_dim=32, num_layers=2, sample_width=8, sample_height=8, sample_frames=9, max_text_seq_length=8,
    ).eval()  # fmt: skip
    modules: dict[str, Any] = dict(made.named_modules())
    for update in updates:
        for path, delta in update.items():
            modules[path].weight.data += torch.from_numpy(delta).float()
    return made


def pipeline(transformer: Any) -> Any:
    return diffusers.CogVideoXPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=transformer,
        scheduler=diffusers.CogVideoXDDIMScheduler(),
    )  # type: ignore[arg-type]


def forward(transformer: Any, dtype: Any = torch.float32) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    x, text = (torch.randn(*shape, generator=g).to(dtype) for shape in ((1, 3, 16, 8, 8), (1, 8, 32)))
    with torch.no_grad():
        out: torch.Tensor = transformer(
            hidden_states=x, encoder_hidden_states=text, timestep=torch.tensor([500])
        ).sample.double()
    return out


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def _plain(pipe: Any, place: Path) -> None:
    """Nothing before."""


def _compiled(pipe: Any, place: Path) -> None:
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")


def _in_peft(pipe: Any, place: Path) -> None:
    config = LoraConfig(r=2, target_modules=["to_q"])  # B is zero: it adds nothing
    pipe.transformer = get_peft_model(pipe.transformer, config, adapter_name="theirs")


def _fused_qkv(pipe: Any, place: Path) -> None:
    pipe.transformer.fuse_qkv_projections()


def _sequential(pipe: Any, place: Path) -> None:
    accelerate.cpu_offload(pipe.transformer, torch.device("cpu"))


def _to_disk(pipe: Any, place: Path) -> None:
    accelerate.disk_offload(pipe.transformer, str(place / "offload"), torch.device("cpu"))


def _device_map(pipe: Any, place: Path) -> None:
    parts = [name for name, _ in pipe.transformer.named_children() if name != "transformer_blocks"]
    where = dict.fromkeys((*parts, "transformer_blocks.0"), "cpu") | {"transformer_blocks.1": "disk"}
    accelerate.dispatch_model(
        pipe.transformer, where, main_device="cpu", offload_dir=str(place / "map"), force_hooks=True
    )


def _group(pipe: Any, place: Path, **options: Any) -> None:
    pipe.transformer.enable_group_offload(onload_device=torch.device("cpu"), **options)


def _group_leaf(pipe: Any, place: Path) -> None:
    _group(pipe, place, offload_type="leaf_level")


def _group_block(pipe: Any, place: Path) -> None:
    _group(pipe, place, offload_type="block_level", num_blocks_per_group=1)


def _group_disk(pipe: Any, place: Path) -> None:
    _group(pipe, place, offload_type="leaf_level", offload_to_disk_path=str(place / "groups"))


def _group_disk_block(pipe: Any, place: Path) -> None:
    _group(pipe, place, offload_type="block_level", num_blocks_per_group=1, offload_to_disk_path=str(place / "groups"))


def _hook_of_the_users(pipe: Any, place: Path) -> None:
    add_hook_to_module(pipe.transformer, AlignDevicesHook(execution_device="cpu", io_same_device=True))


def _hook_on_a_layer(pipe: Any, place: Path) -> None:
    add_hook_to_module(pipe.transformer.transformer_blocks[0].attn1.to_q, AlignDevicesHook(execution_device="cpu"))


class Packed(torch.nn.Linear):
    """A layer as quantisers make them: packed integers of another shape, and a forward of its own."""

    def __init__(self, plain: torch.nn.Linear) -> None:
        super().__init__(plain.in_features, plain.out_features, device="meta")
        self.real, self.bias = plain.weight.detach(), plain.bias
        self.weight = torch.nn.Parameter(torch.zeros(plain.weight.numel() // 2, 1, dtype=torch.uint8), False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.real, self.bias)


def _packed(pipe: Any, place: Path) -> None:
    for block in pipe.transformer.transformer_blocks:
        block.attn1.to_q, block.attn1.to_out[0] = Packed(block.attn1.to_q), Packed(block.attn1.to_out[0])


STATES: dict[str, Callable[[Any, Path], None]] = {
    name.removeprefix("_"): state
    for name, state in list(globals().items())
    if callable(state) and getattr(state, "__annotations__", {}).get("place") == "Path" and name[:1] == "_"
    and name != "_group"
}  # fmt: skip


@pytest.mark.parametrize("through", ["pipe", "transformer"])
@pytest.mark.parametrize("state", STATES)
def test_it_acts(state: str, through: str, tmp_path: Path) -> None:
    file, delta = adapter(tmp_path)
    second, other = adapter(tmp_path, 2)
    pipe = pipeline(model())
    STATES[state](pipe, tmp_path)
    what = pipe if through == "pipe" else pipe.transformer
    found = loraforge.load_into(what, file, name="a", trained_scale=SCALE)
    assert found.modules == len(PATHS)
    assert off(forward(pipe.transformer), forward(model(delta))) < 1e-6
    assert off(forward(pipe.transformer), forward(model(delta))) < 1e-6  # and again, offloaded once
    loraforge.load_into(what, second, name="b", trained_scale=SCALE)
    assert off(forward(pipe.transformer), forward(model(delta, other))) < 1e-6
    inner = pipe.transformer.get_base_model() if isinstance(pipe.transformer, PeftModel) else pipe.transformer
    for name in ("a", "b"):
        set_strength(inner, name, 0.0)
    assert off(forward(pipe.transformer), forward(model())) < 1e-6


@pytest.mark.parametrize("others", [PATHS, PATHS[:2], ("transformer_blocks.1.ff.net.2",)])
@pytest.mark.parametrize("way", ["disable_lora", "disable_adapters"])
def test_adapters_that_are_switched_off_stay_off(way: str, others: tuple[str, ...], tmp_path: Path) -> None:
    file, delta = adapter(tmp_path)
    if others[0] not in PATHS:
        second = tmp_path / "b.safetensors"
        wide = np.full((R, 4 * D), 0.1, "f4"), np.full((D, R), 0.1, "f4")
        save_file({f"transformer.{others[0]}.lora_{k}.weight": t for k, t in zip("AB", wide, strict=True)}, second)
    else:
        second, _ = adapter(tmp_path, 2, paths=others)
    pipe = pipeline(model())
    loraforge.load_into(pipe, second, name="b", trained_scale=SCALE)
    getattr(pipe.transformer, way)()
    found = loraforge.load_into(pipe, file, name="a", trained_scale=SCALE)
    assert off(forward(pipe.transformer), forward(model(delta))) < 1e-6
    assert any("switched off" in note for note in found.notes)
    pipe.set_adapters(["a", "b"])
    assert off(forward(pipe.transformer), forward(model(delta))) > 1e-4


def test_a_fused_adapter_goes_on_acting(tmp_path: Path) -> None:
    file, delta = adapter(tmp_path)
    second, other = adapter(tmp_path, 2, paths=PATHS[:3])
    pipe = pipeline(model())
    loraforge.load_into(pipe, second, name="b", trained_scale=SCALE)
    pipe.fuse_lora()
    found = loraforge.load_into(pipe, file, name="a", trained_scale=SCALE)
    assert off(forward(pipe.transformer), forward(model(delta, other))) < 1e-6
    assert any("fused" in note for note in found.notes)


def test_float8_layers_are_computed_in_the_type_of_the_rest(tmp_path: Path) -> None:
    file, _ = adapter(tmp_path)
    types = torch.float8_e4m3fn, torch.bfloat16
    pipe, want = pipeline(model().bfloat16()), model().bfloat16()
    pipe.transformer.enable_layerwise_casting(*types)
    base = forward(pipe.transformer, torch.bfloat16)
    found = loraforge.load_into(pipe, file, name="a", trained_scale=SCALE)
    layer = pipe.transformer.get_submodule(PATHS[0])
    assert layer.lora_A["a"].weight.dtype == torch.bfloat16 == layer.lora_B["a"].weight.dtype
    assert layer.base_layer.weight.dtype == torch.float8_e4m3fn
    loraforge.load_into(want, file, name="a", trained_scale=SCALE)
    want.enable_layerwise_casting(*types)
    assert torch.equal(forward(pipe.transformer, torch.bfloat16), forward(want, torch.bfloat16))
    assert off(forward(pipe.transformer, torch.bfloat16), base) > 0.01
    assert any("bfloat16" in note and "off by 0.00" in note for note in found.notes)


def test_no_note_where_no_number_is_rounded(tmp_path: Path) -> None:
    file, _ = adapter(tmp_path)
    assert loraforge.load_into(model(), file, trained_scale=SCALE).notes == loraforge.load_into(
        pipeline(model()), file, trained_scale=SCALE
    ).notes == loraforge.read(file, trained_scale=SCALE).notes  # fmt: skip


def _state_of(transformer: Any) -> dict[str, Any]:
    """All that a refusal must leave alone."""
    named = dict(transformer.named_modules())
    return {
        "modules": {path: id(module) for path, module in named.items()},
        "grads": {name: p.requires_grad for name, p in transformer.named_parameters()},
        "active": {p: (list(m.active_adapters), m.disable_adapters, list(m.merged_adapters))
                   for p, m in named.items() if hasattr(m, "merged_adapters")},
        "adapters": set(getattr(transformer, "peft_config", {})),
        "hooks": {path: id(m._hf_hook) for path, m in named.items() if hasattr(m, "_hf_hook")},
        "processors": {path: type(p) for path, p in transformer.attn_processors.items()},
        "attributes": {k for k in vars(transformer) if "peft" in k},
    }  # fmt: skip


def _loaded_before(pipe: Any, place: Path) -> None:
    loraforge.load_into(pipe, adapter(place, 7)[0], name="old", trained_scale=SCALE)


def _off_before(pipe: Any, place: Path) -> None:
    _loaded_before(pipe, place)
    pipe.disable_lora()


def _fused_before(pipe: Any, place: Path) -> None:
    _loaded_before(pipe, place)
    pipe.fuse_lora()


def _trained_before(pipe: Any, place: Path) -> None:
    pipe.transformer.requires_grad_(True)


BEFORE = {**STATES, "loaded": _loaded_before, "off": _off_before, "fused": _fused_before, "trained": _trained_before}


@pytest.mark.parametrize("when", ["in diffusers", "after it"])
@pytest.mark.parametrize("state", [state for state in BEFORE if state not in ("compiled", "in_peft")])
def test_a_failure_leaves_everything_as_it_was(
    state: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, _ = adapter(tmp_path)
    pipe = pipeline(model())
    BEFORE[state](pipe, tmp_path)
    before, was = forward(pipe.transformer), _state_of(pipe.transformer)

    def broken(*_given: Any, **_options: Any) -> None:
        raise RuntimeError("no accelerator")

    if when == "in diffusers":
        monkeypatch.setattr("peft.set_peft_model_state_dict", broken)
    else:
        monkeypatch.setattr("loraforge.pipeline.set_strength", broken)
    with pytest.raises(LoraforgeError, match=r"RuntimeError: no accelerator.*The pipeline is as it was"):
        loraforge.load_into(pipe, file, name="a", trained_scale=SCALE)
    monkeypatch.undo()
    assert _state_of(pipe.transformer) == was
    assert torch.equal(forward(pipe.transformer), before)
    loraforge.load_into(pipe, file, name="a", trained_scale=SCALE)  # the same name is free


def test_what_was_trained_goes_on_being_trained(tmp_path: Path) -> None:
    pipe = pipeline(model())
    pipe.transformer.requires_grad_(False)
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q"]), adapter_name="mine")
    pipe.transformer.proj_out.requires_grad_(True)
    was = {id(p) for p in pipe.transformer.parameters() if p.requires_grad}
    loraforge.load_into(pipe, adapter(tmp_path)[0], name="a", trained_scale=SCALE)
    assert {id(p) for p in pipe.transformer.parameters() if p.requires_grad} == was


def _meta(pipe: Any) -> None:
    pipe.transformer.to("meta")


def _float8(pipe: Any) -> None:
    pipe.transformer.to(torch.float8_e4m3fn)


def _half(pipe: Any) -> None:
    pipe.transformer.to(torch.float16)


REFUSED: dict[str, tuple[Callable[[Any], None], dict[str, float], str]] = {
    "on meta": (_meta, {}, "are on `meta`"),
    "float8 as it is": (_float8, {}, "float8 without layerwise casting"),
    "too large for half": (_half, {"of_b": 1e6}, "become infinity"),
    "too small for half": (_half, {"of_b": 1e-8}, "changes the update by more than 1%"),
    "half lost in A": (_half, {"of_a": 1e-7}, "changes the update by more than 1%"),
    "NaN": (lambda pipe: None, {"of_a": float("nan")}, "NaN or infinity"),
    "infinity": (lambda pipe: None, {"of_b": float("inf")}, "NaN or infinity"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_could_not_act_is_refused_before_anything_is_touched(case: str, tmp_path: Path) -> None:
    state, sizes, words = REFUSED[case]
    with warnings.catch_warnings(), np.errstate(invalid="ignore"):
        warnings.simplefilter("ignore")
        file, _ = adapter(tmp_path, **sizes)
    pipe = pipeline(model())
    state(pipe)
    was = _state_of(pipe.transformer)
    with pytest.raises(LoraforgeError, match=words):
        loraforge.load_into(pipe, file, trained_scale=SCALE)
    assert _state_of(pipe.transformer) == was


@pytest.mark.parametrize("case", ["too large for half", "too small for half"])
def test_the_remedy_for_a_type_that_is_too_narrow_runs(case: str, tmp_path: Path) -> None:
    state, sizes, _ = REFUSED[case]
    file, delta = adapter(tmp_path, **sizes)
    pipe = pipeline(model())
    state(pipe)
    with pytest.raises(LoraforgeError) as refused:
        loraforge.load_into(pipe, file, trained_scale=SCALE)
    exec(refused.value.remedies[0].command, {"pipe": pipe, "torch": torch})
    found = loraforge.load_into(pipe, file, name="a", trained_scale=SCALE)
    layer = pipe.transformer.get_submodule(PATHS[0])
    held = layer.get_delta_weight(found.name).double().numpy()
    assert np.linalg.norm(held - delta[PATHS[0]]) < 0.01 * np.linalg.norm(delta[PATHS[0]])


@pytest.mark.parametrize("name", ["a.b", "", 3])
def test_names_peft_cannot_have(name: Any, tmp_path: Path) -> None:
    with pytest.raises(LoraforgeError, match="cannot be part of a module's path"):
        loraforge.load_into(model(), adapter(tmp_path)[0], name=name, trained_scale=SCALE)


def test_a_second_one_of_a_name_is_refused_with_a_line_that_runs(tmp_path: Path) -> None:
    pipe, (file, delta) = pipeline(model()), adapter(tmp_path)
    loraforge.load_into(pipe, file, name="a", trained_scale=SCALE)
    with pytest.raises(LoraforgeError, match="there is an adapter a in it already") as refused:
        loraforge.load_into(pipe, file, name="a", trained_scale=SCALE)
    assert off(forward(pipe.transformer), forward(model(delta))) < 1e-6
    exec(refused.value.remedies[0].command, {"pipe": pipe})
    loraforge.load_into(pipe, file, name="a", trained_scale=SCALE)
    assert off(forward(pipe.transformer), forward(model(delta))) < 1e-6


def test_remedies_are_python_that_runs(tmp_path: Path) -> None:
    """A scale that is not recorded: each candidate is a call of load_into, and each of them loads."""
    file, _ = adapter(tmp_path)
    with pytest.raises(LoraforgeError) as refused:
        loraforge.load_into(pipeline(model()), file)
    lines = [remedy.command for remedy in refused.value.remedies]
    assert lines and all(line.startswith("load_into(pipe, ") for line in lines)
    for line in lines:
        if "<" in line or "'N'" in line:
            continue
        exec(line, {"pipe": pipeline(model()), "load_into": loraforge.load_into})


def test_a_pipeline_without_its_transformer() -> None:
    with pytest.raises(LoraforgeError, match="the transformer of CogVideoXPipeline is None"):
        loraforge.load_into(pipeline(None), "a.safetensors")
