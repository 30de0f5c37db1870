"""Base weights of every architecture: bit for bit what Diffusers' own converter makes of them, and back."""

from __future__ import annotations

import inspect
import re
from itertools import product
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers.pipelines import auto_pipeline
from helpers.carry import carry
from helpers.tiny import TABLE, State, Tiny, tiny_models
from safetensors.numpy import load_file, save_file

import loraforge
from loraforge.base.route import route
from loraforge.names.bijection import parse
from loraforge.names.catalog import architecture, architectures
from loraforge.names.diffusers_config import entries, filled, sizes
from loraforge.names.dimensions import Sized, solve
from loraforge.names.layout import LAST, Architecture, Index, Variant

ELSEWHERE = {"cogvideox": "test_whole_graph.py"}
"""Architecture -> where the same is shown of it."""
TWO_NAMED = [name for name in TABLE if "original" in architecture(name).layouts]
"""Those of which Diffusers' names are not the only ones."""
VARIANTS = [(name, v) for name in TABLE for v in architecture(name).variants]


def two_named(more: tuple[int, ...] = (0,)) -> list[Tiny]:
    return [tiny for tiny in tiny_models(more) if tiny.name in TWO_NAMED]


def same(have: State, want: State) -> None:
    assert have.keys() == want.keys()
    for key, array in want.items():
        assert have[key].shape == array.shape, key
        equal = have[key].tobytes() == array.tobytes()  # pytest would describe every byte that differs, for minutes
        assert equal, key


def original(tiny: Tiny, arch: Architecture | None = None) -> State:
    state, dropped = carry(tiny.state, arch or tiny.arch, "diffusers", "original", [tiny.variant])
    assert not dropped
    return state


def test_every_architecture_has_tiny_models() -> None:
    assert TABLE.keys() == architectures().keys() - ELSEWHERE.keys()
    assert all(len(table["models"]) > 1 for table in TABLE.values())


@pytest.mark.parametrize("tiny", two_named((0, 1, -1)), ids=str)
def test_diffusers_makes_the_model_of_our_original_checkpoint(tiny: Tiny) -> None:
    checkpoint = original(tiny)
    same(tiny.by_diffusers(checkpoint), tiny.state)


@pytest.mark.parametrize(
    "tiny", [t for t in tiny_models() if "converter" in TABLE[t.name] and t not in two_named()], ids=str
)
def test_diffusers_renames_nothing_of_a_model_that_has_one_layout(tiny: Tiny) -> None:
    same(tiny.by_diffusers(tiny.state), tiny.state)


@pytest.mark.parametrize("tiny", two_named((0, 1, -1)), ids=str)
def test_from_diffusers_to_the_original_and_back(tiny: Tiny) -> None:
    back, dropped = carry(original(tiny), tiny.arch, "original", "diffusers", [tiny.variant])
    assert not dropped
    same(back, tiny.state)


@pytest.mark.parametrize("tiny", [t for t in two_named() if "converter" in TABLE[t.name]], ids=str)
def test_diffusers_sees_every_stack_whose_segments_change_places(tiny: Tiny) -> None:
    arch = tiny.arch
    stacks = {template: stack for template, stack in arch.layouts["original"].modules.items() if len(stack) > 1}
    shown = {segment for _, segment, _, _ in tiny.placed}
    for template, stack in stacks.items():
        if shown.isdisjoint(stack):
            continue
        tables = {"architecture": arch.name, "title": arch.title, "segments": list(arch.segments)}
        tables |= {"rows": dict(arch.segments), "parameters": {s: list(n) for s, n in arch.parameters.items()}}
        tables["layouts"] = {
            name: {
                "modules": {t.text: list(one) for t, one in layout.modules.items()},
                "parameters": {s: list(names) for s, names in layout.parameters.items()},
                "absent": list(layout.absent),
            }
            for name, layout in arch.layouts.items()
        }
        modules = tables["layouts"]["original"]["modules"]
        modules[template.text] = [stack[1], stack[0], *stack[2:]]
        wrong = parse(tables, "wrong.toml").ending(arch.layouts["original"].last)
        with pytest.raises(AssertionError):
            same(tiny.by_diffusers(original(tiny, wrong)), tiny.state)


