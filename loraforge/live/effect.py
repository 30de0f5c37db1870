"""Judges a measured change of the output: none, about as the weights predict, or saturated.

The formulas are in the docstrings. Their thresholds were chosen on tiny models and are not calibrated on real ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

EPS = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
"""Distance from 1 to the next number of the type."""
GROWTH, LARGE = 1.25, 0.5
"""An effect of at least LARGE is saturated if it grows from half to full strength by less than GROWTH (linear: 2)."""
APART = 30.0
"""The largest factor between an effect and |D|/|W| at which the two still count as about the same."""
UNCALIBRATED = "thresholds not calibrated on real adapters"


@dataclass(frozen=True, slots=True)
class Effect:
    """A verdict, and in `why` the numbers behind it."""

    verdict: str
    why: str


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
