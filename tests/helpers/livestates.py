"""A tiny transformer in the states in which people load adapters: offloaded, compiled, fused, quantised, hooked.

What an adapter does in it is judged by a forward against the same transformer with the update added in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import diffusers
import numpy as np
import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module
from peft import LoraConfig, get_peft_model
from safetensors.numpy import save_file

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
    )  # type: ignore[arg-type]  # its types allow no part to be None


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
