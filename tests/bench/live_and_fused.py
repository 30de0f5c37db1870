"""A transformer with a live adapter against the same one with the adapter fused in: difference and times.

    python tests/bench/live_and_fused.py        on a GPU: CogVideoX-5B's shapes, random weights, bfloat16, rank 128

Says so and ends well where there is no GPU. `measure` runs anywhere, on any configuration: the tests use a tiny one.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel
from safetensors.torch import save_file

import loraforge
from loraforge.live.probe import inputs, relative

REAL = {
    "num_attention_heads": 48,
    "num_layers": 42,
    "use_rotary_positional_embeddings": True,
    "sample_height": 60,
    "sample_width": 90,
}
"""CogVideoX-5B, where its config.json is not the class's default."""
MODULES = ("to_q", "to_k", "to_v", "to_out.0")


def adapter(model: Any, file: Path, rank: int, size: float = 0.02) -> Path:
    """A random LoRA of the attention whose update is `size` times the weights in norm, scale 1."""
    generator, tensors = torch.Generator().manual_seed(1), {}
    for path, module in model.named_modules():
        if path.endswith(MODULES):
            A, B = (
                torch.randn(shape, generator=generator)
                for shape in ((rank, module.in_features), (module.out_features, rank))
            )
            weight = float(module.weight.float().norm())
            B *= size * weight / (rank * module.in_features * module.out_features) ** 0.5
            tensors |= {
                f"transformer.{path}.lora_A.weight": A.bfloat16(),
                f"transformer.{path}.lora_B.weight": B.bfloat16(),
            }
    config = json.dumps(
        {"transformer.r": rank, "transformer.lora_alpha": rank, "transformer.target_modules": list(MODULES)}
    )
    save_file(tensors, file, {"lora_adapter_metadata": config})
    return file


def timed(device: str, call: Any) -> tuple[Any, float]:
    def wait() -> None:
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    wait()
    began = time.perf_counter()
    made = call()
    wait()
    return made, time.perf_counter() - began


def measure(config: dict[str, Any], device: str, work: Path, rank: int = 128) -> dict[str, float]:
    """Relative differences of the outputs, and seconds."""
    kind: Any = CogVideoXTransformer3DModel
    torch.manual_seed(0)
    with torch.device(device):
        model = kind(**config).to(torch.bfloat16).eval().requires_grad_(False)
    call = inputs(model)

    def forward(this: Any) -> Any:
        with torch.no_grad():
            return this(**call, return_dict=False)[0].float().cpu()

    model.save_pretrained(work / "base")
    file = adapter(model, work / "pytorch_lora_weights.safetensors", rank)
    off = forward(model)
    found, loading = timed(device, lambda: loraforge.load_into(model, file))
    live, _ = timed(device, lambda: forward(model))
    live, seconds = timed(device, lambda: forward(model))
    report, fusing = timed(
        device, lambda: loraforge.fuse(work / "base", [file], work / "fused", backend="torch", device=device)
    )
    fused = kind.from_pretrained(work / "fused", torch_dtype=torch.bfloat16).to(device)
    forward(fused)
    again, fused_seconds = timed(device, lambda: forward(fused))
    return {
        "modules": float(found.modules),
        "live against off": relative(live, off),
        "fused against live": relative(again, live),
        "lost in rounding": report.total.relative_error,
        "load_into s": loading,
        "fuse s": fusing,
        "live forward s": seconds,
        "fused forward s": fused_seconds,
    }


def main() -> int:
    if not torch.cuda.is_available():
        print("skipped: no GPU here, and a 5B transformer wants one.")
        return 0
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if sys.argv[1:] else None) as work:
        for name, value in measure(REAL, "cuda", Path(work)).items():
            print(f"{name:<20} {value:.4g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
