"""Matches regular expressions from untrusted files by Python's own rules, without letting one run for ever.

Patterns without a repetition, which nearly all are, cannot run long and are matched here. The others are matched in a
process of their own, which is stopped after a while.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Collection, Sequence

from loraforge.errors import ScaleError
from loraforge.scale.rule import BELIEVE
from loraforge.text import listed

SECONDS = 3.0
"""For all patterns of one configuration together."""

MOST, LONGEST = 10_000, 1_000
"""Patterns of one configuration, and letters of one."""

_SIMPLE = re.compile(r"\^?(?:[\w.-]|\\\.)*", re.ASCII)

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


def full_matches(patterns: Collection[str], texts: Collection[str], where: str, tail: str = "{}") -> list[set[str]]:
    """For each pattern, the texts that it matches as a whole. `tail`: the template into which each pattern is put.

    Raises ScaleError, which names `where`, if a pattern is no regular expression or if matching takes too long.
    """
    if len(patterns) > MOST or any(len(pattern) > LONGEST for pattern in patterns):
        raise ScaleError(f"{where}: patterns: more than {MOST:,}, or one of more than {LONGEST:,} letters.", BELIEVE)
    hard = [pattern for pattern in patterns if not _SIMPLE.fullmatch(pattern)]
    matches = dict(zip(hard, _apart(hard, list(texts), where, tail), strict=True)) if hard else {}
    for pattern in patterns:
        if pattern not in matches:
            match = re.compile(tail.replace("{}", pattern)).fullmatch
            matches[pattern] = {text for text in texts if match(text)}
    return [matches[pattern] for pattern in patterns]


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
