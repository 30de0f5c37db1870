"""How a format spells the tensors of one module. Most formats are one KeyStyle and no code."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraforge.dtypes import FACTORS
from loraforge.errors import FormatError, listed
from loraforge.layout import Architecture
from loraforge.tensorfile import TensorFile, TensorInfo

if TYPE_CHECKING:
    from loraforge.lora import Array, Delta


@dataclass(frozen=True, slots=True)
class KeyStyle:
    """The suffixes that follow a module path, and what stands before it."""

    A: str
    B: str
    prefix: str = ""
    parts: bool = False
    """`.0`, `.1`, ... after the suffix: one pair per stacked segment."""

    def parse(self, key: str) -> tuple[str, str, int] | None:
        """Module path, "A" or "B", part number of a key; None where the key is not of this style."""
        stem, part = key, 0
        if self.parts:
            stem, _, number = key.rpartition(".")
            if not (number.isascii() and number.isdecimal() and str(int(number[:6])) == number):
                return None
            part = int(number)
        for factor, suffix in (("A", self.A), ("B", self.B)):
            if stem.startswith(self.prefix) and stem.endswith(suffix):
                return stem[len(self.prefix) : len(stem) - len(suffix)], factor, part
        return None

    def pairs(
        self, tensors: Mapping[str, TensorInfo], arch: Architecture, layout: str
    ) -> dict[str, list[tuple[str, str]]]:
        """Module path -> the keys of its (A, B) pairs in order, judged by names and shapes alone.

        Raises FormatError that lists every fault: keys outside the layout, a lone A or B, ranks that
        disagree, empty shapes, element types no factor has, parts missing.
        """
        found: dict[str, dict[int, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
        problems, unknown = [], []
        stacks = {}
        for key in tensors:
            hit = self.parse(key)
            place = arch.layouts[layout].locate(hit[0]) if hit else None
            if hit is None or place is None:
                unknown.append(key)
                continue
            found[hit[0]][hit[2]][hit[1]] = key
            stacks[hit[0]] = arch.layouts[layout].modules[place[0]]
        if unknown:
            is_no = "is no LoRA key" if len(unknown) == 1 else f"and {len(unknown) - 1} more are no LoRA keys"
            problems.append(f"{unknown[0]} {is_no} of {arch.title} in this format")
        modules = {}
        for path, blocks in sorted(found.items()):
            want = len(stacks[path]) if self.parts else 1
            if sorted(blocks) != list(range(want)):
                problems.append(f"{path} has parts {sorted(blocks)}, not the {want} of {', '.join(stacks[path])}")
                continue
            faults = [fault for _, keys in sorted(blocks.items()) for fault in _pair_faults(path, keys, tensors)]
            if not faults and self.parts:
                heights = [tensors[blocks[n]["B"]].shape[0] for n in range(want)]
                if arch.sizes(stacks[path], sum(heights)) != heights:
                    faults = [f"{path}: its parts have {heights} rows"]
                widths = {tensors[blocks[n]["A"]].shape[1] for n in range(want)}
                if len(widths) > 1:
                    faults = [f"{path}: its parts have {sorted(widths)} inputs"]
            problems += faults
            if not faults:
                modules[path] = [(blocks[n]["A"], blocks[n]["B"]) for n in range(want)]
        if problems:
            raise FormatError(listed(problems))
        return modules

    def decode(
        self, file: TensorFile, pairs: Mapping[str, list[tuple[str, str]]], scaling: Callable[[str, int], float]
    ) -> dict[str, Delta]:
        """The updates behind the pairs, as views of the file. `scaling` takes module path and rank."""
        from loraforge.lora import LoraWeight  # numpy is loaded with the first tensor, not with --help

        return {
            path: tuple(LoraWeight(file[a], file[b], scaling(path, file.tensors[b].shape[1])) for a, b in keys)
            for path, keys in pairs.items()
        }

    def encode(self, path: str, delta: Delta) -> Iterator[tuple[str, Array]]:
        """The keys and tensors of one module that already fits this style."""
        for part, w in enumerate(delta):
            end = f".{part}" if self.parts else ""
            yield f"{self.prefix}{path}{self.A}{end}", w.A
            yield f"{self.prefix}{path}{self.B}{end}", w.B


def _pair_faults(path: str, keys: Mapping[str, str], tensors: Mapping[str, TensorInfo]) -> Iterator[str]:
    for factor in ("A", "B"):
        if factor not in keys:
            yield f"{path} has no {factor}"
            continue
        info = tensors[keys[factor]]
        if info.dtype not in FACTORS:
            yield f"{keys[factor]} is {info.dtype}, not a floating type of 16 bits or more"
        if info.repeats:
            yield f"{keys[factor]} repeats its numbers (strides {list(info.strides or ())})"
        if len(info.shape) != 2 or 0 in info.shape:
            yield f"{keys[factor]} has shape {list(info.shape)}, not two dimensions with a rank of 1 or more"
    if len(keys) == 2:
        a, b = tensors[keys["A"]].shape, tensors[keys["B"]].shape
        if len(a) == len(b) == 2 and a[0] != b[1]:
            yield f"{path}: A {list(a)} and B {list(b)} disagree on the rank"
