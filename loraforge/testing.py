"""A conformance kit: inherit one class, name your format, and pytest checks what every format must do.

```python
from loraforge.testing import FormatConformance

class TestMine(FormatConformance):
    format = "mine"
```

Adapters are made in Python, in the format's own layout, with the module names of its architectures. What the format
writes is read back and compared row by row in float64.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import pytest

import loraforge
from loraforge.adapter.adapter import Adapter
from loraforge.adapter.proof import compare, pair_up
from loraforge.algebra.dtypes import name_of
from loraforge.algebra.lora import LoraWeight
from loraforge.errors import ConversionError, LoraforgeError
from loraforge.files.safetensors import write_safetensors
from loraforge.files.tensorfile import TensorFile
from loraforge.files.torch_write import write_torch
from loraforge.format.locate import locate
from loraforge.format.protocol import Format
from loraforge.names.catalog import architecture, architectures
from loraforge.names.layout import Architecture, Template
from loraforge.scale.rule import Choice, Scale

ROWS, INPUTS = 6, 10
"""Rows of a segment of height 1, and inputs of every module."""

TYPES = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16, "fp32": np.float32, "fp64": np.float64}


class FormatConformance:
    """The tests that every format passes. `options`: further options that writing needs (`{"lora_only": True}`)."""

    format: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    shares: ClassVar[frozenset[str]] = frozenset()
    """Formats that its files may be taken for, because they are written the same way."""
    lacks: ClassVar[frozenset[str]] = frozenset()
    """Of TYPES, those that its program cannot load: the format refuses to write them."""

    @property
    def form(self) -> Format:
        """The format under test."""
        return loraforge.formats()[self.format]

    def adapters(self, **how: Any) -> Iterator[Adapter]:
        """One adapter per architecture that the format has a layout for."""
        known = {name: used for name, used in self.form.layouts.items() if name in architectures()}
        assert known, f"{self.format} has no layout of an architecture that is installed"
        for name, layout in known.items():
            yield make_adapter(name, layout, self.form.storage.segments, **how)

    def write(self, adapter: Adapter, place: Path, **options: Any) -> Path:
        """Write an adapter and return the folder."""
        loraforge.write(adapter, self.format, place, **{**self.options, **options})
        return place

    def back(self, place: Path, adapter: Adapter) -> Adapter:
        """The adapter in a folder, read as the format under test, and as the architecture of what was written."""
        form, _, file = locate(place, self.format, Choice())
        assert form is not None
        return form.read(file, Choice(architecture=adapter.architecture))

    def assert_same(self, adapter: Adapter, place: Path, *, rounded: bool = False) -> None:
        """The folder's adapter makes the same update, in every row."""
        pairs, alone = pair_up(adapter, self.back(place, adapter))
        assert alone == ([], [])
        worst = compare(pairs, lambda _: rounded)
        assert [c.module for c in worst if not c.holds] == []

    @pytest.mark.parametrize("scaling", [1.0, 0.5, 1 / 128, 0.3, 2.0])
    def test_round_trip(self, scaling: float, tmp_path: Path) -> None:
        """Names, numbers and the scale come back."""
        for n, adapter in enumerate(self.adapters(scaling=scaling)):
            self.assert_same(adapter, self.write(adapter, tmp_path / str(n)), rounded=True)

    def test_every_module_may_have_its_own_scale(self, tmp_path: Path) -> None:
        """A scale that differs between modules survives."""
        for n, adapter in enumerate(self.adapters()):
            modules = {
                path: tuple(replace(w, scaling=[0.25, 1.0, 0.5][m % 3]) for w in delta)
                for m, (path, delta) in enumerate(adapter.modules.items())
            }
            mixed = replace(adapter, modules=modules)
            self.assert_same(mixed, self.write(mixed, tmp_path / str(n)))

    def test_unequal_ranks(self, tmp_path: Path) -> None:
        """Modules keep their ranks, or are padded to one rank."""
        for n, adapter in enumerate(self.adapters(ranks=(1, 4, 3))):
            self.assert_same(adapter, self.write(adapter, tmp_path / str(n)))

    def test_partial_targets(self, tmp_path: Path) -> None:
        """Only the first module, only the last, and every second one."""
        for n, adapter in enumerate(self.adapters()):
            paths = list(adapter.modules)
            for m, chosen in enumerate((paths[:1], paths[-1:], paths[::2])):
                part = replace(adapter, modules={path: adapter.modules[path] for path in chosen})
                self.assert_same(part, self.write(part, tmp_path / f"{n}-{m}"))

    def test_dora_is_kept_or_refused(self, tmp_path: Path) -> None:
        """The magnitudes come back as they were, or nothing is written."""
        for n, adapter in enumerate(self.adapters(dora=True)):
            place = tmp_path / str(n)
            if self.form.storage.magnitude:
                self.assert_same(adapter, self.write(adapter, place))
                assert all(
                    w.magnitude is not None for delta in self.back(place, adapter).modules.values() for w in delta
                )
            else:
                with pytest.raises(ConversionError):
                    self.write(adapter, place)
                assert not place.exists()

    @pytest.mark.parametrize("kind", TYPES)
    def test_every_element_type(self, kind: str, tmp_path: Path) -> None:
        """Factors keep their type, or nothing is written."""
        for n, adapter in enumerate(self.adapters(dtype=TYPES[kind])):
            place = tmp_path / str(n)
            if kind in self.lacks:
                with pytest.raises(ConversionError):
                    self.write(adapter, place)
                assert not place.exists()
                continue
            self.write(adapter, place)
            self.assert_same(adapter, place, rounded=True)
            types = {w.B.dtype for delta in self.back(place, adapter).modules.values() for w in delta}
            assert types == {np.dtype(TYPES[kind])}

    def test_the_same_input_gives_the_same_bytes(self, tmp_path: Path) -> None:
        """No date, no random order."""
        for n, adapter in enumerate(self.adapters()):
            one, other = (self.write(adapter, tmp_path / f"{n}{side}") for side in "ab")
            files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
            assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
            assert [(one / f).read_bytes() for f in files] == [(other / f).read_bytes() for f in files]

    def test_only_this_format_claims_its_files(self, tmp_path: Path) -> None:
        """`claims` is true for this format, and its files are not taken for another's, unless it `shares` them."""
        for n, adapter in enumerate(self.adapters()):
            place = self.write(adapter, tmp_path / str(n))
            assert self.form.claims(self.file(place))
            form, _, _ = locate(place, None, Choice(architecture=adapter.architecture))
            assert form is not None
            assert form.name in {self.format, *self.shares}, adapter.architecture

    def test_an_unknown_key_is_refused_by_name(self, tmp_path: Path) -> None:
        """A key that looks like a LoRA's but is not understood is never dropped silently."""
        for n, adapter in enumerate(self.adapters()):
            file = self.file(self.write(adapter, tmp_path / str(n)))
            known = self.back(tmp_path / str(n), adapter).keys
            strange = f"x{min(key for key in file.tensors if key in known)}"
            rewrite(file, {**{key: np.array(file[key]) for key in file.tensors}, strange: np.ones((2, 2), np.float32)})
            with pytest.raises(LoraforgeError) as refusal:
                self.back(tmp_path / str(n), adapter)
            assert strange in str(refusal.value)

    def test_damaged_files_are_refused(self, tmp_path: Path) -> None:
        """Half a file, or a changed byte in its header, ends in a message: no traceback, no wrong adapter."""
        for n, adapter in enumerate(self.adapters()):
            file = self.file(self.write(adapter, tmp_path / str(n)))
            whole = file.path.read_bytes()
            damaged = [whole[: len(whole) * part // 10] for part in (0, 1, 5, 9)]
            damaged += [whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :] for at in (0, 3, 8, 9)]
            for content in damaged:
                file.path.write_bytes(content)
                try:
                    self.assert_same(adapter, tmp_path / str(n))  # the byte meant nothing
                except LoraforgeError:
                    continue
                assert len(content) == len(whole), "half a file was read as a whole one"

    def file(self, place: Path) -> TensorFile:
        """The tensor file of a written folder."""
        return locate(place, self.format, Choice())[2]


def make_adapter(
    name: str,
    layout: str,
    segments: frozenset[str] | None = None,
    *,
    scaling: float = 0.5,
    ranks: tuple[int, ...] = (2,),
    dora: bool = False,
    dtype: Any = np.float32,
) -> Adapter:
    """An adapter of every module that a LoRA may adapt, in blocks 0 and 11, with one pair of factors per module."""
    arch = architecture(name)
    random = np.random.default_rng(7)
    modules: dict[str, tuple[LoraWeight, ...]] = {}
    for template, stack in arch.layouts[layout].modules.items():
        if arch.unadapted.keys() & set(stack) or not (segments is None or segments.issuperset(stack)):
            continue
        for path in islice(_paths(template), 2):
            rank = ranks[len(modules) % len(ranks)]
            height, inputs = _shape(arch, stack)
            A = random.standard_normal((rank, inputs)).astype(dtype)
            B = random.standard_normal((height, rank)).astype(dtype)
            magnitude = (1 + random.random(height)).astype(dtype) if dora else None
            modules[path] = (LoraWeight(A, B, scaling, magnitude),)
    return Adapter(name, layout, modules, Scale("given", f"scaling {scaling:g}"))


def _shape(arch: Architecture, stack: Sequence[str]) -> tuple[int, int]:
    """Rows and inputs of a module in a small model of this architecture, by its table of dimensions."""
    heights = {symbol for (_, symbol), _ in arch.dimensions.values()}

    def size(times: int, symbol: str) -> int:
        return times * ((ROWS if symbol in heights else INPUTS) if symbol else 1)

    known = [arch.dimensions.get(segment) for segment in stack]
    rows = [size(*sizes[0]) if sizes else ROWS * arch.segments[s] for s, sizes in zip(stack, known, strict=True)]
    if arch.sizes(tuple(stack), sum(rows)) != rows:  # heads of other numbers: the ratios of the segments hold
        rows = [ROWS * arch.segments[segment] for segment in stack]
    return sum(rows), size(*known[0][1]) if known[0] else INPUTS


def rewrite(file: TensorFile, tensors: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write the file again with these tensors, in the same container."""
    header = {key: (name_of(tensor.dtype), tensor.shape) for key, tensor in tensors.items()}
    if file.kind == "safetensors":
        write_safetensors(file.path, header, tensors.items(), file.metadata)
    else:
        write_torch(file.path, header, tensors.items())


def _paths(template: Template) -> Iterator[str]:
    holes = sorted(hole[1:-1] for hole in template.holes)
    for number in (0, 11) if holes else (0,):
        yield template.fill(tuple((hole, number) for hole in holes))
