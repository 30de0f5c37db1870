"""Every architecture is found again from a probe pair: what its TOML says, and what learning finds, is the same."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import tomli
from helpers.learning import State, learned, saved
from safetensors.numpy import load_file

from loraforge.base.route import route
from loraforge.learning.check import ANY, check
from loraforge.learning.learn import learn
from loraforge.names.catalog import architecture
from loraforge.names.index import built_in
from loraforge.names.layout import LAST, Architecture, parameter_key
from loraforge.tables import package_table

PAIRS = [(name, layout) for name, own in built_in().layouts.items() for layout in own if layout != "diffusers"]


Change = Callable[[State], State]


def checkpoint(arch: Architecture, layout: str, blocks: int, seed: int) -> State:
    """A model of random numbers, of all segments that this layout and Diffusers' have, every row of one width."""
    random, one = np.random.default_rng(seed), arch.layouts[layout]
    state = State()
    absent = one.absent | arch.layouts["diffusers"].absent
    for template, stack in one.modules.items():
        if absent.issuperset(stack):
            continue
        counts = range(blocks - any(other.ends(template) for other in one.modules))
        holes = sorted(hole[1:-1] for hole in template.holes)
        for numbers in product(*([blocks - 1] if hole == LAST else counts for hole in holes)):
            for name in arch.named(stack, layout):
                rows = 2 * sum(arch.segments[segment] for segment in stack)
                vector = name != "weight" or stack[0] in arch.unadapted
                path = template.fill(tuple(zip(holes, numbers, strict=True)))
                state[parameter_key(path, name)] = random.standard_normal((rows,) if vector else (rows, 5), np.float32)
    return state


def pair(
    folder: Path, arch: Architecture, layout: str, blocks: int, seed: int, change: Change = dict
) -> tuple[Path, Path]:
    state = change(checkpoint(arch, layout, blocks, seed))
    shapes = {key: tensor.shape for key, tensor in state.items()}
    pieces, _ = route(shapes, arch.ending(blocks - 1), layout, "diffusers", [ANY])
    other = {key: np.concatenate([state[p.key][p.start : p.stop] for p in parts]) for key, parts in pieces.items()}
    return saved(folder / f"a{blocks}.safetensors", state), saved(folder / f"b{blocks}.safetensors", other)


@pytest.mark.parametrize(("name", "layout"), PAIRS, ids=map("-".join, PAIRS))
def test_an_architecture_is_found_again(name: str, layout: str, tmp_path: Path) -> None:
    arch = architecture(name)
    done = learn(*pair(tmp_path, arch, layout, 3, 0), tmp_path / "x.toml", layouts=(layout, "diffusers"))
    assert not done.left_out
    found = learned(tmp_path / "x.toml")
    literal = {text.partition(":")[0] for kind, text in done.remarks if kind == "literal"}
    if package_table(f"names/architectures/{name}").get("places"):  # every path is learned as it is
        for one in (layout, "diffusers"):
            paths = {template.text for template in found.layouts[one].modules if not template.holes}
            assert all(arch.layouts[one].locate(path) for path in paths) and len(paths) > 100
        check(tmp_path / "x.toml", [pair(tmp_path, arch, layout, 3, 1)])
        return
    assert literal <= {template.text for template in arch.layouts["diffusers"].modules}
    for one in (layout, "diffusers"):
        known = {tuple(t.tokens()): s for t, s in arch.layouts[one].modules.items() if not _lacks(arch, layout, s)}
        assert {tuple(t.tokens()) for t in found.layouts[one].modules} == {*known}
    check(tmp_path / "x.toml", [pair(tmp_path, arch, layout, blocks, blocks) for blocks in (4, 2)])


def _lacks(arch: Architecture, layout: str, stack: tuple[str, ...]) -> bool:
    return (arch.layouts[layout].absent | arch.layouts["diffusers"].absent).issuperset(stack)


@pytest.mark.parametrize("name", ["mochi", "sd3", "wan"])
def test_new_names_onto_an_architecture_keep_its_segments(name: str, tmp_path: Path) -> None:
    """In the last block of Mochi and SD3, which is built differently; and Wan's parameters, and those of the model."""
    arch = architecture(name)
    a, b = pair(tmp_path, arch, "original", 3, 0)
    saved(tmp_path / "a.safetensors", {f"mine.{key}": tensor for key, tensor in load_file(a).items()})
    learn(tmp_path / "a.safetensors", b, tmp_path / "x.toml", onto=name, layouts=("mine", "diffusers"))
    got, want = tomli.loads((tmp_path / "x.toml").read_text())["layouts"]["mine"], arch.layouts["original"]
    assert got["modules"] == {f"mine.{t.text}".strip("."): [*stack] for t, stack in want.modules.items()}
    assert got.get("parameters", {}) == {segment: [*names] for segment, names in want.parameters.items()}


@pytest.mark.parametrize("name", ["flux", "hunyuanvideo", "ltx", "sd3", "wan"])
def test_a_model_before_training_teaches_nothing_wrong(name: str, tmp_path: Path) -> None:
    """Norms of 1, biases of 0, modulations and output layers of 0: what is equal is left out, and the rest is right."""
    arch = architecture(name)

    def untrained(state: State) -> State:
        zero = {key for key in state if re.search(r"mod|adaLN|head|bias|final_layer|proj_out", key)}
        ones = {key: np.ones_like(tensor) for key, tensor in state.items() if tensor.ndim == 1}
        return state | ones | {key: np.zeros_like(state[key]) for key in zero}

    sides = pair(tmp_path, arch, "original", 3, 0, untrained)
    done = learn(*sides, tmp_path / "x.toml")
    assert done.left_out["equal numbers stand in several places"]
    found = learned(tmp_path / "x.toml")
    fresh = []
    for layout, path in zip(("original", "diffusers"), pair(tmp_path, arch, "original", 3, 1), strict=True):
        located = found.layouts[layout].locate
        fresh.append(saved(path, {key: t for key, t in load_file(path).items() if located(key.rpartition(".")[0])}))
    check(tmp_path / "x.toml", [tuple(fresh)])
