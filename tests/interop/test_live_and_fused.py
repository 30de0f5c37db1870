"""A live adapter and the same one fused act alike in bfloat16; on a GPU, at the size of CogVideoX-5B."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

SOURCE = Path(__file__).parents[1] / "bench" / "live_and_fused.py"
TINY = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 2,
    "text_embed_dim": 32,
    "max_text_seq_length": 8,
    "time_embed_dim": 16,
    "use_rotary_positional_embeddings": True,
    "sample_height": 8,
    "sample_width": 8,
}


def bench() -> Any:
    spec = importlib.util.spec_from_file_location("live_and_fused", SOURCE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def alike(found: dict[str, float], modules: int) -> None:
    assert found["modules"] == modules and found["live against off"] > 1e-3
    assert found["fused against live"] < found["live against off"]
    assert 0 < found["lost in rounding"] < 0.5


def test_live_and_fused(tmp_path: Path) -> None:
    alike(bench().measure(TINY, "cpu", tmp_path, rank=4), 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here, and a 5B transformer wants one")
def test_live_and_fused_at_the_size_of_5b(tmp_path: Path) -> None:
    module = bench()
    found = module.measure(module.REAL, "cuda", tmp_path)
    print(found)
    alike(found, 168)
