"""Which trainers write files without a scale in a format, for an architecture, and the scales they may have used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from loraforge.errors import Try, adding
from loraforge.scale.rule import Rule
from loraforge.tables import package_table
from loraforge.text import listed


def writers(architecture: str, writes: str, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Name -> entry of facts/trainers.toml of the trainers that can have written a file that records no scale.

    `writes`: the format or family of formats. `metadata`: the header; if it names one of them, it is that one.
    Beside them, a tool whose entry says `*` writes such files of any model: it alone settles nothing.
    """
    known, named = dict[str, dict[str, Any]](), dict[str, dict[str, Any]]()
    for name, trainer in package_table("facts/trainers").items():
        of = [{architecture, "*"} & {*trainer.get(key, {}).get(writes, ())} for key in ("writes", "records")]
        known |= {name: trainer} if of[0] else {}
        named |= {name: trainer} if any(of) and _mark(trainer, metadata) else {}
    return named or known


def narrowed(architectures: Sequence[str], writes: str, metadata: Mapping[str, str]) -> list[str]:
    """The architectures that the trainer named in the header writes in this format; all of them if none is named."""
    marked = [t.get("writes", {}) for t in package_table("facts/trainers").values() if _mark(t, metadata)]
    mine = [name for name in architectures if any(name in each.get(writes, ()) for each in marked)]
    return mine or [*architectures]


def _mark(trainer: Mapping[str, Any], metadata: Mapping[str, str]) -> str:
    """The entry of the header that names a trainer; empty if none does."""
    return next(
        (key for key, word in trainer.get("header", {}).items() if key in metadata and word in metadata[key]), ""
    )


def agreed(known: Mapping[str, Mapping[str, Any]], writes: str, title: str, metadata: Mapping[str, str]) -> Rule | None:
    """The rule if whoever can have written the file trains at alpha = rank, and nobody can set another; else None."""
    always = all(trainer.get("fixed") and trainer["alpha"] == "rank" for trainer in known.values())
    if not always or not _of_the_model(known, writes):
        return None
    names = listed(titles(known))
    said = f"every known writer of {writes} files for {title} trains at alpha = rank: {names}"
    if mark := next(filter(None, (_mark(trainer, metadata) for trainer in known.values())), ""):
        said = f"{mark} in its header names {names}: alpha = rank"
    return Rule(f"no number in the file; {said}", scaling=1.0)


def _of_the_model(known: Mapping[str, Mapping[str, Any]], writes: str) -> bool:
    """Whether one of them is known to write the files of this very model."""
    return any("*" not in trainer.get("writes", {}).get(writes, ()) for trainer in known.values())


def differ(known: Mapping[str, Mapping[str, Any]], writes: str, title: str) -> str:
    """Why the trainers that can have written the file do not settle its scale."""
    if not _of_the_model(known, writes):
        return f"no trainer is known that writes {writes} files for {title} without it"
    if all(trainer["alpha"] == "rank" for trainer in known.values()):
        free = {name: trainer for name, trainer in known.items() if not trainer.get("fixed")}
        return f"alpha, by default the rank, can be set in {listed(titles(free))}"
    return f"trainers that write {writes} files differ"


def titles(known: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [str(trainer["title"]) for trainer in known.values()]


def candidates(ranks: Mapping[str, int], known: Mapping[str, Mapping[str, Any]]) -> list[Try]:
    """One addition to the command per scale that one of the trainers could have used. `known`: what `writers` gives."""
    tries, values = dict[float, Try](), sorted(set(ranks.values()))
    for name, trainer in known.items():
        for option, value, scale, why in _ways(name, trainer, values):
            tries.setdefault(scale, adding(option, value, why=f"{why}: scale {scale:g}", scale=scale))
    equal = titles({name: trainer for name, trainer in known.items() if trainer["alpha"] == "rank"})
    if equal or not known:
        why = f"lora_alpha was equal to the rank{f', as in {listed(equal, 4)}' if equal else ''}: scale 1"
        tries.setdefault(1.0, adding("--trained-scale", "1", why=why, scale=1.0))
    return list(tries.values())


def _ways(name: str, trainer: Mapping[str, Any], values: list[int]) -> list[tuple[str, str, float, str]]:
    """Option, value, scale and reason of each scale that a trainer with a number for alpha could have used."""
    alpha, title = trainer["alpha"], trainer["title"]
    if alpha == "rank":
        return []
    kept, ratio = alpha / values[-1], alpha / trainer["ranks"][0]
    if set(values) <= set(trainer["ranks"]):
        return [("--trained-by", name, kept, title)]
    if ratio == 1:
        return [("--trained-scale", "1", 1.0, title)]
    if alpha == 1:  # SAT's default, which no configuration sets
        return [("--alpha", "1", kept, title)]
    return [  # whoever changed the rank may have changed alpha too
        ("--alpha", f"{alpha}", kept, f"{title}, alpha left at {alpha}"),
        ("--trained-scale", f"{ratio:g}", ratio, f"{title}, alpha changed with the rank"),
    ]
