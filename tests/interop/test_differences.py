"""Whole differences (`.diff`, `.diff_b`, the bias of a lora_B), by the rules of ComfyUI and PEFT."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.carry import carry
from helpers.tiny import State, Tiny
from helpers.tolerance import FORWARD, WEIGHT, off_by
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.adapter.differences import Whole
from loraforge.errors import ConversionError, FormatError, LoraforgeError, VerificationError

WAN = Tiny("wan", 0)
RNG = np.random.default_rng(11)
LORA = ["blocks.{}.self_attn.q", "blocks.{}.cross_attn.o", "blocks.{}.ffn.0"]
BIASES = [*LORA, "blocks.{}.norm3"]


def original(tiny: Tiny) -> State:
    return carry(tiny.state, tiny.arch, "diffusers", "original", [tiny.variant])[0]


def numbers(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.1).astype(np.float32)


def lightx2v(base: State, *, tables: bool = True, norms: bool = True, alpha: float = 2.0) -> State:
    """An adapter as lightx2v and FusionX release them for Wan: pairs, biases, norms, a matrix, tables."""
    out, start = State(), "diffusion_model."
    for n in range(3):
        for path in (word.format(n) for word in LORA):
            rows, inputs = base[f"{path}.weight"].shape
            out |= {f"{start}{path}.lora_down.weight": numbers(4, inputs)}
            out |= {
                f"{start}{path}.lora_up.weight": numbers(rows, 4),
                f"{start}{path}.alpha": np.array(alpha, np.float32),
            }
        for path in (word.format(n) for word in BIASES if norms or "norm" not in word):
            out[f"{start}{path}.diff_b"] = numbers(*base[f"{path}.bias"].shape)
        for path in ("norm3", "self_attn.norm_q") if norms else ():
            out[f"{start}blocks.{n}.{path}.diff"] = numbers(*base[f"blocks.{n}.{path}.weight"].shape)
        if tables:
            out[f"{start}blocks.{n}.modulation.diff"] = numbers(*base[f"blocks.{n}.modulation"].shape)
    out[f"{start}patch_embedding.diff"] = numbers(*base["patch_embedding.weight"].shape)
    out[f"{start}head.head.diff"] = numbers(*base["head.head.weight"].shape)
    return out


def by_comfyui(base: State, adapter: State) -> State:
    """ComfyUI's rule (comfy/lora.py load_lora, comfy/weight_adapter/lora.py), in float64."""
    out = {key: array.astype(np.float64) for key, array in base.items()}
    for parameter in base:
        x = f"diffusion_model.{parameter.removesuffix('.weight')}"
        if f"{x}.lora_up.weight" in adapter:
            up, down = (adapter[f"{x}.lora_{word}.weight"].astype(np.float64) for word in ("up", "down"))
            product = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
            out[parameter] += (adapter[f"{x}.alpha"] / len(down) * product).reshape(base[parameter].shape)
        if f"{x}.diff" in adapter:
            out[parameter] += adapter[f"{x}.diff"]
        if f"{x}.diff_b" in adapter:
            out[f"{parameter.removesuffix('.weight')}.bias"] += adapter[f"{x}.diff_b"]
    return out


@pytest.fixture
def wan(tmp_path: Path) -> tuple[Path, State, Path]:
    """An adapter's file, its tensors, and a folder with its base in the original names."""
    base = original(WAN)
    adapter = lightx2v(base)
    save_file(adapter, tmp_path / "x.safetensors")
    save_file(base, tmp_path / "base.safetensors")
    return tmp_path / "x.safetensors", adapter, tmp_path / "base.safetensors"


def same(have: State, want: State) -> None:
    assert have.keys() == want.keys()
    assert {key: off for key, array in want.items() if (off := abs(have[key] - array).max()) > WEIGHT * 10} == {}


def converted(source: Path, to: str, out: Path, **options: Any) -> Path:
    options = {"architecture": "wan", "out": out} | options
    return Path(loraforge.convert(source, to, **options).output["path"])


