"""Decides the scaling an adapter was trained at from what files record and the user states, never by guessing."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from loraforge.errors import ScaleError, Try, adding, no_such
from loraforge.scale.rule import Rule, Scale, Statement, overriding
from loraforge.tables import package_table
from loraforge.text import listed

STATES = frozenset(
    ("--alpha", "--trained-scale", "--trained-by", "--training-config", "--as-in", "--as-loaded", "--override-scale")
)
"""The options that state a scale."""


def resolve(
    recorded: Sequence[Rule], stated: Statement, ranks: Mapping[str, int], *,
    default: Rule | None, unknown: str, bare: bool = False,
) -> tuple[Rule, Scale]:  # fmt: skip
    """The rule that holds, and its provenance.

    `ranks`: module path -> rank. `default` is the rule that holds if nothing is recorded; None if known trainers write
    indistinguishable files: then the scale is ambiguous and read as 1.0, and `unknown` says where it was looked for.
    `bare`: modules without a record act at 1.0, as in programs.
    Raises ScaleError if two recorded values disagree, if the statement contradicts the record (unless it overrides), if
    only some modules have a record, or if a recorded value is 0, negative or not a number.
    """
    claim = given(stated, ranks)
    if stated.trained_by and claim is None and not recorded:
        text = f"--trained-by {stated.trained_by} says how its alphas are meant, and it has none that count."
        raise ScaleError(text, adding("--trained-scale", "1", why="lora_alpha was equal to the rank: scale 1"))
    if claim is not None and (stated.override or not recorded):
        return claim, Scale("given", claim.said)
    for rule in recorded:
        _check(rule, ranks)
    for rule in recorded[1:]:
        _agree(recorded[0], rule, ranks)
    if claim is not None:
        for rule in recorded:
            _agree(rule, claim, ranks, adding("--override-scale", why=f"use {claim.said}"))
    whole = [rule for rule in recorded if rule.covers is None or rule.covers >= ranks.keys()]
    if whole:
        return whole[0], Scale("recorded", whole[0].said, whole[0].file)
    if claim is not None:
        return claim, Scale("given", claim.said)
    if recorded and bare:
        scalings = {path: recorded[0].of(path, rank) for path, rank in _both(ranks, recorded[0])}
        return Rule(recorded[0].said, scaling=1.0, exceptions=scalings), Scale("recorded", recorded[0].said)
    if recorded:
        raise _in_part(recorded[0], ranks)
    if default is not None:
        return default, Scale("assumed", default.said, default.file)
    return Rule("nothing is recorded", scaling=1.0), Scale("ambiguous", unknown)


def _in_part(rule: Rule, ranks: Mapping[str, int]) -> ScaleError:
    """The error if only some modules record a scale; theirs is offered before the one that loaders apply."""
    covers = rule.covers or frozenset()
    bare = [path for path in ranks if path not in covers]
    scales = {float(f"{rule.of(path, ranks[path]):.12g}") for path in covers}
    alphas = {float(f"{rule.of(path, ranks[path]) * ranks[path]:.12g}") for path in covers}
    tries = []
    if len(scales) == 1:
        tries = [overriding("--trained-scale", s, f"as the others: scale {s:g}") for s in scales]
    elif len(alphas) == 1:
        tries = [overriding("--alpha", a, f"as the others: alpha {a:g}, over each rank") for a in alphas]
    if scales != {1.0}:
        tries.append(overriding("--trained-scale", 1, "if 1.0 is right for all: scale 1"))
    return ScaleError(
        f"{rule.said}: that is the scale of {len(covers)} modules, and {len(bare)} have none ({listed(bare, 3)}): "
        "loaders apply 1.0 to those, and what training used is not known.",
        *tries,
    )


def given(stated: Statement, ranks: Mapping[str, int]) -> Rule | None:
    """The rule that the user states; None if nothing is stated. Raises ScaleError if no training can have used it."""
    for option, value in (("--alpha", stated.alpha), ("--trained-scale", stated.trained_scale)):
        if value is not None and not math.isfinite(value):
            raise ScaleError(f"{option} {value} is not a number an adapter can be trained at.")
    if stated.alpha is not None:
        return Rule(f"--alpha {stated.alpha:g}", alpha=stated.alpha)
    if stated.trained_scale is not None:
        return Rule(f"--trained-scale {stated.trained_scale:g}", scaling=stated.trained_scale)
    if stated.trained_by is None:
        return None
    trainers = package_table("facts/trainers")
    if "alpha" not in (trainer := trainers.get(stated.trained_by, {})):
        names = [name for name, entry in trainers.items() if "alpha" in entry]
        which = "whose files need the statement"
        raise no_such("trainer", stated.trained_by, names, kind=ScaleError, which=which)
    said = f"--trained-by {stated.trained_by}: {trainer['title']}, lora_alpha {trainer['alpha']}"
    if trainer["alpha"] == "recorded":
        return None
    if trainer["alpha"] == "rank":
        return Rule(said, scaling=1.0)
    if odd := sorted(set(ranks.values()) - set(trainer["ranks"])):
        usual = " or ".join(map(str, trainer["ranks"]))
        kept = f"if only the rank was changed: scale {trainer['alpha'] / odd[0]:g}"
        raise ScaleError(
            f"--trained-by {stated.trained_by} means rank {usual} and lora_alpha {trainer['alpha']}; this adapter has "
            f"rank {', '.join(map(str, odd))}, so its run was configured differently. State the alpha it used.",
            adding("--alpha", f"{trainer['alpha']}", why=kept),
        )
    return Rule(said, alpha=trainer["alpha"])


def _check(rule: Rule, ranks: Mapping[str, int]) -> None:
    for path, rank in _both(ranks, rule):
        scaling = rule.of(path, rank)
        if not math.isfinite(scaling) or scaling <= 0:
            text = f"{rule.said}: no training ends well at a scaling of {scaling:g}. State what it used."
            raise ScaleError(text, overriding("--trained-scale", 1, "if lora_alpha was equal to the rank: scale 1"))


def _agree(one: Rule, other: Rule, ranks: Mapping[str, int], *remedies: Try) -> None:
    for path, rank in _both(ranks, one, other):
        a, b = one.of(path, rank), other.of(path, rank)
        if not math.isclose(a, b, rel_tol=1e-9):
            text = f"two scales for {path}: {a:g} ({one.said}), but {b:g} ({other.said})."
            ways = ((a, one.said), (b, other.said))
            choices = [overriding("--trained-scale", value, f"use {said}") for value, said in ways]
            raise ScaleError(text, *(remedies or choices))


def _both(ranks: Mapping[str, int], *rules: Rule) -> list[tuple[str, int]]:
    """The modules that all of the rules cover, and their ranks."""
    covers = [rule.covers for rule in rules if rule.covers is not None]
    return [(path, rank) for path, rank in ranks.items() if not covers or all(path in one for one in covers)]