@pytest.mark.parametrize("tiny", tiny_models(), ids=str)
def test_the_dimensions_hold_in_models_whose_sizes_all_differ(tiny: Tiny) -> None:
    weights = [Sized(path, s, shape[0], shape[1] if len(shape) > 1 else 1) for path, s, _, shape in tiny.placed]
    solution = solve(weights, tiny.arch.dimensions)
    assert not solution.odd
    values = [value for symbol, value in solution.values.items() if symbol not in TABLE[tiny.name].get("tied", ())]
    assert len(set(values)) == len(values), "two sizes are equal, and prove less"
    matrices = {s for _, s, _, shape in tiny.placed if len(shape) > 1 and s not in tiny.arch.unadapted}
    assert matrices - tiny.arch.dimensions.keys() == set(TABLE[tiny.name].get("unsized", ())) & matrices


def index_of(segment: str, kinds: dict[str, str], arch: Architecture, variant: Variant) -> list[Index]:
    """The block numbers of a segment in a released model."""
    if segment not in kinds:
        return [()]
    depth = variant.depth(segment)
    template = next(t for t, stack in arch.layouts["diffusers"].modules.items() if segment in stack)
    if template.for_last:
        return [((LAST, depth - 1),)]
    inner = TABLE[arch.name].get("holes", {})
    ranges = {"i": range(depth)} | {h: range(arch.config[e]) for h, e in inner.items() if f"{{{h}}}" in template.holes}
    return [tuple(zip(ranges, numbers, strict=True)) for numbers in product(*ranges.values())]


def released_model(arch: Architecture, variant: Variant) -> torch.nn.Module:
    """A released model without numbers, from the configuration that the data states."""
    cls = getattr(diffusers, arch.transformer_of(variant))
    usual = {key: p.default for key, p in inspect.signature(cls.__init__).parameters.items()}
    config = entries(arch, variant)
    known = dict(arch.solved(variant).values) | {f"blocks {s}": variant.depth(s) for s in arch.block_kinds()}
    for key, value in config.items():  # sizes that only norms show are the class's
        if isinstance(value, str) and value.startswith("{") and " " not in value and value[1:-1] not in known:
            known[value[1:-1]] = usual[key]
    arguments = {key: value for key, value in filled(config, known).items() if not key.startswith("_")}
    assert arguments.keys() <= usual.keys()
    with torch.device("meta"):
        return cls(**arguments)


@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=lambda value: getattr(value, "name", value))
def test_every_argument_of_the_class_has_its_entry(name: str, variant: Variant) -> None:
    """So that what is written does not depend on the defaults of the Diffusers that reads it."""
    arch = architecture(name)
    cls = getattr(diffusers, arch.transformer_of(variant))
    stated = {key for key in entries(arch, variant) if not key.startswith("_")}
    usual = {key: p.default for key, p in inspect.signature(cls.__init__).parameters.items() if key != "self"}
    assert stated <= usual.keys()
    assert {key for key in usual.keys() - stated if usual[key] is not None} == set()  # null is the same as none


@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=lambda value: getattr(value, "name", value))
def test_the_parameters_of_every_variant_fill_its_segments_exactly(name: str, variant: Variant) -> None:
    arch = architecture(name)
    shapes = {key: tuple(t.shape) for key, t in released_model(arch, variant).state_dict().items()}
    arch = arch.ending(arch.layouts["diffusers"].last_block(shapes))
    layout, kinds, filled_ = arch.layouts["diffusers"], arch.block_kinds(), dict[tuple[str, Index], set[str]]()
    sized = list[Sized]()
    for key, shape in shapes.items():
        path, _, parameter = key.rpartition(".")
        located = layout.locate(path)
        assert located, key
        stack = layout.modules[located[0]]
        for segment in stack:
            filled_.setdefault((segment, located[1]), set()).add(parameter)
        if parameter == arch.named(stack)[0]:
            for segment, rows in zip(stack, arch.sizes(stack, shape[0]) or (), strict=True):
                assert variant.objection(segment, located[1], (rows, *shape[1:])) is None
                sized.append(Sized(path, segment, rows, shape[1] if len(shape) > 1 else 1))
    want = {
        (segment, index)
        for segment in arch.segments.keys() - variant.absent
        for index in index_of(segment, kinds, arch, variant)
    }
    assert filled_.keys() == want
    for (segment, _), parameters in filled_.items():
        assert parameters == {name for name in arch.named((segment,)) if f"{segment}.{name}" not in variant.absent}
    assert set(variant.shapes) <= {segment for segment, _ in filled_}
    assert not arch.solved(variant).odd
    assert not solve(sized, arch.dimensions).odd


