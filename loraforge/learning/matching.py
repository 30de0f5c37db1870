"""Which rows of one checkpoint are which rows of the other, by their numbers alone. Names only group parameters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from loraforge.base.route import Piece
from loraforge.learning.checkpoint import Checkpoint, equal, hash_rows

if TYPE_CHECKING:
    from loraforge.algebra.lora import Array


@dataclass(slots=True)
class Matches:
    """What of B is what of A. Each key of B is in one of the first three fields."""

    runs: dict[str, tuple[Piece, ...]] = field(default_factory=dict)
    """Key of B -> the rows of A that it stacks, as few runs as there are."""
    undetermined: set[str] = field(default_factory=set)
    """Keys of B whose numbers stand in several places of A, or in several of B."""
    missing: set[str] = field(default_factory=set)
    """Keys of B with numbers that A has not got."""
    unused: set[str] = field(default_factory=set)
    """Keys of A with rows that B has not got: not even in a tensor that is undetermined."""


def match(a: Checkpoint, b: Checkpoint) -> Matches:
    """Find each tensor of B in A, and compare every bit of what matches."""
    of_a, of_b = hash_rows(a, b)
    matches = Matches()
    index = _Index(of_a)
    vectors = [key for key in b.keys if not b.is_matrix(key)]
    for key in b.keys:
        if b.is_matrix(key) and key in of_b and (runs := index.runs(of_b[key])) and equal(a, runs, b, key):
            matches.runs[key] = runs
    attempts: tuple[Callable[[str], tuple[Piece, ...] | None], ...] = (
        lambda key: _following(a, b, key, matches.runs),
        lambda key: _whole(a, b, key, index.runs(of_b[key])) if key in of_b else None,
        lambda key: _following(a, b, key, matches.runs),
    )
    for attempt in attempts:
        for key in vectors:
            if key not in matches.runs and (runs := attempt(key)) and equal(a, runs, b, key):
                matches.runs[key] = runs
    open_modules = {key.rpartition(".")[0] for key in b.keys if b.is_matrix(key) and key not in matches.runs}
    for key in b.keys:
        if key not in matches.runs:
            tied = key in of_b and bool(np.isin(of_b[key], index.known).all())
            follows = not b.is_matrix(key) and key.rpartition(".")[0] in open_modules
            (matches.undetermined if tied or follows else matches.missing).add(key)
    _account(a, matches, of_a, of_b)
    return matches


class _Index:
    """The rows of A by their hashes."""

    def __init__(self, of_a: Mapping[str, Array]) -> None:
        self.of_a, self.keys = of_a, list(of_a)
        self.bases = np.cumsum([0, *(len(rows) for rows in of_a.values())])
        self.rows = np.concatenate([*of_a.values(), _NONE])
        self.order = np.argsort(self.rows, kind="stable")
        self.known, counts = np.unique(self.rows, return_counts=True)
        self.once = counts == 1
        self.first = np.cumsum([0, *counts])[:-1]

    def runs(self, rows: Array) -> tuple[Piece, ...] | None:
        """The runs of A that tile these rows of B; None where rows are unknown, or where more than one tiling fits.

        A row that A has once says where it is from; the rows between such ones belong to the run that
        goes on over them, if that leaves neither a gap nor a choice.
        """
        if not len(self.known):
            return None
        place = np.searchsorted(self.known, rows).clip(max=len(self.known) - 1)
        sure = np.flatnonzero((self.known[place] == rows) & self.once[place])
        if not len(sure):
            return None
        source = self.order[self.first[place[sure]]]
        owner = np.searchsorted(self.bases, source, "right") - 1
        cuts = np.flatnonzero((np.diff(source - sure) != 0) | (np.diff(owner) != 0)) + 1
        tiles = list[tuple[int, Piece]]()
        bounds = [0, *(int(sure[cut]) for cut in cuts), len(rows)]
        for n, part in enumerate(np.split(np.arange(len(sure)), cuts)):
            first, last = int(sure[part[0]]), int(sure[part[-1]]) + 1
            key = self.keys[owner[part[0]]]
            start = int(source[part[0]] - self.bases[owner[part[0]]])
            low = int(sure[cuts[n - 1] - 1]) + 1 if n else 0
            before = _alike(rows[low:first][::-1], self.of_a[key][:start][::-1])
            after = _alike(rows[last : bounds[n + 1]], self.of_a[key][start + last - first :])
            tiles.append((first - before, Piece(key, start - before, start + last - first + after)))
        ends = [first + run.stop - run.start for first, run in tiles]
        return tuple(run for _, run in tiles) if [0, *ends] == [*(first for first, _ in tiles), len(rows)] else None


def _alike(rows: Array, others: Array) -> int:
    """How many rows are equal from the first on."""
    size = min(len(rows), len(others))
    differ = np.flatnonzero(rows[:size] != others[:size])
    return int(differ[0]) if len(differ) else size


def _whole(a: Checkpoint, b: Checkpoint, key: str, runs: tuple[Piece, ...] | None) -> tuple[Piece, ...] | None:
    """A vector that is one of A as a whole: its one run, in elements."""
    return (Piece(runs[0].key, 0, a.length(runs[0].key)),) if runs and a.length(runs[0].key) == b.length(key) else None


def _following(
    a: Checkpoint, b: Checkpoint, key: str, runs: Mapping[str, tuple[Piece, ...]]
) -> tuple[Piece, ...] | None:
    """Where a vector is if it is cut as another parameter of its module is, under the same name in A's modules."""
    module, _, name = key.rpartition(".")
    beside = [other for other in b.modules[module] if other in runs]
    for other in sorted(beside, key=lambda other: not b.is_matrix(other)):
        follows = tuple(Piece(f"{r.key.rpartition('.')[0]}.{name}", r.start, r.stop) for r in runs[other])
        pairs = zip(follows, runs[other], strict=True)
        if b.length(key) == b.length(other) and all(
            f.key in a.modules.get(f.key.rpartition(".")[0], ())
            and not a.is_matrix(f.key)
            and a.length(f.key) == a.length(r.key)
            for f, r in pairs
        ):
            return follows
    return None


