"""An adapter of a model whose file is taken away: never written as another model's, and never believed to be one's.

`othermodels.toml` has an entry for each of them: what is asked here is whether these entries, and the decision between
architectures, hold for a model that loraforge knows by name alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.sparse import Modules, sparse

import loraforge
from loraforge.adapter.rivals import moves
from loraforge.conversion.prepare import prepare
from loraforge.errors import LoraforgeError
from loraforge.format.protocol import Wanted
from loraforge.format.registry import FORMATS, formats
from loraforge.names import catalog
from loraforge.names.catalog import architecture, architectures
from loraforge.names.index import Index, built_in
from loraforge.names.layout import Architecture, Variant
from loraforge.plugin.registry import Registry, current, use

DOWN_UP, AB = (".lora_down.weight", ".lora_up.weight"), (".lora_A.weight", ".lora_B.weight")
SPELLED = {
    "diffusers": ("transformer.", AB),
    "peft": ("base_model.model.", AB),
    "comfyui": ("diffusion_model.", AB),
    "original": ("", AB),
    "kohya": ("lora_unet_", DOWN_UP),
    "musubi": ("lora_unet_", DOWN_UP),  # of Z-Image alone other names than kohya's
    "videox-fun": ("lora_unet__", DOWN_UP),
    "onetrainer": ("lora_transformer_", DOWN_UP),
    "lycoris": ("lycoris_", DOWN_UP),
    "xlabs": ("", (".down.weight", ".up.weight")),
}
"""Format -> the prefix of its keys, and the words of its factors."""
PLAIN: dict[str, Any] = {"dtype": "keep", "base_model": None, "drop": (), "force": True, "dry_run": True}
NAMES = sorted(built_in().layouts)
ONLY = {("z_image", "musubi"), ("sd", "kohya")}
"""A flavour's names that are for one model alone: without its file, the flavour does not know of them."""
Result = set[tuple[str, Any, str, Any]] | None


def without(name: str) -> Index:
    """The index, without one architecture."""
    known = built_in()
    patterns = {one: tuple(home for home in homes if home[0] != name) for one, homes in known.patterns.items()}
    return Index(
        patterns={one: homes for one, homes in patterns.items() if homes},
        layouts={arch: layouts for arch, layouts in known.layouts.items() if arch != name},
        titles={arch: title for arch, title in known.titles.items() if arch != name},
        words={word: arch for word, arch in known.words.items() if arch != name},
        repos={repo: arch for repo, arch in known.repos.items() if arch != name},
    )


def widths(arch: Architecture) -> Iterator[tuple[Variant, bool]]:
    """A model of each released hidden size, and a tiny one like the first."""
    yield arch.variants[0], True
    sizes = {values.get("d", str(values)): v for v in reversed(arch.variants) if (values := arch.solved(v).values)}
    yield from ((variant, False) for variant in sizes.values())


