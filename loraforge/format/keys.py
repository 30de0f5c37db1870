"""How a format spells the tensors of one module. Most formats are one KeyStyle and no code."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import ml_dtypes
import numpy as np

from loraforge.adapter.drop import patterns_for
from loraforge.algebra.dtypes import FACTORS, numpy_type
from loraforge.algebra.lora import Array, Delta, LoraWeight
from loraforge.errors import FormatError, NamesError
from loraforge.files.tensorfile import TensorFile, TensorInfo
from loraforge.format.key_faults import mixed, module_faults, unknown
from loraforge.names.layout import Architecture
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
)
"""As PEFT saves an adapter, and as the keys are in a model that was saved whole."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A key, taken apart."""

    path: str
    factor: str
    """A, B, magnitude or alpha."""
    part: int
    spelled: str
    """The spelling without the module path: it is the same for all keys of a file."""
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
    """The spellings that a format reads. It writes the first one, behind the first prefix."""

    spellings: tuple[Spelling, ...]
    prefixes: tuple[str, ...] = ("",)
    parts: bool = False
    """`.0`, `.1`, ... after the suffix: one pair per stacked segment."""
    sep: str = "."
    """What replaces the dots of a module path: `_` in kohya's names."""
    column: bool = False
    """Magnitudes are stored as [rows, 1], as LyCORIS does, not as [rows]."""

    def parse(self, key: str) -> Hit | None:
        """A key, taken apart; None if it is not of this style."""
        stem, part = key, 0
        if self.parts:
            stem, _, number = key.rpartition(".")
            if not (number.isascii() and number.isdecimal() and str(int(number[:6])) == number):
                return None
            part = int(number)
        prefix = max(filter(stem.startswith, self.prefixes), key=len, default=None)
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
        return [hit for key in keys if (hit := self.parse(key))]

    def find(self, tensors: Mapping[str, TensorInfo], arch: Architecture, layout: str) -> dict[str, list[Keys]]:
        """Module path -> the keys of its pairs in order, judged by names and shapes alone.

        Raises FormatError that lists every fault: keys outside the layout, modules that no LoRA adapts, A without B,
        two spellings, ranks that disagree, empty shapes, wrong element types, missing parts.
        """
        found: dict[str, dict[int, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
        spelled, factors = dict[str, str](), defaultdict[str, set[str]](set)
        strange, orphans, own = list[str](), list[str](), arch.layouts[layout]
        for key in tensors:
            hit = self.parse(key)
            located = own.locate(hit.path, self.sep) if hit else None
            if hit is None or located is None:
                strange.append(key)
                continue
            template, index = located
            spelled.setdefault(hit.spelled, key)
            factors[hit.spelled].add(hit.factor)
            found[template.fill(index)][hit.part].setdefault(hit.factor, key)
        if len(spelled) > 1:
            raise FormatError(mixed(spelled, factors.values()))
        names = list(unknown(strange, arch))
        problems, modules = list(names), {}
        for path, parts in sorted(found.items()):
            stack = own.stacked(path)
            want = len(stack) if self.parts else 1
            pairs = [keys for _, keys in sorted(parts.items())]
            if all(keys.keys() == {"alpha"} for keys in pairs):
                orphans += [keys["alpha"] for keys in pairs]
                problems.append(f"{pairs[0]['alpha']} is an alpha of {path}, which has no A and no B in the file")
            elif what := arch.unadapted.get(stack[0]):
                problems.append(f"{path} is a {what}, which no LoRA adapts")
            elif sorted(parts) != list(range(want)):
                problems.append(f"{path} has parts {sorted(parts)}, not the {want} of {', '.join(stack)}")
            elif faults := list(module_faults(path, pairs, tensors, arch, own, self)):
                problems += faults
            else:
                modules[path] = [Keys(**keys) for keys in pairs]
        if problems:
            only_those = len(problems) == len(names) + len(orphans)
            kind = NamesError if strange else FormatError
            raise kind(listed(problems), *(patterns_for([*strange, *orphans]) if only_those else ()))
        return modules

    def decode(
        self, file: TensorFile, found: Mapping[str, list[Keys]], scaling: Callable[[str, int], float]
    ) -> dict[str, Delta]:
        """The updates of the keys, as views of the file. `scaling` is called with module path and rank."""

        def weight(path: str, keys: Keys) -> LoraWeight:
            A, B = file[keys.A], file[keys.B]
            magnitude = file[keys.magnitude].reshape(-1) if keys.magnitude else None
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
            if spelling.alpha:  # one number, in float32 unless that would round it
                alpha = np.asarray(w.scaling * w.rank, np.float64)
                short = alpha.astype(np.float32)
                yield f"{stem}{spelling.alpha}{end}", short if short == alpha else alpha

    def length_shape(self, rows: int, kernel: int) -> tuple[int, ...]:
        """The shape of a stored magnitude; `kernel`: the number of dimensions of the module's kernel."""
        if self.column:
            return (rows, 1, *(1,) * kernel)
        return (1, rows, *(1,) * kernel) if kernel else (rows,)


def alphas(found: Mapping[str, list[Keys]], file: TensorFile) -> dict[str, float]:
    """Module path -> the value of its alpha tensor, if it has one. Raises FormatError if it is not one number."""
    values: dict[str, float] = {}
    for path, pairs in found.items():
        if (key := pairs[0].alpha) is None:
            continue
        info = file.tensors[key]
        if math.prod(info.shape) != 1 or info.dtype not in (*FACTORS, *_ALPHA_TYPES):
            raise FormatError(f"{key} is {info.dtype} {list(info.shape)}, not one number")
        kind = _ALPHA_TYPES.get(info.dtype) or numpy_type(info.dtype)
        # `raw` refuses a tensor that was not fetched; file[key] would give numbers for it
        values[path] = np.frombuffer(file.raw(key), kind)[0].item()
    return values


_ALPHA_TYPES = {
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
}
"""The types that an alpha may have and a factor may not."""


def ranks(found: Mapping[str, list[Keys]], tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Module path -> the rank of its first pair."""
    return {path: tensors[keys[0].B].shape[1] for path, keys in found.items()}


@cache
def _ending(suffix: str) -> re.Pattern[str]:
    return re.compile("(?P<path>.*)" + re.escape(suffix).replace(r"\{name\}", r"(?P<name>[^.]+)"), re.DOTALL)
