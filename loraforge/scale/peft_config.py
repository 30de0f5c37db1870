r"""PEFT's own rules: the rank and scaling that a LoraConfig gives each module, and the smallest such LoraConfig.

Sources: peft tuners/lora/layer.py (scaling, initialisations), tuners/lora/model.py and utils/other.py (patterns are
regular expressions matched as `(.*\.)?(key)$`, the first that matches wins), tuners/tuners_utils.py
(target_modules), diffusers utils/peft_utils.py (unknown keys raise). Patterns come from untrusted files: those with a
repetition, which could run for ever, are matched in a process of their own, which is stopped after a while.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from loraforge.errors import ScaleError
from loraforge.scale.rule import BELIEVE, Rule, number, over, overriding
from loraforge.tables import package_table
from loraforge.text import listed, shown

SECONDS = 3.0
"""For all patterns of one configuration together."""

MOST, LONGEST, MOST_NAMES = 10_000, 1_000, 100_000
"""Patterns of one configuration, letters of one, and entries of a list of modules or of blocks."""
MOST_WORK = 5_000_000
"""Names that all plain patterns of one configuration are compared with."""

_SIMPLE = re.compile(r"\^?(?:[\w.-]|\\\.)*", re.ASCII)
"""A pattern that matches names of one length, as its only sign is the dot for any letter."""

PROGRAM = """
import json, re, sys
patterns, texts, tail = json.load(sys.stdin)
found = []
for pattern in patterns:
    try:
        re.compile(pattern)  # alone: inside the tail, half of one may look whole
        match = re.compile(tail.replace("{}", pattern)).fullmatch
    except (re.error, RecursionError, OverflowError) as error:
        found.append(str(error) or type(error).__name__)
        continue
    found.append([n for n, text in enumerate(texts) if match(text)])
