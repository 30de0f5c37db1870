"""What a file says of its origin: our own header entry, and which foreign entries stay true after a conversion."""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any, Literal

from loraforge.errors import ScaleError, Try, adding
from loraforge.files.digest import seal_of
from loraforge.files.tensorfile import KEY, TensorFile
from loraforge.scale.resolve import given
from loraforge.scale.rule import Choice, Rule, Scale, Statement, number, overriding
from loraforge.scale.run_folders import states_scale

_HASHES = re.compile(r"sshs_.*|modelspec\.hash_sha256")
"""Entries that hold a hash of the old tensors."""
WITHHELD = "(not shown)"
"""Stands for a text of a header that is not shown or not published."""
_LONGEST = 4000
"""Letters of a recorded command."""
VERBS = frozenset(("convert", "convert-base", "extract", "fuse", "merge", "resize", "stamp"))
"""The verbs whose command a written file records."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a file converted by loraforge says about its source; empty if loraforge did not write it."""

    scale: Scale | None = None
    base_model: str | None = None
    folded: bool = False
    """Whether the scale is in the tensors: they are right at 1.0."""
    applied: tuple[float, ...] = ()
    """The distinct scalings that readers should apply, as of when it was written; empty if the entry has none."""
    config: str = ""
    """The digest of the LoraConfig that was written beside the file; empty if none was."""
    tensors: Literal["the same", "others", "not compared"] = "not compared"
    """Whether the entry was written for the tensors beside it. If for others, it claims nothing: `scale` is None."""

    def settle(
        self, scale: Scale, rule: Rule, stated: Statement, ranks: Mapping[str, int], where: str,
        config: Mapping[str, Any] | None = None,
    ) -> Scale:  # fmt: skip
        """How well the scale is known, given that `rule` records it now, in `config` if that is a LoraConfig.

        A scale that loraforge recorded is known no better than it was in the source, unless it is stated now.
        Raises ScaleError if the recorded scale is not the one that was written with these tensors.
        """
        if scale.provenance != "recorded" or self.scale is None:
            return scale
        now = sorted({rule.of(path, rank) for path, rank in ranks.items()})
        same = not self.applied or (_all_in(now, self.applied) and _all_in(self.applied, now))
        if same and (not self.config or config is None or digest_of(config) == self.config):
            claim = given(stated, ranks) if self.scale.provenance == "assumed" else None
            return Scale("given", claim.said) if claim else self.scale
        then, here = (", ".join(f"{value:g}" for value in values) for values in (self.applied, now))
        ways = ((self.applied, "what was written"), (now, "what it says now"))
        choices = [overriding("--trained-scale", values[0], f"use {what}") for values, what in ways if len(values) == 1]
        says = f"makes it {here}" if not same else "is not the configuration that was written with them"
        raise ScaleError(
            f"{where}: loraforge wrote these tensors to act at scale {then}, and {rule.said} {says}. "
            "One of the two was changed since, or they are of different conversions.",
            *choices,
        )


def digest_of(config: Mapping[str, Any]) -> str:
    """The digest of what a LoraConfig says of ranks and scales; names of base models and the like may change."""
    said = {key: config.get(key) for key in _SCALING if config.get(key)}
    targets = said.get("target_modules")
    said |= {"target_modules": sorted(map(str, targets))} if isinstance(targets, list) else {}  # PEFT has a set
    return f"sha256:{hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()}"


_SCALING = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "target_modules")


def _all_in(some: Sequence[float], others: Sequence[float]) -> bool:
    """Whether each of the numbers is among the others, up to rounding."""
    return all(any(math.isclose(one, other, rel_tol=1e-9) for other in others) for one in some)


def history(metadata: Mapping[str, str]) -> tuple[dict[str, Any], ...]:
    """The conversions that led to a file, the latest first: tool, command, source and scale, if of the right shape."""
    own = own_entry(metadata)
    earlier = own.get("earlier")
    steps = [_step(step) for step in (own, *(earlier if isinstance(earlier, list) else ()))]
    return tuple(step for step in steps if step)