@pytest.mark.parametrize("way", [[], ["comfyui"], ["original"], ["original", "comfyui", "original"]], ids="-".join)
def test_fused_it_is_what_comfyui_makes_of_the_source(
    way: list[str], wan: tuple[Path, State, Path], tmp_path: Path
) -> None:
    source, adapter, base = wan
    want, file = by_comfyui(load_file(base), adapter), source
    for n, to in enumerate(way):
        file = converted(file, to, tmp_path / f"{n}")
    loraforge.fuse(base, [file], tmp_path / "fused.safetensors", architecture="wan")
    same(load_file(tmp_path / "fused.safetensors"), want)


def test_there_and_back_no_bit_is_lost(wan: tuple[Path, State, Path], tmp_path: Path) -> None:
    source, adapter, _ = wan
    there = converted(source, "original", tmp_path / "there")
    kept = load_file(there)
    assert {key for key in kept if key.endswith(".diff_m")} == {f"blocks.{n}.diff_m" for n in range(3)}
    back = load_file(converted(there, "comfyui", tmp_path / "back"))
    whole = {key for key in adapter if "lora_" not in key and "alpha" not in key}
    matrices = {"diffusion_model.patch_embedding.diff", "diffusion_model.head.head.diff"}
    assert {key for key in back if "diff" in key.rpartition(".")[2]} == whole - matrices
    for key in whole - matrices:
        assert back[key].tobytes() == adapter[key].tobytes() and back[key].shape == adapter[key].shape
    assert loraforge.verify(source, there, architecture="wan").same


def test_biases_go_to_diffusers_and_come_back(tmp_path: Path) -> None:
    base = original(WAN)
    adapter = lightx2v(base, tables=False, norms=False)
    save_file(adapter, tmp_path / "x.safetensors")
    there = converted(tmp_path / "x.safetensors", "diffusers", tmp_path / "there")
    back = load_file(converted(there, "comfyui", tmp_path / "back"))
    for key in (key for key in adapter if key.endswith(".diff_b")):
        assert back[key].tobytes() == adapter[key].tobytes()
    assert loraforge.verify(tmp_path / "x.safetensors", tmp_path / "back", architecture="wan").same


@pytest.mark.parametrize(("to", "options"), [("diffusers", {}), ("diffusers", {"scale_in": "metadata"}), ("peft", {})])
@pytest.mark.parametrize("alpha", [2.0, 3.0])
def test_in_the_real_loader_it_computes_what_comfyui_would(
    to: str, options: dict[str, Any], alpha: float, tmp_path: Path
) -> None:
    from peft import PeftModel

    base = original(WAN)
    adapter = lightx2v(base, tables=False, norms=False, alpha=alpha)
    save_file(adapter, tmp_path / "x.safetensors")
    file = converted(tmp_path / "x.safetensors", to, tmp_path / "out", **options)
    want, have = WAN.model().eval(), WAN.model().eval()
    have.load_state_dict({key: torch.from_numpy(array) for key, array in WAN.state.items()})
    fused = carry(by_comfyui(base, adapter), WAN.arch, "original", "diffusers", [WAN.variant])[0]
    want.load_state_dict({key: torch.from_numpy(array.astype(np.float32)) for key, array in fused.items()})
    plain = output(have)
    if to == "peft":
        have = PeftModel.from_pretrained(have, str(file.parent))
    else:
        from diffusers import WanPipeline

        state, metadata = WanPipeline.lora_state_dict(str(file.parent), return_lora_metadata=True)
        WanPipeline.load_lora_into_transformer(state, transformer=have, metadata=metadata)
    size = float(output(want).abs().max())
    assert off_by(output(want), plain) > 0.01 * size
    assert off_by(output(want), output(have)) <= FORWARD * max(1.0, size)
    assert loraforge.verify(file if to == "diffusers" else file.parent, in_=to, architecture="wan").same


def output(model: Any) -> torch.Tensor:
    torch.manual_seed(3)
    x, text = torch.randn(1, 16, 2, 4, 4), torch.randn(1, 5, WAN.config["text_dim"])
    with torch.no_grad():
        return model(x, torch.tensor([7]), text, return_dict=False)[0]


