"""What a measured change says: nothing, about what the weights predict, or so much that more makes no difference.

The formulas stand in the docstrings. Their thresholds were chosen on tiny models and are not calibrated on real ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

EPS = {"float32": 2.0**-23, "bfloat16": 2.0**-7, "float16": 2.0**-10}
"""Distance from 1 to the next number of the type."""
GROWTH, LARGE = 1.25, 0.5
"""Full strength over half strength, below which an effect of at least this size is saturated; proportional is 2."""
APART = 30.0
"""Factor by which an effect may differ from |D|/|W| and still be of about its size."""
UNCALIBRATED = "thresholds not calibrated on real adapters"


@dataclass(frozen=True, slots=True)
class Effect:
    """A verdict, and the numbers it rests on."""

    verdict: str
    why: str


def judged(half: float, full: float, weights: float, dtype: str, *, linear: bool = True, calls: int = 1) -> Effect:
    """The verdict on an output that changes by `half` at strength 0.5 and by `full` at 1, as shares of its norm.

    `weights` is |D|/|W|, the size of the update beside the weights it changes; `calls` is how many calls of the model
    are behind the output, whose roundings add up as a random walk does. In this order:

    - no measurable effect: `weights` is zero, or `full` at most a rounding step of `dtype` times the root of `calls`;
    - saturated: `full` is 0.5 or more, and less than 1.25 `half`; not asked of DoRA (not `linear`), whose magnitudes
      act at any strength;
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
        why = f"half the strength changes the output by {half:.3g} of its size, full strength by {full:.3g}: more of it"
        return Effect("saturated", f"{why} makes no difference any more, it is far too strong ({UNCALIBRATED})")
    said = f"the output changes by {full:.3g} of its size, the weights by {weights:.3g} ({UNCALIBRATED})"
    if weights / APART <= full <= weights * APART:
        return Effect("effect of about the size the weights predict", said)
    return Effect("weaker than the weights predict" if full < weights else "stronger than the weights predict", said)
