"""How a format spells the tensors of one module. Most formats are one KeyStyle and no code."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import NamedTuple

import numpy as np

from loraforge.adapter.adapter import Views
from loraforge.adapter.drop import patterns_for
from loraforge.algebra.dtypes import FACTORS, FLOATS, numpy_type, widened
from loraforge.algebra.lora import Array, Delta, LoraWeight
from loraforge.errors import FormatError, NamesError
from loraforge.files.tensorfile import TensorFile, TensorInfo
from loraforge.format.key_faults import mixed, module_faults, unknown
from loraforge.format.sorting import WHOLE, Alike, ending, parts_of, spelled_as, taken_apart
from loraforge.names.layout import Architecture, Layout
from loraforge.numbered import Kinds, by_words, parted
from loraforge.text import listed

FACTOR_NAMES = ("A", "B", "magnitude", "alpha")


@dataclass(frozen=True, slots=True)
class Spelling:
    """The suffixes that follow a module path. `{name}` is the name of an adapter."""

    A: str
    B: str
    magnitude: str = ""
    """DoRA's; empty if the format has none."""
    alpha: str = ""
    """The suffix of a tensor that holds lora_alpha; empty if the format has none."""


PEFT_SPELLINGS = (
    Spelling(".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"),
    Spelling(".lora_A.{name}.weight", ".lora_B.{name}.weight", ".lora_magnitude_vector.{name}.weight"),
    Spelling(".lora_A.{name}.weight", ".lora_B.{name}.weight", ".dora_scale", ".alpha"),
)
"""As PEFT saves an adapter, as the keys are in a model that was saved whole, and what OneTrainer has beside them."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A key, taken apart."""

    path: str
    factor: str
    """A, B, magnitude or alpha."""
    part: int
    spelled: str
    """The spelling without the module path: it is the same for all factors of a file, and begins that of the rest."""
    prefix: str
    sep: str = "."
    """What stands for the dots of a module path."""
    stripped: tuple[str, ...] = ()
    """Words in the path that are no part of it."""


class Keys(NamedTuple):
    """The keys of one pair of factors."""

    A: str
    B: str
    magnitude: str | None
    alpha: str | None
    like: Like


class Like(NamedTuple):
    """What holds of a pair in all modules that are alike."""

    A: TensorInfo
    B: TensorInfo
    """Of the first module: its type and shape are those of all."""
    stack: tuple[str, ...]
    """The segments of the module."""
    rows: slice
    """The rows of B and of the magnitude that are the module's: all, unless it is a part of a fused module."""
    linear: bool
    """Whether the factors are stored as 1x1 convolutions of a module that is none."""


_MOST_KINDS = 1 << 16
_FIRST = re.compile(r"(?<![^._])(?:0|[1-9]\d{0,5})(?![^._])", re.ASCII)
_Parsed = tuple[tuple[Hit, ...], list[list[str]] | None]
"""The readings of a key, and what stands before and after the block number in each path; None if there is none."""
_COLUMN = ".dora_scale"
"""LyCORIS's word for a magnitude, which it stores as [rows, 1] (modules/locon.py)."""


def kinds(file: TensorFile) -> tuple[str, ...]:
    """One key of each kind: keys that differ only in their first number, a block's, are of one kind."""
    return tuple(next(reversed(keys.values())) for keys in file.kinds.values())


def few(file: TensorFile) -> TensorFile:
    """The file with the keys of as few blocks as have every kind of key, for what names alone decide."""
    numbers = {next(reversed(keys)) for keys in file.kinds.values()}
    shown = {keys[number] for keys in file.kinds.values() for number in numbers & keys.keys()}
    return replace(file, tensors={key: info for key, info in file.tensors.items() if key in shown})


