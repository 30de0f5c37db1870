"""From tensors to modules: which of them a layout can say, cut where the segments of a known architecture end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace

from loraforge.errors import LoraforgeError
from loraforge.learning.checkpoint import Checkpoint
from loraforge.learning.matching import Matches
from loraforge.learning.templates import Entry, Module, Piece
from loraforge.names.layout import Architecture, Layout, Template

Left = defaultdict[str, list[str]]
"""Why -> the modules of B that are left out for it."""
_MOST_RUNS = 256
"""More than that are rows that were shuffled, which no list of segments is to repeat."""


def modules_of(matches: Matches, a: Checkpoint, b: Checkpoint, left_out: Left) -> list[Module]:
    """The modules of B whose parameters are cut alike, from parameters of the same names."""
    modules = []
    for path, keys in b.modules.items():
        runs = [matches.runs.get(key, ()) for key in keys]
        cuts = {tuple((r.key.rpartition(".")[0], r.start, r.stop, a.length(r.key)) for r in stack) for stack in runs}
        names = [{r.key.rpartition(".")[2] for r in stack} for stack in runs]
        if not all(runs):
            left_out["as equal numbers stand in several places"].append(path)
        elif not path or any(not piece[0] for stack in cuts for piece in stack):
            left_out["as no layout has parameters of the model itself"] += keys
        elif max(map(len, runs)) > _MOST_RUNS:
            left_out["as its rows are shuffled one by one"].append(path)
        elif len(cuts) > 1:
            left_out["as its parameters are of several modules"].append(path)
        elif names != [{key.rpartition(".")[2]} for key in keys]:
            left_out["as its parameters have other names on the other side"].append(path)
        else:
            matrix = f"{path}.weight" in keys and b.is_matrix(f"{path}.weight")
            parameters = frozenset(key.rpartition(".")[2] for key in keys)
            modules.append(Module(path, tuple(Piece(*piece) for piece in cuts.pop()), parameters, matrix))
    return modules


def whole_stacks(modules: Sequence[Module], left_out: Left) -> list[Module]:
    """Less what shares a module of A with rows that are left out."""
    while True:
        spans, rows = defaultdict[str, list[tuple[int, int]]](list), dict[str, int]()
        for piece in (piece for module in modules for piece in module.pieces):
            spans[piece.path].append((piece.start, piece.stop))
            rows[piece.path] = piece.rows
        broken = {path for path, parts in spans.items() if sum(stop - start for start, stop in parts) != rows[path]}
        stranded = [module.path for module in modules if any(piece.path in broken for piece in module.pieces)]
        if not stranded:
            return list(modules)
        left_out["as it is stacked with one that is left out"] += stranded
        modules = [module for module in modules if module.path not in stranded]


def cut(modules: Iterable[Module], arch: Architecture, layout: Layout, left_out: Left) -> list[Module]:
    """The pieces as the segments of an architecture, of which B is known to be in `layout`.

    Raises LoraforgeError if a segment would be cut in two.
    """
    result = []
    for module in modules:
        segments = layout.stacked(module.path)
        sizes = arch.sizes(segments, sum(piece.count for piece in module.pieces)) if segments else None
        if sizes is None:
            left_out[f"as {arch.title} has no such module"].append(module.path)
            continue
        pieces, ahead = list[Piece](), list(zip(segments, sizes, strict=True))
        for piece in module.pieces:
            start = piece.start
            while start < piece.stop:
                segment, size = ahead.pop(0)
                if start + size > piece.stop:
                    raise LoraforgeError(
                        f"{piece.path} and another module share {segment} of {arch.title}, one segment."
                    )
                pieces.append(replace(piece, start=start, stop=start + size, segment=segment))
                start += size
        result.append(replace(module, pieces=tuple(pieces)))
    return result


def renamed(entry: Entry, layout: Layout) -> Entry:
    """The entry with block numbers called as in a known layout of B. Raises LoraforgeError if it is another."""
    located = layout.locate(entry.modules[0].path)
    known = located[0].tokens() if located else []
    holes = {mine: theirs for mine, theirs in zip(entry.b.tokens(), known, strict=True) if mine != theirs}
    if any(not (mine.startswith("{") and theirs.startswith("{")) for mine, theirs in holes.items()):
        text = f"{'.'.join(known)} is known for every block, and the files explain {entry.b.text} alone"
        raise LoraforgeError(f"{text}: give checkpoints of several blocks, which are named alike.")
    a = tuple(Template(".".join(holes.get(token, token) for token in path.tokens())) for path in entry.a)
    return Entry(Template(".".join(known)), a, entry.modules)