def test_the_bias_of_a_fused_module_is_cut_and_joined(tmp_path: Path) -> None:
    flux = Tiny("flux", 0)
    base, d = original(flux), 48
    path, adapter = "double_blocks.0.img_attn.qkv", State()
    start = f"diffusion_model.{path}"
    adapter |= {f"{start}.lora_down.weight": numbers(3, d), f"{start}.lora_up.weight": numbers(3 * d, 3)}
    adapter |= {f"{start}.alpha": np.array(3, np.float32), f"{start}.diff_b": numbers(3 * d)}
    save_file(adapter, tmp_path / "x.safetensors")
    there = converted(tmp_path / "x.safetensors", "diffusers", tmp_path / "there", architecture="flux")
    parts = load_file(there)
    bias = [parts[f"transformer.transformer_blocks.0.attn.to_{m}.lora_B.bias"] for m in "qkv"]
    assert np.concatenate(bias).tobytes() == adapter[f"{start}.diff_b"].tobytes()
    back = load_file(converted(there, "comfyui", tmp_path / "back", architecture="flux"))
    assert back[f"{start}.diff_b"].tobytes() == adapter[f"{start}.diff_b"].tobytes()
    fused = by_comfyui(base, adapter)[f"{path}.bias"]
    save_file(base, tmp_path / "base.safetensors")
    loraforge.fuse(tmp_path / "base.safetensors", [there], tmp_path / "f.safetensors", architecture="flux")
    assert abs(load_file(tmp_path / "f.safetensors")[f"{path}.bias"] - fused).max() <= 10 * WEIGHT


@pytest.mark.parametrize("to", ["diffusers", "peft", "kohya", "musubi"])
def test_what_the_target_cannot_hold_is_named_and_can_be_left_out(
    to: str, wan: tuple[Path, State, Path], tmp_path: Path, cli: Any
) -> None:
    source, adapter, base = wan
    words = ["convert", source, "--to", to, "-o", tmp_path / "out", "--architecture", "wan"]
    refused = cli(*words)
    assert refused.exit_code == 1 and "blocks.0.norm3.weight" in refused.stderr and not (tmp_path / "out").exists()
    line = next(line for line in refused.stderr.splitlines() if "--drop" in line)
    done = cli(*shlex.split(line.split("try: ")[1], comments=True)[1:])
    assert done.exit_code == 0, done.stderr
    file = next((tmp_path / "out").glob("*.safetensors"))
    loraforge.fuse(base, [file if to != "peft" else file.parent], tmp_path / "f.safetensors", architecture="wan")
    held = {key: a for key, a in adapter.items() if to in ("diffusers", "peft") or not key.endswith(".diff_b")}
    pair = ("patch_embedding.diff", "head.head.diff")
    gone = {key for key in held if key.endswith(".diff") and (to in ("kohya", "musubi") or not key.endswith(pair))}
    gone |= {key for key in held if "norm3.diff_b" in key}
    same(load_file(tmp_path / "f.safetensors"), by_comfyui(load_file(base), {k: held[k] for k in held.keys() - gone}))


FAULTS: dict[str, tuple[str, Any, str]] = {
    "beside a LoRA": ("blocks.0.ffn.0.diff", (100, 128), "beside a LoRA of blocks.0.ffn.0"),
    "of other rows": ("blocks.0.ffn.0.diff_b", (99,), "has 99 rows"),
    "of other dimensions": ("blocks.0.norm3.diff", (128, 2), "no difference of that parameter"),
    "twice": ("blocks.0.norm3.w_norm", (128,), "both change weight of blocks.0.norm3"),
    "of no parameter": ("blocks.0.norm9.diff", (128,), "no LoRA key"),
    "a weight that is set": ("blocks.0.norm3.set_weight", (128,), "replaces the base model's"),
    "a bias where there is none": ("blocks.0.self_attn.norm_q.diff_b", (128,), "bias difference"),
    "a LoRA's bias without the LoRA": ("blocks.0.self_attn.k.lora_B.bias", (128,), "without the LoRA"),
}


