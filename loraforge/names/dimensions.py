"""The sizes of one model in symbols, solved over a file: `ff_in = ["4 d", "d"]`. Knows shapes alone."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

Term = tuple[int, str]
"""A size: a number times one symbol; the symbol is empty for a number alone."""
Sizes = tuple[Term, Term]
"""Rows and inputs of a segment's weight, a convolution's without its kernel."""

_TERM = re.compile(r"(?:([1-9][0-9]*)(?: |$))?([a-z][a-z0-9_]*)?")


def term(text: str) -> Term | None:
    """`4 d`, `d` or `64` as a term; None for anything else."""
    match = _TERM.fullmatch(text)
    return (int(match[1] or 1), match[2] or "") if match and text and not text.endswith(" ") else None


class Sized(NamedTuple):
    """A segment in a file, and the shape of its base weight."""

    module: str
    segment: str
    rows: int
    inputs: int

    def said(self) -> str:
        return f"{self.module} [{self.rows} x {self.inputs}]"


class Solution(NamedTuple):
    """One value per symbol, as far as the file shows it, and the modules that contradict it."""

    values: Mapping[str, int]
    odd: tuple[Sized, ...]
    """The smallest set of modules that contradict the others; empty if everything agrees."""
    split: bool = False
    """Whether neither side has a majority; then `odd` holds both."""


def solve(found: Sequence[Sized], table: Mapping[str, Sizes]) -> Solution:
    """The sizes of the model that these weights belong to. Segments without an entry in `table` are not used."""
    known = [one for one in dict.fromkeys(found) if one.segment in table]
    alike = Counter(one[1:] for one in known)
    says = {like: [*_says(like, table[like[0]])] for like in alike}
    votes = defaultdict[str, Counter[int]](Counter)
    for like, times in alike.items():
        for symbol, value in {*says[like]}:
            if symbol and value:
                votes[symbol][value] += times
    values = {symbol: counts.most_common(1)[0][0] for symbol, counts in votes.items()}
    expected = {**values, "": 1}
    wrong = {like for like, pairs in says.items() if any(expected.get(s) != v for s, v in pairs)}
    odd = tuple(one for one in known if one[1:] in wrong) if wrong else ()
    tied = any(len(top := counts.most_common(2)) == 2 and top[0][1] == top[1][1] for counts in votes.values())
    if not odd or not tied:
        return Solution(values, odd)
    contested = {s for s, counts in votes.items() if len(counts) > 1}
    wrong |= {like for like, pairs in says.items() if contested & {s for s, _ in pairs}}
    both = tuple(one for one in known if one[1:] in wrong)
    return Solution(values, both, split=True)


def _says(one: tuple[str, int, int], sizes: Sizes) -> Iterator[tuple[str, int]]:
    """Symbol and value of a segment's rows and inputs, 0 if the size is not a multiple.

    For a number alone, 1 if the size is that number.
    """
    for (times, symbol), size in zip(sizes, one[1:], strict=True):
        yield (symbol, 0 if size % times else size // times) if symbol else ("", int(size == times))


def wanted(segment: str, table: Mapping[str, Sizes], values: Mapping[str, int]) -> str:
    """`3072 x 3072`: the shape of a segment's weight in a model of these sizes."""
    return " x ".join(str(times * values[s]) if s in values else s for times, s in table[segment] if s) or "fixed"