def _step(entry: Any) -> dict[str, Any] | None:
    match entry:
        case {
            "tool": str(tool),
            "command": str(typed),
            "source": {"path": str(path), "format": str(form), "size": int(size), "digest": str(digest)},
            "scale": {"provenance": str(provenance), "source": str(words), "scalings": [*scalings]},
        } if scalings and all(number(value) is not None for value in scalings):
            source = {"path": path, "format": form, "size": size, "digest": digest}
            scale = {"provenance": provenance, "source": words, "scalings": scalings}
            command = typed if is_command(typed) else WITHHELD
            return {"tool": tool, "command": command, "source": source, "scale": scale}
    return None


def is_command(text: object) -> bool:
    """Whether a recorded command, which anybody can write, is `loraforge VERB ...` and nothing else for a shell."""
    if not isinstance(text, str) or len(text) > _LONGEST or not text.isprintable() or set(text) & set(";&|<>$`#\\"):
        return False
    with suppress(ValueError):
        match shlex.split(text):
            case ["loraforge", verb, *_]:
                return verb in VERBS
    return False


def own_entry(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The content of our entry in a header, which anybody can write; empty if it cannot be read."""
    with suppress(ValueError, RecursionError):
        if isinstance(entry := json.loads(metadata.get(KEY, "null")), dict):
            return entry
    return {}


CHANGED = "loraforge wrote its entry for other tensors, which were changed since: by a merge or resize script"
"""Why no scale is known if the tensors are not those beside which loraforge recorded it."""


def kept(known: Origin) -> list[Try]:
    """What to type if the tensors were changed and the scale was not."""
    why = "if the change left the scale that loraforge wrote"
    return [adding("--trained-scale", f"{v:.12g}", why=f"{why}: scale {v:g}", scale=v) for v in known.applied[:3]]


def unsealed(known: Origin, choice: Choice) -> list[str]:
    """A note if tensors were to be compared with our entry, and it is of a version that did not seal it."""
    text = "loraforge's entry in it is of an older version: it was not compared with the tensors"
    return [text] if choice.compare and known.scale and known.tensors == "not compared" else []


def seal(file: TensorFile, keys: Sequence[str], choice: Choice) -> Callable[[], str] | None:
    """The seal of the tensors, to be read when it is needed; None if they are not to be read, or not here."""
    return partial(seal_of, file, keys) if choice.compare and not file.absent else None


def origin(metadata: Mapping[str, str], seal: Callable[[], str] | None = None) -> Origin:
    """What our entry in a header says; an entry of another shape counts as none.

    `seal`: reads the tensors beside it, and is called if the entry was sealed; None if only a header is at hand.
    """
    said = own_entry(metadata)
    sealed = said.get("tensors")
    compared = seal is not None and isinstance(sealed, str)
    if compared and seal and seal() != sealed:
        return Origin(applied=_numbers(said.get("applied")), tensors="others")
    match said:
        case {"scale": {"provenance": "recorded" | "given" | "assumed" as provenance, "source": str(words)}}:
            base, program = said.get("base_model"), said["scale"].get("program")
            words = words.removesuffix("; folded in by loraforge").removesuffix("; recorded by loraforge")
            program = program if isinstance(program, str) else ""
            known = Scale(provenance, words, program=program, trained=() if program else _trained(metadata))
            config, folded = said.get("config"), said.get("stored") == "tensors"
            return Origin(
                known, base if isinstance(base, str) else None, folded, _numbers(said.get("applied")),
                config if isinstance(config, str) else "", "the same" if compared else "not compared",
            )  # fmt: skip
    return Origin()


def _numbers(values: object) -> tuple[float, ...]:
    return tuple(v for v in map(number, values) if v is not None) if isinstance(values, list) else ()


def _trained(metadata: Mapping[str, str]) -> tuple[float, ...]:
    """The scalings of training: those of the earliest conversion with the same source of the scale as the last."""
    steps = history(metadata)
    same = list(takewhile(lambda step: step["scale"]["source"] == steps[0]["scale"]["source"], steps))
    return tuple(float(value) for value in same[-1]["scale"]["scalings"]) if same else ()


def carried_over(metadata: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The foreign entries that stay true of the adapter in another file, and the keys of those that do not."""
    old = {key for key, text in metadata.items() if _HASHES.fullmatch(key) or states_scale(key, text)}
    kept = {key: text for key, text in metadata.items() if key not in (KEY, "format", *old)}  # writers state a format
    return kept, tuple(sorted(metadata.keys() - kept.keys() - {KEY, "format"}))