def _account(a: Checkpoint, matches: Matches, of_a: Mapping[str, Array], of_b: Mapping[str, Array]) -> None:
    """Find the tensors of A that are unused. What shares one with an undetermined tensor is undetermined too."""
    matrices_first = sorted(a.keys, key=lambda key: not a.is_matrix(key))
    while True:
        used = defaultdict[str, list[tuple[int, int, str]]](list)
        for key, runs in matches.runs.items():
            for run in runs:
                used[run.key].append((run.start, run.stop, key))
        open_rows = np.concatenate([_NONE, *(of_b[key] for key in matches.undetermined if key in of_b)])
        matches.unused = set()
        open_modules, again = set[str](), set[str]()
        for key in matrices_first:
            spans = sorted(used[key])
            stops, starts = [0, *(stop for _, stop, _ in spans)], [*(start for start, _, _ in spans), a.length(key)]
            if spans and stops == starts:
                continue
            rows, module = of_a.get(key, _NONE), key.rpartition(".")[0]
            gaps = [rows[stop:start] for stop, start in zip(stops, starts, strict=True)] if a.is_matrix(key) else [rows]
            twice = any(stop > start for stop, start in zip(stops, starts, strict=True))
            tied = key in of_a and bool(np.isin(np.concatenate(gaps), open_rows).all())
            if twice or tied or module in open_modules:
                open_modules |= {module} if a.is_matrix(key) else set()
                again |= {other.rpartition(".")[0] for *_, other in spans}
            else:
                matches.unused.add(key)
        if not again:
            return
        for key in [key for key in matches.runs if key.rpartition(".")[0] in again]:
            del matches.runs[key]
            matches.undetermined.add(key)


_NONE: Array = np.empty(0, np.uint64)