@dataclass(frozen=True, slots=True)
class KeyStyle:
    """The spellings that a format reads. It writes the first one, behind the first prefix."""

    spellings: tuple[Spelling, ...]
    prefixes: tuple[str, ...] = ("",)
    parts: bool = False
    """`.0`, `.1`, ... after the suffix: one pair per stacked segment."""
    sep: str = "."
    """What replaces the dots of a module path: `_` in kohya's names."""
    column: bool = False
    """Magnitudes are stored as [rows, 1], as LyCORIS does, not as [rows]."""
    _parsed: dict[tuple[str, str], _Parsed] = field(default_factory=dict, init=False, repr=False, compare=False)
    """The readings of one key of each kind."""

    def parse(self, key: str) -> tuple[Hit, ...]:
        """A key, taken apart: one reading, none if it is not of this style, several for the parts of a fused module."""
        start, number, rest = parted(key)
        if not number:
            return self._readings(key)
        kind = start, rest
        if kind not in self._parsed:
            if len(self._parsed) >= _MOST_KINDS:
                self._parsed.clear()
            hits = self._readings(f"{start}0{rest}")
            ends: list[list[str]] = [_FIRST.split(hit.path, maxsplit=1) for hit in hits]
            whose = all(len(end) == 2 for end in ends) and not any(parted(prefix)[1] for prefix in self.prefixes)
            self._parsed[kind] = hits, ends if hits and whose else None
        hits, known = self._parsed[kind]
        if number == "0":
            return hits
        if known is None:  # the number is no block's: it may be in the adapter's name
            return self._readings(key)
        return tuple(
            Hit(f"{end[0]}{number}{end[1]}", hit.factor, hit.part, hit.spelled, hit.prefix, hit.sep, hit.stripped)
            for hit, end in zip(hits, known, strict=True)
        )

    def _readings(self, key: str) -> tuple[Hit, ...]:
        stem, part = key, 0
        if self.parts:
            stem, _, number = key.rpartition(".")
            if not (number.isascii() and number.isdecimal() and str(int(number[:6])) == number):
                return ()
            part = int(number)
        prefix = max(filter(stem.startswith, self.prefixes), key=len, default=None)
        if prefix is None:
            return ()
        for spelling in self.spellings:
            for factor in FACTOR_NAMES:
                suffix: str = getattr(spelling, factor)
                if suffix and (match := ending(suffix).fullmatch(stem, len(prefix))):
                    spelled = spelled_as(prefix, spelling.A, factor, match)
                    paths = parts_of(match["path"], self.sep)
                    return tuple(Hit(path, factor, part, spelled, prefix, self.sep) for path in paths)
        return ()

    def hits(self, keys: Iterable[str]) -> list[Hit]:
        """The keys of this style; not the alphas, whose word is that of many."""
        return [hit for key in keys for hit in self.parse(key) if hit.factor != "alpha"]

    def find(
        self, tensors: Mapping[str, TensorInfo], arch: Architecture, layout: str, kinds: Kinds | None = None
    ) -> dict[str, list[Keys]]:
        """Module path -> the keys of its pairs in order, judged by names and shapes alone.

        `kinds`: those of the file, which may have other keys too.

        Raises FormatError that lists every fault: keys outside the layout, modules that no LoRA adapts, A without B,
        two spellings, ranks that disagree, empty shapes, wrong element types, missing parts.
        """
        own = arch.layouts[layout]
        found = taken_apart(self, tensors, kinds or by_words(tensors), own)
        if len(found.spelled) > 1:
            raise FormatError(mixed(found.spelled, found.factors.values()))
        names, orphans = list(unknown(found.strange, arch)), dict[str, str]()
        faults, modules = dict[str, list[str]](), dict[str, list[Keys]]()
        for alike in found.modules:
            if all({*kinds} == {"alpha"} for kinds in alike.parts.values()):
                orphans |= {alike.path(n): alike.pairs(n)[0]["alpha"] for n in alike.numbers}
            for number in alike.numbers:
                if not (what := list(self._faults(alike, number, tensors, arch, own))):
                    modules.update(self._modules(alike, arch))
                    break  # nor is anything wrong with those that are like it
                faults[alike.path(number)] = what
        if problems := [*names, *found.doubled, *(what for _, each in sorted(faults.items()) for what in each)]:
            only_those = len(problems) == len(names) + len(orphans)
            kind, keys = NamesError if found.strange else FormatError, [key for _, key in sorted(orphans.items())]
            raise kind(listed(problems), *(patterns_for([*found.strange, *keys]) if only_those else ()))
        return {path: modules[path] for path in sorted(modules)}

    def _faults(
        self, alike: Alike, number: str, tensors: Mapping[str, TensorInfo], arch: Architecture, layout: Layout
    ) -> Iterator[str]:
        """What is wrong with one module."""
        path, pairs, stack = alike.path(number), alike.pairs(number), alike.stack
        want = len(stack) if self.parts else 1
        if all(keys.keys() == {"alpha"} for keys in pairs):
            yield f"{pairs[0]['alpha']} is an alpha of {path}, which has no A and no B in the file"
        elif what := arch.unadapted.get(stack[0]):
            yield f"{path} is a {what}, which no LoRA adapts"
        elif [*alike.parts] != list(range(want)):
            yield f"{path} has parts {[*alike.parts]}, not the {want} of {', '.join(stack)}"
        elif faults := list(module_faults(path, pairs, tensors, arch, layout, self)):
            yield from faults
        elif alike.rows(arch) is None:
            yield f"the {tensors[pairs[0]['B']].shape[0]} rows of {pairs[0]['B']} cannot be divided"

    def _modules(self, alike: Alike, arch: Architecture) -> Iterator[tuple[str, list[Keys]]]:
        """The modules that are alike, and have no fault."""
        # without a released model only the file shows which modules are convolutions
        linear, rows = bool(arch.variants) and not arch.kernel_sizes(alike.stack), alike.rows(arch) or WHOLE
        pairs = []
        for kinds in alike.parts.values():
            keys = [[kinds[f].keys[n] for n in alike.numbers] if f in kinds else repeat(None) for f in FACTOR_NAMES]
            pairs.append(map(Keys, *keys, repeat(Like(kinds["A"].info, kinds["B"].info, alike.stack, rows, linear))))
        return zip(map(alike.path, alike.numbers), map(list, zip(*pairs, strict=True)), strict=True)

    def decode(self, file: TensorFile, found: Mapping[str, list[Keys]], scaling: Callable[[str, int], float]) -> Views:
        """The updates of the keys, as views of the file. `scaling` is called with module path and rank."""

        def read(paths: Iterable[str]) -> dict[str, Delta]:
            chosen = {path: found[path] for path in paths}
            each = [
                key for pairs in chosen.values() for keys in pairs for key in (keys.A, keys.B, keys.magnitude) if key
            ]
            views = map(widened, file.views(each))
            return {path: tuple(weight(path, keys, views) for keys in pairs) for path, pairs in chosen.items()}

        def weight(path: str, keys: Keys, views: Iterator[Array]) -> LoraWeight:
            A, B = next(views), next(views)
            B = B if keys.like.rows is WHOLE else B[keys.like.rows]
            magnitude = next(views).reshape(-1)[keys.like.rows] if keys.magnitude else None
            rank, kernel = A.shape[0], () if keys.like.linear else A.shape[2:]
            if A.ndim > 2:
                A, B = A.reshape(rank, -1), B.reshape(-1, rank)
            return LoraWeight(A, B, scaling(path, rank), magnitude, kernel)

        groups = defaultdict[tuple[int, float], list[str]](list)
        for path, (first, *_) in found.items():
            groups[id(first.like), scaling(path, first.like.B.shape[1])].append(path)
        for part in file.maps if not file.absent else ():  # what is read is the file as it is now
            part.memory()
        return Views(found, [*groups.values()], read)

    def encode(self, path: str, delta: Delta) -> Iterator[tuple[str, Array]]:
        """The keys and tensors of one module that already fits this style."""
        spelling = self.spellings[0]
        stem = self.prefixes[0] + path.replace(".", self.sep)
        for part, w in enumerate(delta):
            end = f".{part}" if self.parts else ""
            ones = (1,) * len(w.kernel)
            yield f"{stem}{spelling.A}{end}", w.A.reshape(w.rank, -1, *w.kernel) if ones else w.A
            yield f"{stem}{spelling.B}{end}", w.B.reshape(w.rows, w.rank, *ones) if ones else w.B
            if w.magnitude is not None:
                yield f"{stem}{spelling.magnitude}{end}", w.magnitude.reshape(self.length_shape(w.rows, len(ones)))
            if spelling.alpha:  # one number, in float32 unless that would round it
                alpha = np.asarray(w.scaling * w.rank, np.float64)
                short = alpha.astype(np.float32)
                yield f"{stem}{spelling.alpha}{end}", short if short == alpha else alpha

    def length_shape(self, rows: int, kernel: int, key: str = "") -> tuple[int, ...]:
        """The shape of a magnitude stored as `key`; `kernel`: the number of dimensions of the module's kernel."""
        if self.column or key.endswith(_COLUMN):
            return (rows, 1, *(1,) * kernel)
        return (1, rows, *(1,) * kernel) if kernel else (rows,)


