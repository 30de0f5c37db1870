"""How a format spells the tensors of one module. Most formats are one KeyStyle and no code."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import ml_dtypes
import numpy as np

from loraforge.adapter.drop import patterns_for
from loraforge.algebra.dtypes import FACTORS, numpy_type
from loraforge.algebra.lora import LoraWeight
from loraforge.errors import FormatError, NamesError
from loraforge.files.tensorfile import TensorFile, TensorInfo
from loraforge.format.key_faults import _kernel_faults, _mixed, _pair_faults, _part_faults, _unknown
from loraforge.names.layout import Architecture
from loraforge.text import listed

if TYPE_CHECKING:
    from loraforge.algebra.lora import Array, Delta, LoraWeight

FACTOR_NAMES = ("A", "B", "magnitude", "alpha")


@dataclass(frozen=True, slots=True)
class Spelling:
    """The suffixes that follow a module path. `{name}` stands for the name of one adapter."""

    A: str
    B: str
    magnitude: str = ""
    """DoRA's; empty where the format has none."""
    alpha: str = ""
    """Of a tensor that holds lora_alpha; empty where the format has none."""


PEFT_SPELLINGS = (
    Spelling(".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"),
    Spelling(".lora_A.{name}.weight", ".lora_B.{name}.weight", ".lora_magnitude_vector.{name}.weight"),
)
"""As saved, and as it stands in a model that was saved whole."""


