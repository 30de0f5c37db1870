"""Names that differ in a number alone, as the keys and the modules of the blocks of a model do."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import lru_cache

Kinds = Mapping[tuple[str, str], dict[str, str]]
"""What is before and after the first number of a name, a block's -> that number -> the name."""
_FIRST = re.compile(r"([._])(0|[1-9][0-9]{0,5})(?=[._])")


def _parted(name: str) -> tuple[str, str, str]:
    start, *rest = _FIRST.split(name, 1)
    return (start + rest[0], rest[1], rest[2]) if rest else (name, "", "")


@lru_cache(1 << 17)
def parted(name: str) -> tuple[str, str, str]:
    """A key or a module path: what is before its first number as programs write it, that number, and what is after it.

    All of the name and twice nothing if it has no number, or none that is within it.
    """
    return _parted(name)


def by_words(names: Iterable[str]) -> Kinds:
    """The names by their words."""
    kinds, start, number, head = defaultdict[tuple[str, str], dict[str, str]](dict), "", "", ""
    for name in names:
        if number and name.startswith(head):  # the keys of a block mostly follow one another
            end = name[len(head) - 1 :]
        else:
            start, number, end = _parted(name)
            head = f"{start}{number}{end[:1]}"
        kinds[start, end][number] = name
    return kinds
