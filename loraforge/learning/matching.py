"""Which rows of one checkpoint are which rows of the other, by their numbers alone. Names only group parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from loraforge.base.route import Piece
from loraforge.learning.checkpoint import NARROW, Checkpoint, equal
from loraforge.threads import in_order

if TYPE_CHECKING:
    from loraforge.algebra.lora import Array

Runs = dict[str, tuple[Piece, ...]]
"""Key of B -> the rows of A that it stacks, as few runs as there are."""


def match(a: Checkpoint, b: Checkpoint) -> tuple[Runs, list[str], list[str]]:
    """Find each tensor of B in A, and compare every bit of what matches.

    Returns the runs, the keys of B with numbers that A has not got, and the keys of A with rows that B has not got.
    A key of B that is in neither of the first two has equal numbers in several places.
    """
    types = {side.info(key).dtype for side in (a, b) for key in side.names}
    dtype, tables = next((name for name in NARROW if name in types), "F32"), list[dict[str, "Array"]]()
    for side in (a, b):
        keys = [key for key in side.names if side.holds_numbers(key)]
        with in_order(partial(side.hashes, dtype=dtype), keys) as results:
            tables.append(dict(zip(keys, results, strict=True)))
    (of_a, of_b), runs, others = tables, Runs(), set[str]()
    find, vectors = _finder(of_a), [key for key in of_b if not b.is_matrix(key)]
    for key in [*(key for key in of_b if b.is_matrix(key)), *vectors, *vectors]:  # a norm may follow its bias
        pieces = find(of_b[key])
        if not b.is_matrix(key):
            pieces = tuple(Piece(run.key, 0, a.length(run.key)) for run in pieces) or _following(a, b, key, runs)
        if key not in runs and pieces and equal(a, pieces, b, key):
            runs[key] = pieces
        elif pieces and b.is_matrix(key):
            others.add(key)
    known = np.concatenate([*of_a.values(), _NONE])
    tied = _with_module(b, {key for key in of_b.keys() - runs - others if np.isin(of_b[key], known).all()})
    known = np.concatenate([*(of_b[key] for key in tied & of_b.keys()), _NONE])
    free = {key: np.ones(a.length(key), bool) for key in a.names}
    for run in chain(*runs.values()):
        free[run.key][run.start : run.stop] = False
    unused = [key for key, rows in free.items() if rows.any()]
    rest = {key: of_a[key][free[key] if a.is_matrix(key) else ...] for key in unused if key in of_a}
    spare = _with_module(a, {key for key, rows in rest.items() if np.isin(rows, known).all()})
    return runs, [key for key in b.names if key not in tied and key not in runs], [k for k in unused if k not in spare]


def _finder(of_a: Mapping[str, Array]) -> Callable[[Array], tuple[Piece, ...]]:
    """A function from the hashes of rows of B to the runs of A with these rows; empty if more than one tiling fits.

    A row that A has once says where it is from; others belong to the run before or behind that goes on over them.
    """
    keys, rows = list(of_a), np.concatenate([*of_a.values(), _NONE])
    bases = np.cumsum([0, *map(len, of_a.values())])
    owner = np.repeat(np.arange(len(keys)), np.diff(bases))
    known, first, counts = np.unique(rows, return_index=True, return_counts=True)

    def find(wanted: Array) -> tuple[Piece, ...]:
        at, slot = np.arange(len(wanted)), np.searchsorted(known, wanted).clip(max=max(0, len(known) - 1))
        sure = np.flatnonzero((known[slot] == wanted) & (counts[slot] == 1)) if len(known) else at[:0]
        if not len(sure):
            return ()
        n, origin = np.searchsorted(sure, at, "right"), first[slot]
        anchors = [sure[(n - 1).clip(0)], sure[n.clip(max=len(sure) - 1)]]
        ways = [(at + origin[anchor] - anchor).clip(0, len(rows) - 1) for anchor in anchors]
        pairs = zip(ways, anchors, strict=True)
        left, right = ((owner[way] == owner[origin[anchor]]) & (rows[way] == wanted) for way, anchor in pairs)
        if not (left | right).all() or (left & right & (ways[0] != ways[1])).any():
            return ()
        source = np.where(left, *ways)
        cuts = np.flatnonzero((np.diff(source) != 1) | (np.diff(owner[source]) != 0)) + 1
        spans = [(owner[span[0]], span[0], span[-1] + 1) for span in np.split(source, cuts)]
        return tuple(Piece(keys[n], int(start - bases[n]), int(stop - bases[n])) for n, start, stop in spans)

    return find


def _following(a: Checkpoint, b: Checkpoint, key: str, runs: Runs) -> tuple[Piece, ...]:
    """Where a vector is if it is cut as another parameter of its module is.

    Under its own name in A's modules, else under the one name there that has its numbers.
    """
    module, _, name = key.rpartition(".")
    ways = dict[tuple[Piece, ...], bool]()
    for other in (other for other in b.modules[module] if other in runs and b.length(other) == b.length(key)):
        owners = [(run.key.rpartition(".")[0], run) for run in runs[other]]
        for word in (k.rpartition(".")[2] for k in a.modules[owners[0][0]]):
            pairs = [(f"{owner}.{word}", run) for owner, run in owners]
            if all(k in a.names and not a.is_matrix(k) and a.length(k) == a.length(run.key) for k, run in pairs):
                ways[tuple(Piece(k, run.start, run.stop) for k, run in pairs)] = word == name
    alike = [way for way in ways if equal(a, way, b, key)]
    return next((way for way in alike if ways[way]), alike[0] if len(alike) == 1 else ())


def _with_module(side: Checkpoint, keys: set[str]) -> set[str]:
    """The keys, and all of the module of a matrix: what goes with an open matrix is open too."""
    return keys | {key for one in keys if side.is_matrix(one) for key in side.modules[one.rpartition(".")[0]]}


_NONE: Array = np.empty(0, np.uint64)
