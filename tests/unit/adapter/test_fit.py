"""What rounding may cost: the split of A and B that loses least, a ceiling, and nothing called the same beyond it."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.adapter import fit
from loraforge.adapter.adapter import Storage
from loraforge.algebra.folding import fold
from loraforge.algebra.lora import CEILING, LoraWeight
from loraforge.errors import ConversionError

STEM = "transformer_blocks.0.attn1"
RANK, WIDTH = 4, 64
TYPES = {"fp32": np.float32, "bf16": ml_dtypes.bfloat16, "fp16": np.float16, "fp64": np.float64}


def normal(*shape: int, size: float, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * size).astype(dtype)


def folder(place: Path, a: float, b: float, dtype: str = "fp32", scale: float = 1.0, **more: np.ndarray) -> Path:
    """A PEFT folder of to_q, whose numbers are of these sizes, and an ordinary to_k."""
    place.mkdir(parents=True)
    tensors = {}
    for name, sizes in (("to_q", (a, b)), ("to_k", (0.02, 0.01))):
        key, kind = f"base_model.model.{STEM}.{name}", TYPES[dtype]
        tensors[f"{key}.lora_A.weight"] = normal(RANK, WIDTH, size=sizes[0], dtype=kind)
        tensors[f"{key}.lora_B.weight"] = normal(WIDTH, RANK, size=sizes[1], seed=1, dtype=kind)
    tensors |= {f"base_model.model.{STEM}.{key}": value for key, value in more.items()}
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK * scale, "target_modules": ["to_q", "to_k"]}
    dora = any("magnitude" in key for key in more)
    (place / "adapter_config.json").write_text(json.dumps(config | {"use_dora": dora}))
    save_file(tensors, place / "adapter_model.safetensors")
    return place


def apart(w: LoraWeight, other: LoraWeight) -> float:
    """Relative difference of two updates in the Frobenius norm, in float64."""
    want, got = (x.scaling * (x.B.astype(np.float64) @ x.A.astype(np.float64)) for x in (w, other))
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def best_of_all(w: LoraWeight, dtype: Any) -> float:
    """The least that a power of two between A and B can lose, by trying them."""
    found = []
    for power in range(-60, 60):
        with np.errstate(over="ignore", invalid="ignore"):
            A = (w.A.astype(np.float64) * 2.0**power).astype(dtype)
            B = (w.B.astype(np.float64) * w.scaling * 2.0**-power).astype(dtype)
            lost = apart(w, LoraWeight(A, B, 1.0))
        found += [lost] if np.isfinite(lost) else []
    return min(found)


def lopsided(_: str) -> LoraWeight:
    """Components of very different sizes, which no one power of two suits."""
    sizes = 10.0 ** np.arange(-6, 0)
    return LoraWeight(normal(6, 64, size=1) * sizes[:, None], normal(32, 6, size=1, seed=1) * sizes[::-1] * 1e-4, 1.0)


def outlier(_: str) -> LoraWeight:
    """One entry of A that is large, in a component that does nothing: no measure of what may be lost."""
    A, B = normal(4, 64, size=1e-6), normal(32, 4, size=1e-3, seed=1)
    A[0, 0], B[:, 0] = 300.0, 0
    return LoraWeight(A, B, 1.0)


SPLITS: dict[str, Callable[[str], LoraWeight]] = {
    f"A {a:g}, B {b:g}, scale {s:g}": lambda dtype, a=a, b=b, s=s: LoraWeight(
        normal(4, 64, size=a, dtype=TYPES[dtype]), normal(32, 4, size=b, seed=1, dtype=TYPES[dtype]), s
    )
    for a, b, s in [
        (0.02, 1e-7, 1.0), (0.02, 1e-8, 1.0), (1e-7, 0.02, 1.0), (0.02, 1e-3, 1 / 128), (1e4, 1e-9, 0.7),
        (30, 1e-12, 2.0**20), (1e5, 1e-5, -1.0), (0.02, 1e-3, 1 / 96),
    ]
} | {"components of six sizes": lopsided, "an outlier that does nothing": outlier}  # fmt: skip


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp64"])
@pytest.mark.parametrize("make", SPLITS.values(), ids=SPLITS)
def test_float16_takes_the_split_that_loses_least(make: Callable[[str], LoraWeight], dtype: str) -> None:
    w = make(dtype)
    folded, error = fold(w, np.float16, np.float16)
    assert apart(w, folded) <= max(1.5 * best_of_all(w, np.float16), 2.0**-11)
    assert error == pytest.approx(apart(w, folded), rel=0.6, abs=1e-15)
    assert (folded.A.dtype, folded.B.dtype, folded.scaling) == (np.float16, np.float16, 1.0)


@pytest.mark.parametrize(("a", "b"), [(1e-20, 1e20), (1e-39, 1.0), (1.0, 1e-40), (1e30, 1e-44)])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_numbers_below_the_range_of_a_wider_type_are_split_anew(a: float, b: float, dtype: str) -> None:
    w = LoraWeight(normal(4, 64, size=a, dtype=np.float64), normal(32, 4, size=b, seed=1, dtype=np.float64), 0.25)
    folded, error = fold(w, TYPES[dtype], TYPES[dtype])
    assert error < 4e-3
    assert apart(w, folded) < 4e-3


@pytest.mark.parametrize("scaling", [2.0**-120, 2.0**-7, 2.0**90])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_the_usual_split_stays_where_it_is_exact(scaling: float, dtype: str) -> None:
    """So that folding by s and then by 1/s gives the same bits."""
    w = LoraWeight(normal(4, 64, size=0.02, dtype=TYPES[dtype]), normal(32, 4, size=0.01, dtype=TYPES[dtype]), scaling)
    there, error = fold(w, TYPES[dtype], TYPES[dtype])
    back, again = fold(LoraWeight(there.A, there.B, 1 / scaling), TYPES[dtype], TYPES[dtype])
    assert (error, again) == (0.0, 0.0)
    assert np.array_equal(back.A, w.A) and np.array_equal(back.B, w.B)


def test_an_ordinary_adapter_keeps_its_a_and_b() -> None:
    """Nothing is shifted where there is next to nothing to gain."""
    w = LoraWeight(normal(4, 64, size=0.02), normal(32, 4, size=0.01), 1.0)
    folded, _ = fold(w, np.float16, np.float16)
    assert np.array_equal(folded.A, w.A.astype(np.float16)) and np.array_equal(folded.B, w.B.astype(np.float16))


HELD = {"B 1e-6": (0.02, 1e-6), "B 1e-7": (0.02, 1e-7), "B 1e-8": (0.02, 1e-8), "A 1e-8": (1e-8, 0.02)}


@pytest.mark.parametrize("to", ["diffusers", "peft", "sat"])
@pytest.mark.parametrize(("a", "b"), HELD.values(), ids=HELD)
def test_small_numbers_go_into_float16(to: str, a: float, b: float, tmp_path: Path, cli) -> None:
    source = folder(tmp_path / "a", a, b)
    words = ["--lora-only"] if to == "sat" else []
    done = cli("convert", source, "--to", to, "--dtype", "fp16", "-o", tmp_path / "out", *words)
    assert done.exit_code == 0, done.output
    share = float(re.search(r"at worst (\S+) of the update", done.stdout)[1])  # type: ignore[index]
    assert share < 3e-3
    assert cli("verify", source, tmp_path / "out").exit_code == 0


LOST: dict[str, dict[str, Any]] = {
    "B 1e-11": {"a": 0.02, "b": 1e-11},
    "A and B 1e-8": {"a": 1e-8, "b": 1e-8},
    "a scale of 1e-9": {"a": 0.02, "b": 0.01, "scale": 1e-9},
    "B 1e-40": {"a": 0.02, "b": 1e-40},
    "A and B 1e5": {"a": 1e5, "b": 1e5},
    "a scale of 1e15": {"a": 0.02, "b": 0.01, "scale": 1e15},
    "bfloat16, B 1e-11": {"a": 0.02, "b": 1e-11, "dtype": "bf16"},
    "a length of 1e5": {"a": 0.02, "b": 0.01, "to_q.lora_magnitude_vector": np.full(WIDTH, 1e5, np.float32),
                        "to_k.lora_magnitude_vector": np.ones(WIDTH, np.float32)},
    "a length of 1e-8": {"a": 0.02, "b": 0.01, "to_q.lora_magnitude_vector": np.full(WIDTH, 1.1e-8, np.float32),
                         "to_k.lora_magnitude_vector": np.ones(WIDTH, np.float32)},
}  # fmt: skip


@pytest.mark.parametrize("dry", [True, False], ids=["dry run", "for good"])
@pytest.mark.parametrize("made", LOST.values(), ids=LOST)
def test_what_float16_cannot_hold_is_refused(made: dict[str, Any], dry: bool, tmp_path: Path, cli) -> None:
    source, out = folder(tmp_path / "a", **made), tmp_path / "out"
    words = ["convert", source, "--to", "diffusers", "--dtype", "fp16", "-o", out]
    refused = cli(*words, *(["--dry-run"] if dry else []))
    assert refused.exit_code == 1, refused.output
    assert f"{STEM}.to_q" in refused.stderr and "float16" in refused.stderr
    assert ("to_k" in refused.stderr) == ("scale" in made)  # of one module alone, unless the scale is what is too much
    large = any(np.max(value) > 1e4 for key, value in made.items() if key != "dtype")
    assert ("overflow" in refused.stderr) == large
    assert not out.exists()
    lines = re.findall(r"try: loraforge (.*?)(?:   #|$)", refused.stderr, re.MULTILINE)
    assert any("--dtype fp32" in line for line in lines)
    for n, line in enumerate(lines):
        tried = cli(*shlex.split(line.replace(str(out), f"{out}{n}")))
        assert tried.exit_code == 0, (line, tried.output)
        if not dry:
            assert loraforge.verify(source, f"{out}{n}").same


def test_the_scale_of_the_target_counts(tmp_path: Path) -> None:
    """SAT multiplies by lora_alpha / rank, so that much must be taken out of the numbers first."""
    source = folder(tmp_path / "a", 0.02, 0.01)
    with pytest.raises(ConversionError, match="rounding takes more than 1% of the update") as refusal:
        loraforge.convert(source, to="sat", out=tmp_path / "out", lora_only=True, target_alpha=1e9, dtype="fp16")
    assert [remedy.command for remedy in refusal.value.remedies] == ["--dtype fp32", "--dtype bf16"]
    loraforge.convert(source, to="sat", out=tmp_path / "out", lora_only=True, target_alpha=1e3, dtype="fp16")
    assert loraforge.verify(source, tmp_path / "out").same


def test_a_type_that_holds_it_is_the_only_one_proposed(tmp_path: Path) -> None:
    """float64 numbers beyond float32: no --dtype helps, and none is named."""
    source = folder(tmp_path / "a", 1e45, 1e40, "fp64")
    with pytest.raises(ConversionError, match="No other --dtype holds them") as refusal:
        loraforge.convert(source, to="peft", out=tmp_path / "out", dtype="fp32")
    assert not refusal.value.remedies


def stored(place: Path, change: Callable[[dict[str, np.ndarray]], None], dtype: Any, source: Path) -> Path:
    """The same adapter as another tool would write it: `astype`, then what `change` does to it."""
    place.mkdir()
    tensors = load_file(source / "adapter_model.safetensors")
    change(tensors)
    save_file({key: value.astype(dtype) for key, value in tensors.items()}, place / "adapter_model.safetensors")
    (place / "adapter_config.json").write_text((source / "adapter_config.json").read_text())
    return place


def as_they_are(_: dict[str, np.ndarray]) -> None:
    pass


def times(factor: float, ending: str = "to_q.lora_B.weight") -> Callable[[dict[str, np.ndarray]], None]:
    def change(tensors: dict[str, np.ndarray]) -> None:
        for key in tensors:
            tensors[key] = tensors[key] * np.float32(factor) if key.endswith(ending) else tensors[key]

    return change


SWALLOWED: dict[str, tuple[dict[str, Any], Callable[[dict[str, np.ndarray]], None], Any]] = {
    "B of 1e-8, all lost": ({"a": 0.02, "b": 1e-8}, as_they_are, np.float16),
    "B of 1e-7, a sixth lost": ({"a": 0.02, "b": 1e-7}, as_they_are, np.float16),
    "B of 1e-6, 1.8 % lost": ({"a": 0.02, "b": 1e-6}, as_they_are, np.float16),
    "A of 1e-7": ({"a": 1e-7, "b": 0.01}, as_they_are, np.float16),
    "zeros at a scale of 1e6": ({"a": 0.02, "b": 2e-8, "scale": 1e6}, times(0), np.float16),
    "a tiny update against none": ({"a": 0.02, "b": 1e-30}, times(0), np.float32),
    "two per cent more in bfloat16": ({"a": 0.02, "b": 0.01, "dtype": "bf16"}, times(1.02), ml_dtypes.bfloat16),
}


@pytest.mark.parametrize("swap", [False, True], ids=["", "the other way round"])
@pytest.mark.parametrize(("made", "change", "dtype"), SWALLOWED.values(), ids=SWALLOWED)
def test_verify_calls_more_than_the_ceiling_different(made, change, dtype, swap: bool, tmp_path: Path, cli) -> None:
    source = folder(tmp_path / "a", **made)
    pair = [source, stored(tmp_path / "b", change, dtype, source)]
    found = cli("verify", *(pair[::-1] if swap else pair))
    assert found.exit_code == 1, found.output
    assert "different: 1 of 2 segments" in found.stdout and "same" not in found.stdout.replace("the same adapter", "")


@pytest.mark.parametrize("b", [1e-4, 1e-5, 1e-2])
def test_verify_accepts_what_rounding_does(b: float, tmp_path: Path) -> None:
    source = folder(tmp_path / "a", 0.02, b)
    for n, dtype in enumerate((np.float16, ml_dtypes.bfloat16)):
        assert loraforge.verify(source, stored(tmp_path / str(n), as_they_are, dtype, source)).same


@pytest.mark.parametrize("b", [1e-7, 3e-7, 1e-6])
def test_doctor_does_not_answer_for_what_float16_may_have_lost(b: float, tmp_path: Path, cli) -> None:
    source = folder(tmp_path / "a", 0.02, b)
    found = cli("doctor", stored(tmp_path / "b", as_they_are, np.float16, source))
    assert found.exit_code == 1 and "acts as trained" not in found.output
    assert f"cannot tell (float16 is too coarse for it): {STEM}.to_q" in found.stdout
    loraforge.convert(source, to="peft", out=tmp_path / "c", dtype="fp16")
    assert loraforge.doctor(tmp_path / "c", architecture="cogvideox").verdict == "acts as trained"


def test_the_ceiling_lies_above_what_the_coarsest_type_costs() -> None:
    w = LoraWeight(normal(4, 64, size=0.02), normal(32, 4, size=0.01, seed=1), 1.0)
    folded, error = fold(w, ml_dtypes.bfloat16, ml_dtypes.bfloat16)
    assert apart(w, folded) < error * 2 < CEILING


@pytest.mark.parametrize("scales", [(0.3, 0.7), (1e-9, 1.0), (0.5, 2.0)])
def test_pairs_of_several_scales_that_merge_tell_what_that_cost(scales: tuple[float, float]) -> None:
    """One place per module can have one scale: each pair is folded first, into the type of the result."""
    blocks = tuple(LoraWeight(normal(4, 64, size=0.02), normal(32, 4, size=0.01, seed=1), s) for s in scales)
    policy = fit.Policy(1.0, "F16")
    (plan,) = fit.plan({"qkv": (blocks, ("q", "k"))}, Storage(), policy, lambda _: ("q", "k"), "x", {"q": 4, "k": 4})
    (delta,), step = fit.carry_out(plan)
    worst = max(apart(w, LoraWeight(delta.A, delta.B[32 * n : 32 * (n + 1)], 1.0)) for n, w in enumerate(blocks))
    assert step.kind == "rounded" and step.error == pytest.approx(worst, rel=0.6)
    assert bool(fit.too_lossy([step])) == (min(scales) < 1e-6)
