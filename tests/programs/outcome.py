"""What a program did with a file, in a few words; and what doctor said it would do, in the same words.

as recorded        each module moves as training moved it, and no other does
x2, x0.5 to x1     each moves so, but for a factor
5 of 8             some do not move; with the factor of those that do, where it is not 1
nothing            none moves
NaN                the numbers are none
another update     none of these
raises TEXT        the line ends with this error
"""

from __future__ import annotations

import math
import re
from typing import Any

from programs.corpus import Job

MOVED = 1e-6
"""Relative to the update of training: less is rounding of the sum."""


def outcome(job: Job, found: dict[str, Any]) -> str:
    if found.get("no_base"):
        return "no such model"
    if found["error"]:
        return f"raises {found['error']}"
    modules, others = found["modules"], found["others"]
    if any(not math.isfinite(number) for numbers in modules.values() for number in numbers):
        return "NaN"
    beside = f", and {others} other modules" if others else ""
    moved = {name: numbers for name, numbers in modules.items() if numbers[3] > MOVED}
    if all(error <= job.tolerance for _, error, _, _ in modules.values()):
        return f"as recorded{beside}"
    if not moved:
        return f"nothing{beside}"
    if any(off > max(job.tolerance, 1e-4 * abs(factor)) for factor, _, off, _ in moved.values()):
        return f"another update{beside}"
    part = f"{len(moved)} of {len(modules)} " if len(moved) < len(modules) else ""
    factors = [factor for factor, *_ in moved.values()]
    return (f"{part}{times(factors)}".strip() or "another update") + beside


def times(factors: list[float]) -> str:
    """`x2`, `x0.5 to x1`; empty where it is 1."""
    low, high = (f"{number:.3g}" for number in (min(factors), max(factors)))
    return "" if low == high == "1" else f"x{low}" if low == high else f"x{low} to x{high}"


def predicted(job: Job, said: dict[str, Any]) -> str:
    """What `loraforge doctor --json --runtime ROW` says of it. Empty where it says that it cannot tell."""
    verdict, rows = said["verdict"], said["outlooks"]
    row = rows[0] if rows else None
    if verdict == "acts as trained":
        return "as recorded"
    if row and row["raises"]:
        return "raises"
    if verdict in ("broken file", "wrong base"):
        return verdict
    if not row:  # it is about the file: no word of how a program ends
        return "no effect" if verdict == "does nothing" else ""
    if verdict == "does nothing" or not row["applied"]:
        return "nothing"
    known = row["ratios"] or ([number / job.scale for number in row["scalings"]] if job.scale else [])
    part = f"{row['applied']} of {row['modules']} " if row["applied"] < row["modules"] else ""
    if verdict == "acts in part" and not part:
        return "in part"
    return f"{part}{times(known)}".strip() or "as recorded" if known else ""


SORTS = {
    "false good news": "doctor: acts as trained; it does not",
    "false bad news": "doctor: nothing, an error or a broken file; it acts as recorded",
    "another scale": "both apply it, at another scale or in other modules than doctor says",
    "raises or passes over": "no effect either way, but one says an error and the other none",
    "applies what doctor calls useless": "doctor: nothing or an error; something is applied, not as recorded",
    "does not apply what doctor calls applied": "doctor: another scale, or part of it; nothing is applied, or an error",
}


def disagreement(said: str, verdict: str, did: str) -> str:
    """Which of SORTS; empty where the two agree, or doctor does not claim to know."""
    real = "raises" if did.startswith("raises") else did
    if did == "no such model" or said in ("", real):
        return ""
    if said == "as recorded":
        return "false good news" if verdict == "acts as trained" else "does not apply what doctor calls applied"
    if said in ("broken file", "wrong base", "in part"):
        return "false bad news" if real == "as recorded" else ""
    if said == "no effect" and real in ("nothing", "raises"):
        return ""
    if said in ("nothing", "raises", "no effect"):
        if real == "as recorded":
            return "false bad news"
        return "raises or passes over" if real in ("nothing", "raises") else "applies what doctor calls useless"
    if real in ("nothing", "raises"):
        return "does not apply what doctor calls applied"
    return "" if _near(said, real) else "another scale"


def _near(said: str, real: str) -> bool:
    """The same words, and numbers within 1 %."""
    number = re.compile(r"[\d.]+(?:e[+-]?\d+)?")
    if number.sub("", said) != number.sub("", real):
        return False
    pairs = zip(number.findall(said), number.findall(real), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=1e-2) for a, b in pairs)