@pytest.mark.parametrize(("key", "shape", "said"), FAULTS.values(), ids=FAULTS)
def test_what_is_not_understood_is_refused(
    key: str, shape: tuple[int, ...], said: str, wan: tuple[Path, State, Path]
) -> None:
    source, adapter, _ = wan
    save_file(adapter | {f"diffusion_model.{key}": numbers(*shape)}, source)
    with pytest.raises(FormatError, match=said) as refused:
        loraforge.read(source, architecture="wan")
    words = [str(word) for remedy in refused.value.remedies for word in remedy.options]
    assert words
    drop = [word for word in words if word != "--drop"]
    assert loraforge.read(source, architecture="wan", drop=drop).modules


def test_a_bias_without_a_lora_is_named(wan: tuple[Path, State, Path], tmp_path: Path) -> None:
    source, adapter, _ = wan
    kept = {key: array for key, array in adapter.items() if not key.endswith(".diff")}
    save_file(kept, source)
    with pytest.raises(ConversionError, match=r"blocks\.0\.norm3\.bias.*biases of modules with a LoRA"):
        converted(source, "diffusers", tmp_path / "out")


def test_zeros_are_left_out_and_counted(wan: tuple[Path, State, Path], tmp_path: Path) -> None:
    source, adapter, _ = wan
    zero = {k: np.zeros_like(a) if "norm" in k or "modulation" in k else a for k, a in adapter.items()}
    save_file(zero, source)
    report = loraforge.convert(source, "diffusers", out=tmp_path / "out", architecture="wan")
    assert any("12 whole differences are zero" in note for note in report.notes)
    assert "9 whole differences (bias 9)" in report.lines()[1]