@dataclass(frozen=True, slots=True)
class Hit:
    """What one key says."""

    path: str
    factor: str
    """A, B, magnitude or alpha."""
    part: int
    spelled: str
    """How, without the module: all keys of one file are spelled alike."""
    prefix: str


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one pair of factors."""

    A: str
    B: str
    magnitude: str | None = None
    alpha: str | None = None


@dataclass(frozen=True, slots=True)
class KeyStyle:
    """The spellings a format reads; the first, behind the first prefix, is the one it writes."""

    spellings: tuple[Spelling, ...]
    prefixes: tuple[str, ...] = ("",)
    parts: bool = False
    """`.0`, `.1`, ... after the suffix: one pair per stacked segment."""
    sep: str = "."
    """What stands for the dots of a module path: kohya's names have `_`."""
    column: bool = False
    """Magnitudes are stored as [rows, 1], as LyCORIS has them, not as [rows]."""

    def parse(self, key: str) -> Hit | None:
        """What a key says; None where it is not of this style."""
        stem, part = key, 0
        if self.parts:
            stem, _, number = key.rpartition(".")
            if not (number.isascii() and number.isdecimal() and str(int(number[:6])) == number):
                return None
            part = int(number)
        prefix = next((prefix for prefix in self.prefixes if stem.startswith(prefix)), None)
        if prefix is None:
            return None
        for spelling in self.spellings:
            for factor in FACTOR_NAMES:
                suffix: str = getattr(spelling, factor)
                if suffix and (match := _ending(suffix).fullmatch(stem, len(prefix))):
                    name = match.groupdict().get("name", "")
                    return Hit(match["path"], factor, part, f"{prefix}...{spelling.A}".replace("{name}", name), prefix)
        return None

    def hits(self, keys: Iterable[str]) -> list[Hit]:
        """What the keys of this style say."""
        return [hit for key in keys if (hit := self.parse(key))]

    def find(self, tensors: Mapping[str, TensorInfo], arch: Architecture, layout: str) -> dict[str, list[Keys]]:
        """Module path -> the keys of its pairs in order, judged by names and shapes alone.

        Raises FormatError that lists every fault: keys outside the layout, modules no LoRA adapts, a lone A or B,
        two spellings, ranks that disagree, empty shapes, element types no factor has, parts missing.
        """
        found: dict[str, dict[int, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
        spelled, factors = dict[str, str](), defaultdict[str, set[str]](set)
        problems, unknown, spare = list[str](), list[str](), list[str]()
        stacks = {}
        for key in tensors:
            hit = self.parse(key)
            place = arch.layouts[layout].locate(hit.path, self.sep) if hit else None
            if hit is None or place is None:
                unknown.append(key)
                continue
            template, index = place
            path = template.fill(index)
            spelled.setdefault(hit.spelled, key)
            factors[hit.spelled].add(hit.factor)
            found[path][hit.part].setdefault(hit.factor, key)
            stacks[path] = arch.layouts[layout].modules[template]
        if unknown:
            problems += _unknown(unknown, arch)
        if len(spelled) > 1:
            raise FormatError(_mixed(spelled, factors.values()))
        modules = {}
        for path, blocks in sorted(found.items()):
            if all(keys.keys() == {"alpha"} for keys in blocks.values()):
                orphans = [keys["alpha"] for keys in blocks.values()]
                spare += orphans
                problems.append(f"{orphans[0]} is an alpha of {path}, which has no A and no B in the file")
                continue
            if what := arch.unadapted.get(stacks[path][0]):
                problems.append(f"{path} is a {what}, which no LoRA adapts")
                continue
            want = len(stacks[path]) if self.parts else 1
            if sorted(blocks) != list(range(want)):
                problems.append(f"{path} has parts {sorted(blocks)}, not the {want} of {', '.join(stacks[path])}")
                continue
            faults = [fault for _, keys in sorted(blocks.items()) for fault in _pair_faults(path, keys, tensors, self)]
            if not faults and arch.variants and len(shape := tensors[blocks[0]["A"]].shape) > 2:
                faults = _kernel_faults(path, shape, arch.layouts[layout], arch.kernels(stacks[path]))
            if not faults and self.parts:
                faults = _part_faults(path, [blocks[n] for n in range(want)], tensors, arch, stacks[path])
            problems += faults
            if not faults:
                modules[path] = [Keys(**blocks[n]) for n in range(want)]
        if problems:
            only_those = len(problems) == len(spare) + bool(unknown) * len(list(_unknown(unknown, arch)))
            kind = NamesError if unknown else FormatError
            raise kind(listed(problems), *(patterns_for([*unknown, *spare]) if only_those else ()))
        return modules

    def decode(
        self, file: TensorFile, found: Mapping[str, list[Keys]], scaling: Callable[[str, int], float]
    ) -> dict[str, Delta]:
        """The updates behind the keys, as views of the file. `scaling` takes module path and rank."""

        def weight(path: str, keys: Keys) -> LoraWeight:
            A, B = file[keys.A], file[keys.B]
            magnitude = None if keys.magnitude is None else file[keys.magnitude].reshape(-1)
            rank, kernel = A.shape[0], A.shape[2:]
            return LoraWeight(A.reshape(rank, -1), B.reshape(-1, rank), scaling(path, rank), magnitude, kernel)

        return {path: tuple(weight(path, keys) for keys in pairs) for path, pairs in found.items()}

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
            if spelling.alpha:
                yield f"{stem}{spelling.alpha}{end}", _alpha(w)

    def length_shape(self, rows: int, kernel: int) -> tuple[int, ...]:
        """Shape of a stored magnitude, of a module with a kernel of so many dimensions."""
        if self.column:
            return (rows, 1, *(1,) * kernel)
        return (1, rows, *(1,) * kernel) if kernel else (rows,)


def alphas(found: Mapping[str, list[Keys]], file: TensorFile) -> dict[str, float]:
    """Module path -> what its alpha tensor says, for the modules that have one. Raises FormatError for a wrong one."""
    said: dict[str, float] = {}
    for path, pairs in found.items():
        if (key := pairs[0].alpha) is None:
            continue
        info = file.tensors[key]
        if math.prod(info.shape) != 1 or info.dtype not in (*FACTORS, *_SMALL, *_INTEGERS):
            raise FormatError(f"{key} is {info.dtype} {list(info.shape)}, not one number")
        raw = bytes(file.raw(key))  # not the tensor: of one that was not fetched, no number may be made
        if info.dtype in _INTEGERS:
            said[path] = int.from_bytes(raw, "little", signed=info.dtype.startswith("I"))
        else:
            small = _SMALL.get(info.dtype)
            said[path] = float(np.frombuffer(raw, getattr(ml_dtypes, small) if small else numpy_type(info.dtype))[0])
    return said


_INTEGERS = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8")
_SMALL = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}


def _alpha(w: LoraWeight) -> Array:
    """lora_alpha as trainers store it: one number, in float32 unless that would round it."""
    alpha = np.asarray(w.scaling * w.rank, np.float64)
    return alpha if alpha.astype(np.float32) != alpha else alpha.astype(np.float32)


def ranks(found: Mapping[str, list[Keys]], tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Module path -> the rank of its first pair."""
    return {path: tensors[keys[0].B].shape[1] for path, keys in found.items()}


@cache
def _ending(suffix: str) -> re.Pattern[str]:
    return re.compile("(?P<path>.*)" + re.escape(suffix).replace(r"\{name\}", r"(?P<name>[^.]+)"), re.DOTALL)