def alphas(found: Mapping[str, list[Keys]], file: TensorFile) -> dict[str, float]:
    """Module path -> the value of its alpha tensor, if it has one. Raises FormatError if it is not one number."""
    groups, values = defaultdict[tuple[str, tuple[int, ...], int], dict[str, int]](dict), dict[str, float]()
    for path, pairs in found.items():
        if key := pairs[0].alpha:
            dtype, shape, offset, _, part = file.tensors[key]
            groups[dtype, shape, part][path] = offset
    for (dtype, shape, part), offsets in groups.items():
        if math.prod(shape) != 1 or (kind := _ALPHA_TYPES.get(dtype)) is None:
            raise FormatError(f"{found[next(iter(offsets))][0].alpha} is {dtype} {list(shape)}, not one number")
        content = np.frombuffer(file.maps[part].memory(), np.uint8)  # refuses what was not fetched
        numbers = content[np.add.outer([*offsets.values()], range(kind.itemsize))].view(kind)
        values |= zip(offsets, numbers[:, 0].tolist(), strict=True)
    return {path: values[path] for path in found if path in values}


_ALPHA_TYPES = {
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    **{name: numpy_type(name) for name in FLOATS},
}
"""The types that an alpha may have: those of factors, and integers."""


def ranks(found: Mapping[str, list[Keys]]) -> dict[str, int]:
    """Module path -> the rank of its first pair."""
    return {path: keys[0].like.B.shape[1] for path, keys in found.items()}


def altered(found: Mapping[str, list[Keys]]) -> list[str]:
    """Notes on what is read otherwise than it is stored; each is exact."""
    pairs = [keys for each in found.values() for keys in each]
    cut = {keys.B for keys in pairs if keys.like.rows is not WHOLE}
    short = sum(info.dtype not in FACTORS for keys in pairs for info in keys.like[:2])
    flat = sum(keys.like.linear and len(keys.like.A.shape) > 2 for keys in pairs)
    notes = {
        f"{len(cut)} fused modules like {min(cut, default='')} were cut into the modules they stack": len(cut),
        f"{short} factors of 8 bits were widened to bfloat16, which has each of their numbers": short,
        f"{flat} linear modules were stored as 1x1 convolutions": flat,
    }
    return [note for note, count in notes.items() if count]