print(json.dumps(found))
"""


def unsupported(config: Mapping[str, Any]) -> str | None:
    """The entries of a LoraConfig that make it more than A and B; None if it is a plain LoRA or DoRA."""
    entries = package_table("scale/lora_config").items()
    odd = [(key, entry["means"]) for key, entry in entries if key in config and not _is_plain(config[key], entry)]
    return listed([f"{key} {_brief(config[key])} ({what})" for key, what in odd]) or None


def _is_plain(value: object, entry: Mapping[str, Any]) -> bool:
    if value is None or "plain" not in entry:
        return not value
    return value in entry["plain"] or str(value).lower().startswith(tuple(entry.get("begins", ())))


def rule(
    config: Mapping[str, Any], ranks: Mapping[str, int], where: str, file: str = "",
    live: Callable[[], Mapping[str, int]] = dict, dropped: Collection[str] = (),
) -> Rule:  # fmt: skip
    """The scaling that a LoraConfig gives each module. `where` it was found; `file`: the same if that is a path.

    `live`: returns module path -> components that are not exactly zero; called if a rank contradicts the tensors.
    `dropped`: names that were left out of the file, of which patterns may be.
    Raises ScaleError if a value has the wrong type, if a rank contradicts the tensors, or if a pattern matches no
    module or takes too long to match.
    """
    r, alpha, rslora = number(config.get("r")), number(config.get("lora_alpha")), config.get("use_rslora", False)
    if not file and alpha is not None and "r" not in config and not (config.keys() & {"rank_pattern", "alpha_pattern"}):
        return Rule(f"lora_alpha {alpha:g} in {where}", alpha, rslora=bool(rslora), file=file)
    if r is None or alpha is None:
        said = f"r {shown(config.get('r'))}, lora_alpha {shown(config.get('lora_alpha'))}"
        raise ScaleError(f"{where}: {said} are no numbers.", BELIEVE)
    if not isinstance(rslora, bool | None):
        raise ScaleError(f"{where}: use_rslora is {shown(rslora)}, neither true nor false.", BELIEVE)
    declared = _given(config, "rank_pattern", ranks, r, where, dropped)
    alphas = _given(config, "alpha_pattern", ranks, alpha, where, dropped)
    if odd := [path for path, rank in ranks.items() if declared[path] != rank]:
        raise _other_rank(odd, declared, ranks, live(), where, alphas, bool(rslora))
    exceptions = {path: over(alphas[path], rank, rslora=bool(rslora)) for path, rank in ranks.items()}
    values = f"r {r:g}, lora_alpha {alpha:g}{', rslora' if rslora else ''}"
    return Rule(f"{values} in {where}", alpha, exceptions=exceptions, file=file, values=values, has_rank=True)


def _other_rank(
    odd: list[str], declared: Mapping[str, float], ranks: Mapping[str, int], live: Mapping[str, int],
    where: str, alphas: Mapping[str, float], rslora: bool,
) -> ScaleError:  # fmt: skip
    """The error for ranks other than those of the tensors; padded tensors keep the scale of the declared rank."""
    first, text = odd[0], f"{where} says r {declared[odd[0]]:g} for {odd[0]}, but its tensors have rank {ranks[odd[0]]}"
    if not all(0 < live.get(path, ranks[path]) <= declared[path] < ranks[path] for path in odd):
        return ScaleError(f"{text}.", BELIEVE)
    scales = {float(f"{over(alphas[path], declared[path], rslora=rslora):.12g}") for path in ranks}
    tries = [overriding("--trained-scale", s, f"what it says of its r: scale {s:g}") for s in scales]
    return ScaleError(
        f"{text}, of which {ranks[first] - live[first]} components are exactly zero: they were padded, as PEFT does to "
        f"swap adapters in a compiled model, and the scale is that of r {declared[first]:g}.",
        *(tries if len(tries) == 1 else ()),
    )


def untargeted(config: Mapping[str, Any], paths: Collection[str], where: str) -> list[str]:
    """The modules that `target_modules` and the entries that narrow it leave out: PEFT would not load them.

    Raises ScaleError if an entry has a wrong type.
    """
    for name in ("target_modules", "exclude_modules", "layers_to_transform"):
        if isinstance(entries := config.get(name), list) and len(entries) > MOST_NAMES:
            raise ScaleError(f"{where}: {name} has {len(entries):,} entries; up to {MOST_NAMES:,} are read.", BELIEVE)
    targets, left = config.get("target_modules"), config.get("exclude_modules")
    meant = _named(targets, paths, f"{where}: target_modules")
    if targets is None or targets == "all-linear":
        meant = set(paths)
    elif isinstance(targets, list):  # a regular expression says it all
        meant &= _of_layers(config, paths, where) | set(targets)
    excluded = _named(left, paths, f"{where}: exclude_modules") if left else set()
    return [path for path in paths if path not in meant or path in excluded]


def _named(targets: object, paths: Collection[str], where: str) -> set[str]:
    """The paths that a list of endings or a regular expression matches."""
    if isinstance(targets, str):
        return _full_matches([targets], paths, where)[0]
    if isinstance(targets, list) and all(isinstance(target, str) for target in targets):
        known = frozenset(targets)  # a set, as a list from an untrusted file may be long
        return {p for p in paths if any(".".join(p.split(".")[n:]) in known for n in range(p.count(".") + 1))}
    if targets is not None:
        raise ScaleError(f"{where} is {_brief(targets)}, neither a list of names nor a pattern.", BELIEVE)
    return set()


def _of_layers(config: Mapping[str, Any], paths: Collection[str], where: str) -> set[str]:
    """The paths whose first block number is in `layers_to_transform`; all if that is not given."""
    blocks = config.get("layers_to_transform")
    if blocks is None or blocks == []:
        return set(paths)
    blocks = {n for n in (blocks if isinstance(blocks, list) else [blocks]) if isinstance(n, int)}
    stems = config.get("layers_pattern") or []
    stems = [stems] if isinstance(stems, str) else stems
    if not isinstance(stems, list) or not all(isinstance(stem, str) and stem.isidentifier() for stem in stems):
        raise ScaleError(f"{where}: layers_pattern is {_brief(stems)}, not a plain name.", BELIEVE)

    def block(path: str) -> int | None:
        """The first number after a stem; without stems, the first after two tokens, as in PEFT's pattern."""
        tokens = path.split(".")
        places = [n for n, token in enumerate(tokens[:-1]) if token.isdecimal()]
        return next((int(tokens[n]) for n in places if (tokens[n - 1] in stems if stems else n >= 2)), None)

    return {path for path in paths if (number := block(path)) is not None and number in blocks}


def config(
    ranks: Mapping[str, int],
    scalings: Mapping[str, float],
    *,
    dora: bool = False,
    bias: bool = False,
    older: bool = False,
) -> dict[str, Any]:
    """The smallest LoraConfig that gives every module its rank and scaling, and names no other module.

    Both patterns are always present: Diffusers 0.34 to 0.39 reads them without a default.
    `older`: for PEFT before 0.15 too, which looks up whole paths and knows no anchored patterns. The keys for it follow
    the others, so that newer versions, which take the first match, never use them.
    """
    alphas = {path: _tidy(scalings[path] * rank) for path, rank in ranks.items()}
    (r, alpha), _ = Counter((ranks[path], alphas[path]) for path in sorted(ranks)).most_common(1)[0]
    least: dict[str, Any] = {"r": r, "lora_alpha": alpha, "target_modules": sorted(ranks)}
    plain = {path for path in ranks if not any(q.endswith(f".{path}") for q in ranks)} if older else set()
    for name, values, most in (("rank_pattern", ranks, r), ("alpha_pattern", alphas, alpha)):
        odd = {path: value for path, value in sorted(values.items()) if value != most}
        least[name] = {"^" + path.replace(".", r"\."): value for path, value in odd.items()}
        least[name] |= {path: value for path, value in odd.items() if path in plain}
    return least | ({"use_dora": True} if dora else {}) | ({"lora_bias": True} if bias else {})