@pytest.mark.parametrize(("name", "variant"), VARIANTS, ids=lambda value: getattr(value, "name", value))
def test_every_variant_goes_into_each_layout_and_back_at_its_real_size(name: str, variant: Variant) -> None:
    """Names and shapes alone."""
    arch = architecture(name)
    shapes = {key: tuple(t.shape) for key, t in released_model(arch, variant).state_dict().items()}
    arch = arch.ending(arch.layouts["diffusers"].last_block(shapes))

    def moved(of: dict[str, tuple[int, ...]], source: str, target: str) -> dict[str, tuple[int, ...]]:
        pieces, dropped = route(of, arch, source, target, [variant])
        assert not dropped
        heights = {key: sum(part.stop - part.start for part in parts) for key, parts in pieces.items()}
        return {key: (heights[key], *of[parts[0].key][1:]) for key, parts in pieces.items()}

    for layout in arch.layouts.values():
        if arch.unadapted.keys() <= {segment for stack in layout.modules.values() for segment in stack}:
            there = moved(shapes, "diffusers", layout.name)
            assert layout.last_block(there) == layout.last
            assert moved(there, layout.name, "diffusers") == shapes


@pytest.mark.parametrize("name", TABLE)
def test_the_pipelines_are_those_that_have_the_transformer(name: str) -> None:
    arch = architecture(name)
    having, tasks = set[str](), dict[str, str]()
    for cls in (getattr(diffusers, n) for n in dir(diffusers) if n.endswith("Pipeline")):
        parts = inspect.signature(cls.__init__).parameters.values() if inspect.isclass(cls) else ()
        words = {word for part in parts for word in re.split(r"\W+", str(part.annotation))}
        if words & arch.transformers:
            having.add(cls.__name__)
    assert arch.pipelines.keys() <= having and (TABLE[name].get("shared") or arch.pipelines.keys() == having)
    text_to_image = {cls.__name__ for cls in auto_pipeline.AUTO_TEXT2IMAGE_PIPELINES_MAPPING.values()}
    image_to_image = {cls.__name__ for cls in auto_pipeline.AUTO_IMAGE2IMAGE_PIPELINES_MAPPING.values()}
    for pipeline in arch.pipelines.keys() & (text_to_image | image_to_image):  # some are both
        tasks = {"text-to-image": text_to_image, "image-to-image": image_to_image}
        assert pipeline in tasks[arch.pipelines[pipeline]], pipeline


@pytest.mark.parametrize("name", TWO_NAMED)
def test_convert_base_there_and_back(name: str, tmp_path: Path) -> None:
    """Files: the variant, the last block and every gap are seen; the configuration builds the same model."""
    tiny = Tiny(name, 0)
    there, back = tmp_path / "there", tmp_path / "back"
    tiny.model().save_pretrained(tmp_path / "model")
    save_file(tiny.state, tmp_path / "model" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    loraforge.convert_base(tmp_path / "model", "original", there)
    same({key: array for file in there.glob("*.safetensors") for key, array in load_file(file).items()}, original(tiny))
    loraforge.convert_base(next(there.glob("*.safetensors")), "diffusers", back)
    untold = {key: tiny.config[key] for key in TABLE[name].get("untold", ()) if key in tiny.config}
    model = getattr(diffusers, tiny.arch.transformer_of(tiny.variant)).from_pretrained(back, **untold)
    same({key: t.numpy() for key, t in model.state_dict().items()}, tiny.state)
    config = filled(entries(tiny.arch, tiny.variant), sizes(tiny.arch, tiny.placed))
    told = tiny.config.keys() - untold
    stated = {key: value for key, value in config.items() if key in told and not isinstance(value, list)}
    assert stated == {key: tiny.config[key] for key in stated}
    missing = dict(tiny.state)
    missing.popitem()
    save_file(missing, tmp_path / "model" / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    with pytest.raises(loraforge.LoraforgeError, match="is not whole"):
        loraforge.convert_base(tmp_path / "model", "original", tmp_path / "x")


def test_sizes_have_no_two_rows_alike() -> None:
    """Else a test could not see rows that changed places."""
    for tiny in tiny_models():
        rows = [row.tobytes() for array in tiny.state.values() for row in array.reshape(array.shape[0], -1)]
        assert len(set(rows)) > 0.99 * len(rows)
        assert not any(np.array_equal(array, np.zeros_like(array)) for array in tiny.state.values())
