"""Checkpoints in two layouts to learn from, and what a layout says, whatever its segments are called."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tomli
from safetensors.numpy import save_file

from helpers.carry import carry
from loraforge.names.bijection import parse
from loraforge.names.catalog import architecture
from loraforge.names.layout import Architecture

State = dict[str, np.ndarray]
ABSENT = {"ofs1", "ofs2", "pos"}
"""Segments that CogVideoX-5B has not got."""


def saved(path: Path, state: Mapping[str, np.ndarray]) -> Path:
    save_file({key: np.ascontiguousarray(tensor) for key, tensor in state.items()}, path)
    return path


def cogvideox(blocks: int = 2, seed: int = 0, d: int = 24, h: int = 6, t: int = 10, x: int = 14) -> State:
    """A transformer in SAT's names, all of it random."""
    arch, random = architecture("cogvideox"), np.random.default_rng(seed)
    sizes = {"d": d, "h": h, "t": t, "x": x, "c": 4, "p": 16}
    state = State()
    for template, stack in arch.layouts["sat"].modules.items():
        if stack[0] in ABSENT:
            continue
        for i in range(blocks if template.holes else 1):
            path = template.fill((("i", i),))
            if stack[0] in arch.unadapted:
                height, inputs = (h if stack[0] in ("norm_q", "norm_k") else d), ()
            else:
                terms = [arch.dimensions[s] for s in stack]
                height = sum(times * sizes[symbol] for (times, symbol), _ in terms)
                inputs = (terms[0][1][0] * sizes[terms[0][1][1]],)
            kernel = (2, 2) if stack == ("patch",) else ()
            state[f"{path}.weight"] = random.standard_normal((height, *inputs, *kernel), np.float32)
            state[f"{path}.bias"] = random.standard_normal(height, np.float32)
    return state


def as_diffusers(state: State) -> State:
    arch = architecture("cogvideox")
    return carry(state, arch, "sat", "diffusers", [v for v in arch.variants if v.name == "CogVideoX-5B"])[0]


def learned(path: Path) -> Architecture:
    return parse(tomli.loads(path.read_text("utf-8")), path.name)


def pairs(arch: Architecture, one: str, other: str) -> set[tuple[str, int, str, int, bool]]:
    """Module and place in its stack in both layouts, of every segment that both have; and whether it is adapted."""

    def places(layout: str) -> Iterator[tuple[str, tuple[str, int]]]:
        for template, stack in arch.layouts[layout].modules.items():
            text = re.sub(r"\{\w+\}", "{}", template.text)
            yield from ((segment, (text, n)) for n, segment in enumerate(stack))

    first, second = dict(places(one)), dict(places(other))
    return {(*first[s], *second[s], s in arch.unadapted) for s in first.keys() & second.keys()}


def known_pairs(absent: set[str] = ABSENT) -> set[tuple[str, int, str, int, bool]]:
    """Those of CogVideoX as they were written by hand, less what is absent in a variant."""
    arch = architecture("cogvideox")
    lacking = {t for layout in arch.layouts.values() for t, stack in layout.modules.items() if {*stack} <= absent}
    texts = {re.sub(r"\{\w+\}", "{}", template.text) for template in lacking}
    return {pair for pair in pairs(arch, "sat", "diffusers") if pair[0] not in texts}