def modules(arch: Architecture, layout: str, variant: Variant, *, tiny: bool) -> Modules:
    """Every module that a LoRA may adapt, with the shape of its weight."""
    sizes = {symbol for rows, inputs in arch.dimensions.values() for _, symbol in (rows, inputs)}
    values = dict.fromkeys(sizes, 512) | dict(arch.solved(variant).values)
    values = {symbol: max(2, value // 16) if tiny else value for symbol, value in values.items()} | {"": 1}
    every = dict[str, tuple[int, ...]]()
    for template, stack in arch.layouts[layout].modules.items():
        if arch.unadapted.keys() & set(stack) or variant.absent & set(stack):
            continue
        known = [arch.dimensions.get(s, ((arch.segments[s], "d"), (1, "d"))) for s in stack]
        times, symbol = known[0][1]
        shape = (
            sum(n * values[s] for (n, s), _ in known),
            times * values[symbol],
            *(variant.shapes.get(stack[0], ())[2:] or [3] * arch.kernels.get(stack[0], 0)),
        )
        depth = min(3, variant.depth(stack[0])) if tiny else variant.depth(stack[0])
        ends = [one for one in arch.layouts[layout].modules if one.ends(template)]
        numbers = [depth - 1] if template.for_last else range(depth - bool(ends)) if template.holes else [0]
        for n in numbers:
            every[template.fill(tuple((hole[1:-1], n) for hole in sorted(template.holes)))] = shape
    return every


def parts(every: Modules) -> Iterator[tuple[str, Modules]]:
    """What trainings adapt of a model."""
    blocks = {path: shape for path, shape in every.items() if re.search(r"\.\d+\.", path)}
    attention = {path: shape for path, shape in blocks.items() if re.search("attn|attention", path)}
    two = [f".{number}." for number in (0, 1)]
    yield "all", every
    yield "attention", attention
    yield "the rest of blocks", {path: blocks[path] for path in blocks.keys() - attention.keys()}
    yield "embedders", {path: every[path] for path in every.keys() - blocks.keys()}
    yield "two blocks", {path: shape for path, shape in attention.items() if any(one in path for one in two)}


def result(arch: Architecture, layout: str, paths: Mapping[str, Any], target: str | None, sep: str) -> Result:
    """Where each row of each module goes; None if the format has no names of this architecture."""
    if target is None:
        return None
    every = moves(SimpleNamespace(model=arch, layout=layout, modules=paths), target)  # type: ignore[arg-type]
    return {(path.replace(".", sep), rows, to.replace(".", sep), place) for path, rows, to, place in every}


def spellings() -> list[tuple[str, str]]:
    every = [(name, spelled) for name in NAMES for spelled in SPELLED if name in formats()[spelled].layouts]
    return [one for one in every if one[1] != "musubi" or one in ONLY]


@pytest.mark.parametrize(("name", "spelled"), spellings())
def test_it_is_no_other_model_s(name: str, spelled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arch, used = architecture(name), {to: form.layouts.get(name) for to, form in formats().items()}
    layout, (prefix, words) = str(used[spelled]), SPELLED[spelled]
    prefix = f"{arch.component}." if spelled == "diffusers" else prefix
    files = [
        (label, some, arch.ending((3 if tiny else variant.blocks) - 1), variant, tiny)
        for variant, tiny in widths(arch)
        for label, some in parts(modules(arch, layout, variant, tiny=tiny))
        if some
    ]
    before = current()
    monkeypatch.setattr(catalog, "built_in", lambda: without(name))
    use(Registry())
    try:
        _forget()
        assert name not in architectures()
        wrong = []
        for label, some, ended, variant, tiny in files:
            spelled_out = {path.replace(".", "_" if words == DOWN_UP else "."): shape for path, shape in some.items()}
            file = sparse(tmp_path / "a.safetensors", spelled_out, prefix=prefix, spelled=words)
            where = f"{label} of {'a tiny ' if tiny else ''}{variant.name}"
            wrong += [f"{where}: {fault}" for fault in _faults(file, ended, layout, some, used)]
        assert wrong == []
    finally:
        use(before)
        _forget()


def _faults(
    file: Path, arch: Architecture, layout: str, some: Modules, used: Mapping[str, str | None]
) -> Iterator[str]:
    try:
        adapter = loraforge.read(file, trained_scale=1.0)
    except LoraforgeError:
        return
    if adapter.shown:
        yield f"is believed to be of {adapter.architecture}: {adapter.shown}"
    for to, form in formats().items():
        if form.writer is None or len(form.layouts) == 1 or (arch.name, to) in ONLY:
            continue
        try:
            ready = prepare(adapter, to, file.with_name("out"), Wanted(), **PLAIN)
        except LoraforgeError:
            continue
        one = ready.adapter
        have = result(one.model, one.layout, one.modules, form.layouts[one.architecture], "_")
        want = result(arch, layout, some, used[to], "_")
        unchanged = have and all(move[0] == move[2] for move in have)
        if have != want and (want is not None or not unchanged):
            yield f"is written as {one.architecture} to {to}"


def _forget() -> None:
    """What formats keep of the keys that they have seen depends on the architectures."""
    for form in FORMATS:
        if style := getattr(form, "style", None):
            style._parsed.clear()
