"""Healthy containers, unhealthy adapters: each fault is refused, and the message names the tensor or its module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hostile.builders import (
    DENSE,
    HIDDEN,
    QKV,
    RANK,
    TO_Q,
    diffusers_lora,
    factors,
    numbers,
    safetensors,
    sat,
    sat_lora,
)
from hostile.pickles import call, named

ADALN = "model.diffusion_model.mixins.adaln_layer.adaLN_modulations.0.1"
Tensors = dict[str, Any]


def less(*keys: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if key not in keys}


def changed(*pairs: tuple[str, Any]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | dict(pairs)


def holed(value: float, dtype: str = "float32") -> np.ndarray:
    """One entry that is no number, far from the corners."""
    factor = numbers(HIDDEN, RANK, dtype=dtype)
    factor[5, 2] = value
    return factor


BOTH = {
    "A without B": (lambda a, b: less(b), "has no B"),
    "B without A": (lambda a, b: less(a), "has no A"),
    "ranks of A and B unlike": (lambda a, b: changed((a, numbers(RANK + 1, HIDDEN))), "rank"),
    "rank 0": (lambda a, b: changed((a, numbers(0, HIDDEN)), (b, numbers(HIDDEN, 0))), "shape"),
    "A of rank 0": (lambda a, b: changed((a, numbers(0, HIDDEN))), "shape"),
    "no rows": (lambda a, b: changed((b, numbers(0, RANK))), "shape"),
    "no columns": (lambda a, b: changed((a, numbers(RANK, 0))), "shape"),
    "shape (0,)": (lambda a, b: changed((a, numbers(0)), (b, numbers(0))), "shape"),
    "one dimension": (lambda a, b: changed((a, numbers(HIDDEN))), "shape"),
    "three dimensions": (lambda a, b: changed((a, numbers(1, RANK, HIDDEN))), "shape"),
    "no dimension": (lambda a, b: changed((a, numbers())), "shape"),
    "whole numbers": (lambda a, b: changed((a, numbers(RANK, HIDDEN, dtype="int64"))), "I64"),
    "NaN": (lambda a, b: changed((b, holed(np.nan))), "NaN"),
    "infinity": (lambda a, b: changed((b, holed(np.inf))), "infinity"),
    "minus infinity": (lambda a, b: changed((b, holed(-np.inf))), "infinity"),
    "NaN in float16": (lambda a, b: changed((b, holed(np.nan, "float16"))), "NaN"),
    "infinity in float16": (lambda a, b: changed((b, holed(np.inf, "float16"))), "infinity"),
    "NaN in float64": (lambda a, b: changed((b, holed(np.nan, "float64"))), "NaN"),
    "NaN in all of A": (lambda a, b: changed((a, np.full((RANK, HIDDEN), np.nan, "float32"))), "NaN"),
}


@pytest.mark.parametrize(("fault", "fragment"), BOTH.values(), ids=BOTH)
def test_a_sat_pair(tmp_path: Path, refused, fault: Any, fragment: str):
    for module, part in ((DENSE, 0), (QKV, 0), (QKV, 2)):
        keys = f"{module}.matrix_A.{part}", f"{module}.matrix_B.{part}"
        (tmp_path / "x.pt").write_bytes(sat(fault(*keys)(sat_lora())))
        refused(tmp_path / "x.pt", fragment, module.removeprefix("model.diffusion_model."))


@pytest.mark.parametrize(("fault", "fragment"), BOTH.values(), ids=BOTH)
def test_a_diffusers_pair(tmp_path: Path, refused, fault: Any, fragment: str):
    tensors = fault(f"{TO_Q}.lora_A.weight", f"{TO_Q}.lora_B.weight")(diffusers_lora())
    tensors |= {key.replace("to_q", "to_k"): value for key, value in diffusers_lora().items()}
    (tmp_path / "x.safetensors").write_bytes(safetensors(tensors))
    refused([tmp_path / "x.safetensors", "--as-loaded"], fragment, TO_Q.removeprefix("transformer."))


A, B = factors()
SAT = {
    "no q": (less(f"{QKV}.matrix_A.0", f"{QKV}.matrix_B.0"), "query_key_value"),
    "no v": (less(f"{QKV}.matrix_A.2", f"{QKV}.matrix_B.2"), "query_key_value"),
    "only A of v": (less(f"{QKV}.matrix_B.2"), "query_key_value"),
    "a fourth part": (changed((f"{QKV}.matrix_A.3", A), (f"{QKV}.matrix_B.3", B)), "query_key_value"),
    "a second part of dense": (changed((f"{DENSE}.matrix_A.1", A), (f"{DENSE}.matrix_B.1", B)), "attention.dense"),
    "part 7 for part 2": (
        lambda tensors: {key.replace("A.2", "A.7").replace("B.2", "B.7"): value for key, value in tensors.items()},
        "query_key_value",
    ),
    "part 00": (changed((f"{QKV}.matrix_A.00", A)), "matrix_A.00"),
    "part -1": (changed((f"{QKV}.matrix_A.-1", A)), "matrix_A.-1"),
    "part 10**30": (changed((f"{QKV}.matrix_A.{10**30}", A)), "matrix_A.1000"),
    "no part number": (changed((f"{QKV}.matrix_A", A)), "matrix_A"),
    "heights of q, k, v unlike": (changed((f"{QKV}.matrix_B.1", numbers(HIDDEN // 2, RANK))), "rows"),
    "heights that add up all the same": (
        changed((f"{QKV}.matrix_B.0", numbers(HIDDEN + 1, RANK)), (f"{QKV}.matrix_B.1", numbers(HIDDEN - 1, RANK))),
        "rows",
    ),
    "ranks of q, k, v unlike": (
        changed((f"{QKV}.matrix_A.1", numbers(2, HIDDEN)), (f"{QKV}.matrix_B.1", numbers(HIDDEN, 2))),
        "rank",
    ),
    "widths of q, k, v unlike": (changed((f"{QKV}.matrix_A.1", numbers(RANK, HIDDEN * 2))), "query_key_value"),
    "a module the layout has not": (
        changed((f"{DENSE}2.matrix_A.0", A), (f"{DENSE}2.matrix_B.0", B)),
        "attention.dense2",
    ),
    "a block that is no number": (changed((f"{DENSE.replace('.0.', '.x.')}.matrix_A.0", A)), "layers.x"),
    "block -1": (changed((f"{DENSE.replace('.0.', '.-1.')}.matrix_A.0", A)), "layers.-1"),
    "block 00": (changed((f"{DENSE.replace('.0.', '.00.')}.matrix_A.0", A)), "layers.00"),
    "block 10**30": (changed((f"{DENSE.replace('.0.', f'.{10**30}.')}.matrix_A.0", A)), "layers.1000"),
    "a LoRA of SAT's first kind": (changed(("mixins.lora.lora_linear.0.Q_A", A)), "mixins.lora.lora_linear.0.Q_A"),
    "a LoRA of PEFT beside it": (changed((f"{DENSE}.lora_A.weight", A)), "lora"),
    "a LoRA of Kohya beside it": (changed(("lora_unet_blocks_0.lora_down.weight", A)), "formats, sat and kohya"),
    "a factor stored as an object": (
        changed((f"{DENSE}.matrix_A.0", call("torchao.quantize", 4))),
        "torchao.quantize",
    ),
    "a factor stored as a name": (changed((f"{DENSE}.matrix_A.0", named("torch.float32"))), "attention.dense"),
    "a factor stored as a number": (changed((f"{DENSE}.matrix_A.0", 1.5)), "attention.dense"),
    "a factor stored as a list": (changed((f"{DENSE}.matrix_A.0", [[1.0, 2.0]])), "attention.dense"),
    "a factor that is none": (changed((f"{DENSE}.matrix_A.0", None)), "attention.dense"),
    "a pair that is none": (
        changed((f"{DENSE}.matrix_A.0", None), (f"{DENSE}.matrix_B.0", None)),
        "attention.dense",
    ),
    "modulations of unlike width": (
        changed(*((f"{ADALN}.matrix_A.{n}", numbers(RANK, HIDDEN + n)) for n in range(4)),
                *((f"{ADALN}.matrix_B.{n}", numbers(3 * HIDDEN, RANK)) for n in range(4))),
        "adaLN_modulations",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fault", "fragment"), SAT.values(), ids=SAT)
def test_a_sat_adapter(tmp_path: Path, refused, fault: Any, fragment: str):
    (tmp_path / "x.pt").write_bytes(sat(fault(sat_lora())))
    refused(tmp_path / "x.pt", fragment)


DIFFUSERS = {
    "a module the layout has not": ("transformer.blocks.0.to_q.lora_A.weight", A, "transformer.blocks.0"),
    "a block that is no number": (f"{TO_Q.replace('.0.', '.x.')}.lora_A.weight", A, "transformer_blocks.x"),
    "a text encoder's": ("text_encoder.encoder.q.lora_A.weight", A, "text_encoder"),
    "a magnitude of the wrong length": (f"{TO_Q}.lora_magnitude_vector", numbers(HIDDEN - 1), "lora_magnitude_vector"),
    "an alpha of its own": (f"{TO_Q}.alpha", numbers(), "alpha"),
    "a SAT factor": (f"{DENSE}.matrix_A.0", A, "sat"),
    "a full weight": ("transformer.proj_out.weight", A, "proj_out.weight"),
}


@pytest.mark.parametrize(("key", "value", "fragment"), DIFFUSERS.values(), ids=DIFFUSERS)
def test_a_diffusers_adapter(tmp_path: Path, refused, key: str, value: Any, fragment: str):
    (tmp_path / "x.safetensors").write_bytes(safetensors(diffusers_lora() | {key: value}))
    refused([tmp_path / "x.safetensors", "--as-loaded"], fragment)


def test_rows_that_do_not_divide(tmp_path: Path, refused):
    """norm1.linear stacks the modulations of video and text, three each."""
    stem = "transformer.transformer_blocks.0.norm1.linear"
    tensors = {f"{stem}.lora_A.weight": A, f"{stem}.lora_B.weight": numbers(HIDDEN + 3, RANK)}
    (tmp_path / "x.safetensors").write_bytes(safetensors(tensors))
    refused([tmp_path / "x.safetensors", "--as-loaded", "--architecture", "cogvideox"], "norm1.linear")


def test_every_fault_is_named_at_once(tmp_path: Path, refused):
    tensors = less(f"{DENSE}.matrix_B.0")(sat_lora()) | {f"{QKV}.matrix_A.1": numbers(2, HIDDEN)}
    (tmp_path / "x.pt").write_bytes(sat(tensors | {"mixins.lora.x": A}))
    refused(tmp_path / "x.pt", "attention.dense", "query_key_value", "mixins.lora.x")


def test_ten_thousand_faults_are_not_listed(tmp_path: Path, refused):
    tensors = {f"model.diffusion_model.transformer.layers.{n}.attention.dense.matrix_A.0": A for n in range(10_000)}
    (tmp_path / "x.pt").write_bytes(sat(tensors))
    refused(tmp_path / "x.pt", "more")


@pytest.mark.parametrize(("dtype", "alpha"), [("float16", 1e30), ("float16", 1e300), ("float32", 1e300)])
def test_a_scale_that_overflows(tmp_path: Path, refused_alone, dtype: str, alpha: float):
    """In a process of its own, where numpy's warnings would be seen."""
    (tmp_path / "x.pt").write_bytes(sat({key: value.astype(dtype) for key, value in sat_lora().items()}))
    refused_alone([tmp_path / "x.pt", "--alpha", alpha], "overflow")
