"""The scale of an adapter, per module, and what the user states about it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from loraforge.errors import Try, adding
from loraforge.text import options

Provenance = Literal["recorded", "given", "assumed", "ambiguous"]


@dataclass(frozen=True, slots=True)
class Scale:
    """Where the scaling of the modules comes from. The numbers themselves are in the modules."""

    provenance: Provenance
    source: str
    """One phrase: which file, key or flag said so, and what it said."""
    file: str = ""
    """The path in `source`, as the user knows it; empty if no file beside the adapter said so."""
    program: str = ""
    """The program whose behaviour is kept (`--as-in`); empty if the scale is that of training."""
    trained: tuple[float, ...] = ()
    """The scalings of training, if loraforge wrote the file and its own entry records them."""

    @property
    def portable(self) -> str:
        """`source` without folders: what a written file may say."""
        return self.source.replace(self.file, re.split(r"[\\/]", self.file)[-1]) if self.file else self.source


def over(alpha: float, rank: float, *, rslora: bool) -> float:
    """The scaling: alpha over the rank, or over its square root."""
    return alpha / (math.sqrt(rank) if rslora else rank)


@dataclass(frozen=True, slots=True)
class Rule:
    """One statement of scale: `alpha` over the rank, or the scaling itself, for all modules."""

    said: str
    """Who said it, and what: `lora_alpha 4 in training_config.yaml`."""
    alpha: float | None = None
    scaling: float | None = None
    rslora: bool = False
    """Whether alpha is divided by the square root of the rank."""
    exceptions: Mapping[str, float] = field(default_factory=dict)
    """Module path -> scaling, if it differs."""
    covers: frozenset[str] | None = None
    """The modules that the rule is about; None for all."""
    file: str = ""
    """The path in `said` of the file that says so, as the user knows it."""
    values: str = ""
    """`said` without the path, if it is from a configuration."""
    has_rank: bool = False
    """Whether the rank was recorded along with it, and agreed with the tensors."""

    def of(self, path: str, rank: int) -> float:
        if path in self.exceptions:
            return self.exceptions[path]
        return self.scaling if self.scaling is not None else over(self.alpha or 0.0, rank, rslora=self.rslora)


@dataclass(frozen=True, slots=True)
class Statement:
    """What the user says training used. It states a fact; it never multiplies."""

    alpha: float | None = None
    trained_scale: float | None = None
    trained_by: str | None = None
    as_in: str | None = None
    """Not what training used: the program whose behaviour is to be kept."""
    override: bool = False

    @property
    def options(self) -> tuple[str, ...]:
        """The same as options of the command line."""
        numbers = {"alpha": self.alpha, "trained_scale": self.trained_scale}
        names = {"trained_by": self.trained_by, "as_in": self.as_in, "override_scale": self.override}
        return tuple(options({**numbers, **names}))


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of several checkpoints the user wants, and what they state about its scale."""

    iteration: int | None = None
    ema: bool = False
    training_config: Path | None = None
    stated: Statement = field(default_factory=Statement)
    drop: tuple[str, ...] = ()
    """Patterns of modules and tensors to leave out."""
    architecture: str | None = None
    """The name given with `--architecture`."""
    compare: bool = False
    """Read the tensors too, to see whether our entry in the header was written for them."""
    program: bool = False
    """Read it as programs do: a module without a record acts at 1.0, and no file beside it is read."""


AS_LOADED = "diffusers"
"""The program that `--as-loaded` means."""


def overriding(option: str, value: float, why: str) -> Try:
    """The remedy that states a scale over whatever files record."""
    return adding(option, f"{value:.12g}", "--override-scale", why=why)


def unusual(scaling: float) -> str:
    """What is odd about a scale, in words after its number; empty if training can have used it."""
    if scaling <= 0:
        return "inverts the adapter" if scaling else "switches the adapter off"
    return "" if 1e-5 <= scaling <= 1e4 else "is hardly one of training, where it is lora_alpha / rank"


BELIEVE = overriding("--trained-scale", 1, "if the strength was right as loaders apply it")
"""The remedy if a LoraConfig is wrong."""


def number(value: object) -> float | None:
    """A number of a configuration file as float; None for anything else, and for integers no float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return None
