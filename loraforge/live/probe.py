"""Runs only the transformer, on fixed random inputs, with adapters on and off: the fastest proof of an effect.

Needs neither text encoder nor VAE. The verdict is on any measured change of an output; its formulas are in the
docstrings, and their thresholds, chosen on tiny models, are not calibrated on real ones. Sources: diffusers
CogVideoXTransformer3DModel.forward, and the inputs that its pipelines prepare (rotary tables, `ofs` 2.0, image
latents concatenated to the noise).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from loraforge.errors import LoraforgeError, adding

EPS = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
"""Distance from 1 to the next number of the type."""
GROWTH, LARGE = 1.25, 0.5
"""An effect of at least LARGE is saturated if it grows from half to full strength by less than GROWTH (linear: 2)."""
APART = 30.0
"""The largest factor between an effect and |D|/|W| at which the two still count as about the same."""
UNCALIBRATED = "thresholds not calibrated on real adapters"


FRAMES, HEIGHT, WIDTH = 2, 32, 48
"""Size of the latents: frames (twice as many if two make a patch); height and width if the model takes any size."""
TIMESTEP = 500
"""The middle of the noise schedule."""


@dataclass(frozen=True, slots=True)
class Effect:
    """A verdict, and in `why` the numbers behind it."""

    verdict: str
    why: str


@dataclass(frozen=True, slots=True)
class Probe:
    """How the transformer's output changes with the strength. Its JSON is part of schemas/run.schema.json."""

    strengths: tuple[float, ...]
    changes: tuple[float, ...]
    """One per strength: the relative L2 norm of the output's difference from that at strength 0."""
    weights: float
    """|D|/|W| over the adapted weights at strength 1: the size of the change that the weights predict."""
    effect: Effect
    dtype: str


def judged(half: float, full: float, weights: float, dtype: str, *, linear: bool = True, calls: int = 1) -> Effect:
    """The verdict on an output that changes by `half` at strength 0.5 and by `full` at 1, as shares of its norm.

    `weights` is |D|/|W|, the norm of the update relative to the weights it changes. `calls` is the number of model
    calls behind the output; their rounding errors add up like a random walk. The first that applies:

    - no measurable effect: `weights` is zero, or `full` at most a rounding step of `dtype` times the root of `calls`;
    - saturated: `full` is 0.5 or more, and less than 1.25 `half`; not checked for DoRA (not `linear`), whose
      magnitudes act at any strength;
    - effect of about the size the weights predict: `full` within a factor of 30 of `weights`;
    - else weaker or stronger than that.
    """
    step = EPS.get(dtype, EPS["float32"]) * math.sqrt(calls)
    if not weights:
        return Effect("no measurable effect", f"the updates are zero, or cancel; the output changes by {full:.1e}")
    if full <= step:
        bits = "not one bit of the output changes" if not full else f"the output changes by {full:.1e} of its size"
        finer = "" if dtype == "float32" or not full else "; --settings torch_dtype=float32 measures finer"
        return Effect("no measurable effect", f"{bits}, and rounding in {dtype} may change it by {step:.1e}{finer}")
    if linear and LARGE <= full < GROWTH * half:
        why = f"half the strength changes the output by {half:.3g} of its size, full strength by {full:.3g}: even more"
        return Effect("saturated", f"{why} would make no difference, it is far too strong ({UNCALIBRATED})")
    why = f"the output changes by {full:.3g} of its size, the weights by {weights:.3g} ({UNCALIBRATED})"
    if weights / APART <= full <= weights * APART:
        return Effect("effect of about the size the weights predict", why)
    return Effect("weaker than the weights predict" if full < weights else "stronger than the weights predict", why)


def probe(
    transformer: Any,
    set_strength: Callable[[float], None],
    weights: float,
    *,
    linear: bool = True,
    progress: Callable[[], None] = lambda: None,
) -> Probe:
    """Measure the effect of adapters on the output of `transformer` at half and at full strength.

    `set_strength` sets their strength and leaves them at 1; `weights` is their |D|/|W|; `linear` is false if one is
    a DoRA; `progress` is called after each of the three forwards. Raises LoraforgeError if the output is not finite.
    """
    import torch

    call = inputs(transformer)
    outputs = []
    with torch.no_grad():
        for strength in (0.0, 0.5, 1.0):
            set_strength(strength)
            outputs.append(transformer(**call, return_dict=False)[0].double().cpu())
            progress()
    off, half, full = outputs
    changes = relative(half, off), relative(full, off)
    kind = str(transformer.dtype).removeprefix("torch.")
    if not all(map(math.isfinite, (*changes, weights))):
        raise LoraforgeError(
            f"the transformer's output is NaN or infinity in {kind} with the adapters on: no effect can be measured.",
            adding("--settings", "torch_dtype=float32", why="a wider type"),
            adding("--strength", "1", why="as trained"),
        )
    return Probe((0.5, 1.0), changes, weights, judged(*changes, weights, kind, linear=linear), kind)


def relative(other: Any, base: Any) -> float:
    """|other - base| / |base| in Frobenius norms; infinite if only the base is zero."""
    size, difference = float(base.norm()), float((other - base).norm())
    return difference / size if size else math.inf if difference else 0.0


def inputs(transformer: Any, seed: int = 0) -> dict[str, Any]:
    """Keyword arguments of a call of the transformer: the same on every machine, drawn on the CPU in float32."""
    import torch

    config = transformer.config
    generator = torch.Generator("cpu").manual_seed(seed)
    fixed = config.use_learned_positional_embeddings or not config.use_rotary_positional_embeddings
    height = config.sample_height if fixed else min(config.sample_height, HEIGHT)
    width = config.sample_width if fixed else min(config.sample_width, WIDTH)
    frames = FRAMES * (config.patch_size_t or 1)

    def noise(*shape: int) -> Any:
        return torch.randn(shape, generator=generator).to(transformer.device, transformer.dtype)

    call: dict[str, Any] = {
        "hidden_states": noise(1, frames, config.in_channels, height, width),
        "encoder_hidden_states": noise(1, config.max_text_seq_length, config.text_embed_dim),
        "timestep": torch.tensor([TIMESTEP], device=transformer.device),
    }
    if config.use_rotary_positional_embeddings:
        from diffusers import CogVideoXPipeline

        rotary: Any = CogVideoXPipeline._prepare_rotary_positional_embeddings  # untyped
        pipeline = SimpleNamespace(transformer=transformer, vae_scale_factor_spatial=1)  # sizes are those of latents
        call["image_rotary_emb"] = rotary(pipeline, height, width, frames, transformer.device)
    if config.ofs_embed_dim:
        call["ofs"] = noise(1).fill_(2.0)
    return call