def test_the_proof_sees_a_wrong_difference(
    wan: tuple[Path, State, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = Whole.stored

    def wrong(self: Whole, dtype: str | None) -> Any:
        stored, step = true(self, dtype)
        return (stored * np.float32(1.01) if self.key == "blocks.1.norm3.weight" else stored), step

    monkeypatch.setattr(Whole, "stored", wrong)
    with pytest.raises(VerificationError, match=r"blocks\.1\.norm3\.weight"):
        converted(wan[0], "original", tmp_path / "out")


def test_verify_tells_which_parameter_differs(wan: tuple[Path, State, Path], tmp_path: Path) -> None:
    source, adapter, _ = wan
    save_file({key: a for key, a in adapter.items() if "blocks.1.norm3.diff_b" not in key}, tmp_path / "y.safetensors")
    told = loraforge.verify(source, tmp_path / "y.safetensors", architecture="wan")
    assert not told.same and told.only_in_a == ("blocks.1.norm3.bias",)
    off = {key: a * np.float32(2) if "blocks.1.norm3.diff_b" in key else a for key, a in adapter.items()}
    save_file(off, tmp_path / "z.safetensors")
    told = loraforge.verify(source, tmp_path / "z.safetensors", architecture="wan")
    assert [s.module for s in told.segments if s.rows_off] == ["blocks.1.norm3.bias"]


def test_inspect_counts_them(wan: tuple[Path, State, Path], cli: Any) -> None:
    shown = cli("inspect", wan[0], "--architecture", "wan")
    assert "21 whole differences (bias 12, modulation 3, weight 6)" in shown.stdout


def test_a_live_transformer_refuses_them_by_name(wan: tuple[Path, State, Path]) -> None:
    with pytest.raises(LoraforgeError, match=r"blocks\.0\.norm3\.weight") as refused:
        loraforge.load_into(WAN.model(), wan[0], architecture="wan")
    assert any("drop=" in str(remedy) for remedy in refused.value.remedies)
    drop = ["*.bias", "*.norm?.weight", "*norm_q.weight", "*.modulation"]
    assert loraforge.load_into(WAN.model(), wan[0], architecture="wan", drop=drop).modules == 11


def respelled(adapter: State, start: str, sep: str) -> State:
    out = State()
    for key, array in adapter.items():
        end = next(
            end for end in (".lora_down.weight", ".lora_up.weight", ".alpha", ".diff_b", ".diff") if key.endswith(end)
        )
        out[start + key.removeprefix("diffusion_model.").removesuffix(end).replace(".", sep) + end] = array
    return out


@pytest.mark.parametrize(("start", "sep"), [("lora_unet_", "_"), ("lora_unet__", "_"), ("unet.", ".")])
def test_in_every_spelling_they_are_read_alike(
    start: str, sep: str, wan: tuple[Path, State, Path], tmp_path: Path
) -> None:
    adapter = {key: array for key, array in wan[1].items() if "modulation" not in key}
    save_file(adapter, tmp_path / "a.safetensors")
    save_file(respelled(adapter, start, sep), tmp_path / "b.safetensors")
    told = loraforge.verify(tmp_path / "a.safetensors", tmp_path / "b.safetensors", architecture="wan")
    assert told.same and sum(s.module.endswith((".bias", "norm3.weight")) for s in told.segments) == 15


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_the_element_type_is_kept_or_stated(kind: Any, wan: tuple[Path, State, Path], tmp_path: Path) -> None:
    save_file({key: array.astype(kind) for key, array in wan[1].items()}, wan[0])
    there = load_file(converted(wan[0], "original", tmp_path / "there"))
    assert {array.dtype for key, array in there.items() if ".diff" in key} == {np.dtype(kind)}
    report = loraforge.convert(wan[0], "original", out=tmp_path / "half", architecture="wan", dtype="fp16")
    steps = [step for step in report.steps if step.rank == (0, 0)]
    assert {step.kind for step in steps} == {"exact" if kind is np.float16 else "rounded"} and len(steps) == 21


COGVIDEOX = "transformer.transformer_blocks.0.attn1.to_q"


def biased() -> State:
    a, b = numbers(2, 64), numbers(64, 2)
    return {f"{COGVIDEOX}.lora_A.weight": a, f"{COGVIDEOX}.lora_B.weight": b, f"{COGVIDEOX}.lora_B.bias": numbers(64)}


def test_doctor_names_the_programs_that_leave_them_out(tmp_path: Path) -> None:
    save_file(biased(), tmp_path / "x.safetensors")
    stated: dict[str, Any] = {"architecture": "cogvideox", "trained_scale": 1.0}
    assert loraforge.doctor(tmp_path / "x.safetensors", runtime_="diffusers", **stated).healthy
    told = loraforge.doctor(tmp_path / "x.safetensors", **stated)
    rows = {row.runtime: row for row in told.outlooks}
    assert rows["diffusers-0.31"].raises.endswith("lora_B.bias") and not rows["diffusers"].run
    assert "1 whole differences" in " ".join(told.lines())
    names = {key.replace(COGVIDEOX, "diffusion_model.blocks.0.q"): array for key, array in biased().items()}
    save_file(names, tmp_path / "y.safetensors")
    told = loraforge.doctor(tmp_path / "y.safetensors", runtime_="comfyui", **stated)
    assert not told.healthy and told.outlooks[0].otherwise.startswith("without 1 whole differences")


def test_stamp_says_that_there_are_biases(tmp_path: Path) -> None:
    save_file(biased(), tmp_path / "x.safetensors")
    loraforge.stamp(tmp_path / "x.safetensors", 1.0, out=tmp_path / "s.safetensors", architecture="cogvideox")
    adapter = loraforge.read(tmp_path / "s.safetensors", architecture="cogvideox")
    assert adapter.differences.keys() == {"transformer_blocks.0.attn1.to_q.bias"}
    assert [w.scaling for delta in adapter.updates.values() for w in delta] == [0.5, 0.5]
    assert loraforge.verify(tmp_path / "s.safetensors", in_="diffusers", architecture="cogvideox").same


def test_an_adapter_made_in_python_has_them_too(wan: tuple[Path, State, Path], tmp_path: Path) -> None:
    adapter = loraforge.read(wan[0], architecture="wan")
    made = loraforge.Adapter(adapter.architecture, adapter.layout, adapter.modules, adapter.scale, adapter.differences)
    loraforge.write(made, "comfyui", tmp_path / "out")
    assert loraforge.verify(wan[0], tmp_path / "out", architecture="wan").same