def _given(
    config: Mapping[str, Any], name: str, ranks: Mapping[str, int], default: float, where: str,
    dropped: Collection[str],
) -> dict[str, float]:  # fmt: skip
    """Module path -> the value of the first pattern that matches it, else the default."""
    patterns = config.get(name) or {}
    if not isinstance(patterns, dict):
        raise ScaleError(f"{where}: {name} is {_brief(patterns)}, not a table.", BELIEVE)
    values = dict.fromkeys(ranks, default)
    matches = _full_matches(patterns, {*ranks, *dropped}, f"{where}: {name}", r"(.*\.)?({})")
    matched = dict(zip(patterns, matches, strict=True))
    for key, value in reversed(patterns.items()):  # the first that matches wins
        given = number(value)
        if given is None and matched[key]:
            raise ScaleError(f"{where}: {name} gives {key:.80} the value {shown(value)}, not a number.", BELIEVE)
        values |= dict.fromkeys(matched[key] & ranks.keys(), given or 0.0)
    if idle := [key for key in patterns if not matched[key]]:
        word = "lora_alpha" if name == "alpha_pattern" else "r"
        meant = overriding("--alpha", default, f"if {word} {default:g} holds for all")
        raise ScaleError(
            f"{where}: {name} has {shown(idle[0])}: {shown(patterns[idle[0]])}, which matches none of the {len(ranks)} "
            f"modules (like {next(iter(ranks))}), where {word} {default:g} applies: which of the two training used is "
            "not known.",
            meant if name == "alpha_pattern" else BELIEVE,
        )
    return values


def _tidy(alpha: float) -> int | float:
    """lora_alpha as people write it: 1, not 0.9999999999999999."""
    short = float(f"{alpha:.12g}")
    return int(short) if short.is_integer() else short


def _brief(value: object) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return listed([str(item)[:40] for item in value], 3)
    return shown(value)


def _full_matches(patterns: Collection[str], texts: Collection[str], where: str, tail: str = "{}") -> list[set[str]]:
    """For each pattern, the texts that it matches as a whole. `tail`: the template into which each pattern is put.

    Raises ScaleError, which names `where`, if a pattern is no regular expression or if matching takes too long.
    """
    if len(patterns) > MOST or any(len(pattern) > LONGEST for pattern in patterns):
        raise ScaleError(f"{where}: patterns: more than {MOST:,}, or one of more than {LONGEST:,} letters.", BELIEVE)
    hard = [pattern for pattern in patterns if not _SIMPLE.fullmatch(pattern)]
    matches = dict(zip(hard, _apart(hard, list(texts), where, tail), strict=True)) if hard else {}
    matches |= _plainly([pattern for pattern in patterns if pattern not in matches], texts, where, ends=tail != "{}")
    return [matches[pattern] for pattern in patterns]


def _plainly(patterns: Sequence[str], texts: Collection[str], where: str, *, ends: bool) -> dict[str, set[str]]:
    """The same for simple patterns, without `re`. `ends`: one that has no ^ matches what follows a dot, too."""
    whole, parts = defaultdict[int, dict[str, set[str]]](dict), defaultdict[int, dict[str, set[str]]](dict)
    for text in texts:
        whole[len(text)][text] = {text}
        for start in (0, *(match.end() for match in re.finditer(r"\.", text))):
            parts[len(text) - start].setdefault(text[start:], set()).add(text)
    tables, work, found = dict[object, dict[tuple[str, ...], set[str]]](), 0, dict[str, set[str]]()
    for pattern in patterns:
        letters = pattern.removeprefix("^").replace(r"\.", "/")  # a dot in it is any letter, a slash is a dot
        length, any_letter = len(letters), [n for n, letter in enumerate(letters) if letter == "."]
        spans = tuple(zip([0, *(n + 1 for n in any_letter)], [*any_letter, length], strict=True))
        anchored = not ends or pattern.startswith("^")
        if (table := tables.get((anchored, spans))) is None:
            table = tables[anchored, spans] = {}
            held = (whole if anchored else parts)[length]
            if (work := work + len(held)) > MOST_WORK:
                raise ScaleError(f"{where}: the patterns take too long to match.", BELIEVE)
            for text, names in held.items():
                table.setdefault(tuple(text[start:stop] for start, stop in spans), set()).update(names)
        sought = letters.replace("/", ".")
        found[pattern] = table.get(tuple(sought[start:stop] for start, stop in spans), set())
    return found


def _apart(patterns: Sequence[str], texts: Sequence[str], where: str, tail: str) -> list[set[str]]:
    which = f"{where}: the pattern {listed(list(patterns), 1):.80}"
    try:
        done = subprocess.run(  # noqa: S603, our own program; what the stranger wrote is its input
            [sys.executable, "-I", "-S", "-c", PROGRAM],
            input=json.dumps([patterns, texts, tail]),
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=SECONDS,
            check=True,
        )
        results = json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise ScaleError(f"{which} takes too long to match.", BELIEVE) from error
    except (OSError, subprocess.CalledProcessError, ValueError) as error:
        raise ScaleError(f"{which} cannot be matched.", BELIEVE) from error
    for pattern, matched in zip(patterns, results, strict=True):
        if isinstance(matched, str):
            raise ScaleError(f"{where}: the pattern {pattern:.80} is no regular expression ({matched:.80}).", BELIEVE)
    return [{texts[n] for n in matched} for matched in results]
