"""Which released base models fit the shapes of an adapter, and whether a named base model is one of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from loraforge.adapter.adapter import Adapter, alike
from loraforge.algebra.lora import Delta, LoraWeight, rows
from loraforge.errors import ConversionError, Try, adding
from loraforge.hub.address import is_repo, renamed
from loraforge.names.catalog import architectures
from loraforge.names.diffusers_config import Placed
from loraforge.names.dimensions import Sized, Solution, solve
from loraforge.names.layout import Architecture, Variant
from loraforge.names.lookalike import of_repo
from loraforge.numbered import parted
from loraforge.text import command, listed

FOLDERS = "models model checkpoints ckpts ckpt weights pretrained outputs output data cache".split()
"""Usual names of a folder that models are stored in; none of them is the owner of a known model on the Hub."""
SMALL = 4
"""A model this many times narrower than the narrowest released one was made for a test."""


class _Solved(NamedTuple):
    placed: tuple[Placed, ...]
    uneven: tuple[str, ...]
    """Modules whose rows cannot be divided among the segments that they stack, each with both."""
    solution: Solution


class _Seen(NamedTuple):
    """What is known of the modules of an adapter."""

    modules: Mapping[str, Delta]
    sample: Mapping[str, Delta]
    """The first and the last module of each name and shape; the numbers may be those of another one like it."""
    solved: dict[tuple[object, ...], _Solved]
    """Architecture, layout and last block -> what follows from its shapes there."""


_LAST: list[_Seen] = []
"""The last few adapters: several questions about each follow."""


def _seen(adapter: Adapter) -> _Seen:
    for one in _LAST:
        if adapter.modules is one.modules or adapter.modules is one.sample:
            return one
    groups, layout = defaultdict[tuple[object, ...], dict[str, Delta]](dict), adapter.model.layouts[adapter.layout]
    for delta, paths in alike(adapter.modules):
        kind = parted(paths[0])[::2], located[0].text if (located := layout.locate(paths[0])) else ""
        ends = min(paths, key=_by_length), max(paths, key=_by_length)
        groups[*kind, *[(w.A.shape, w.B.shape, w.kernel) for w in delta]] |= dict.fromkeys(ends, delta)
    shown = {end(each, key=_by_length): each for each in groups.values() for end in (min, max)}
    some = {path: shown[path][path] for path in adapter.modules if path in shown}
    _LAST[:] = [*_LAST[-7:], _Seen(adapter.modules, some, {})]
    return _LAST[-1]


def _by_length(path: str) -> tuple[int, str]:
    """Puts block 2 before block 10, in names that are alike."""
    return len(path), path


def sample(adapter: Adapter) -> Adapter:
    """The adapter with the first and the last module of each name and shape: they show what the others do."""
    return replace(adapter, modules=_seen(adapter).sample)


def _solved(adapter: Adapter) -> _Solved:
    known, asked = _seen(adapter), (adapter.architecture, adapter.layout, adapter.last)
    whole = adapter.modules is known.modules
    if (*asked, whole) not in known.solved:
        if whole and not (answer := _solved(sample(adapter))).uneven and not answer.solution.odd:
            known.solved[*asked, whole] = answer
        else:  # which modules are at fault, and how many
            every, uneven = _placed(adapter)
            sized = [Sized(path, s, shape[0], shape[1]) for path, s, _, shape in every if len(shape) > 1]
            known.solved[*asked, whole] = _Solved(every, uneven, solve(sized, adapter.model.dimensions))
    return known.solved[*asked, whole]


def placed(adapter: Adapter) -> tuple[Placed, ...]:
    """Module, segment, block numbers and shape of each base weight that the adapter updates or has in its file.

    Of blocks that are alike only the first and the last, unless something is wrong.
    """
    return _solved(adapter).placed


def solved(adapter: Adapter) -> Solution:
    """The sizes of the adapter's base model, as far as the shapes of its modules determine them."""
    return _solved(adapter).solution


def _placed(adapter: Adapter) -> tuple[tuple[Placed, ...], tuple[str, ...]]:
    arch, layout = adapter.model, adapter.model.layouts[adapter.layout]
    every: list[Placed] = [(f"the base's {s}", s, (), shape) for s, shape in adapter.evidence.items()]
    uneven, known = list[str](), dict[tuple[object, ...], list[tuple[str, tuple[int, ...]]]]()
    for path, delta in adapter.modules.items():
        if (located := layout.locate(path)) is None:
            continue
        like = located[0].text, *[(w.B.shape[0], w.A.shape[1], w.kernel) for w in delta]
        if like not in known:
            segments = layout.modules[located[0]]
            parts = delta if len(delta) == len(segments) else [delta[0]] * len(segments)
            sizes = zip(segments, arch.sizes(segments, rows(delta)) or (), parts, strict=False)
            known[like] = [(segment, part.base_shape(size)) for segment, size, part in sizes]
        every += [(path, segment, located[1], shape) for segment, shape in known[like]]
        if not known[like] and (segments := layout.modules[located[0]]):
            uneven.append(f"{path} ({rows(delta)} rows for {', '.join(segments)})")
    return tuple(every), tuple(uneven)


def fits(adapter: Adapter) -> tuple[Variant, ...]:
    """The variants that agree with all shapes of the adapter and of base weights in its file."""
    arch, sizes = adapter.model, solved(adapter).values
    solutions = ((v, arch.solved(v).values) for v in arch.variants)
    same_sizes = [v for v, values in solutions if all(sizes.get(s, n) == n for s, n in values.items())]
    shapes = {one[1:] for one in placed(adapter)} if same_sizes else ()
    return tuple(v for v in same_sizes if not any(v.objection(*shape) for shape in shapes))


def broken(adapter: Adapter, *, rank_known: bool = False) -> str:
    """Why the modules of an adapter cannot be those of one model; empty if they can.

    `rank_known`: the rank is also recorded outside of the tensors, so that they are known not to be transposed.
    """
    arch = adapter.model
    weights = [w for delta, _ in alike(adapter.modules) for w in delta]
    if all(map(_turned, weights)) and not rank_known and not adapter.evidence:  # base weights have the sizes
        w = weights[0]
        what = f"its rank ({w.rank}) is larger than the weight it is for ({w.rows} x {w.A.shape[1]}), in every module"
        return f"{what}: the factors look transposed"
    if uneven := _solved(adapter).uneven:
        return f"the rows of {listed([*uneven], 40)} cannot be divided among the weights that are stacked there"
    if not (solution := solved(adapter)).odd:
        return ""
    groups: dict[str, dict[str, None]] = {}
    for one in sorted(solution.odd, key=lambda one: _in_order(one.module)):
        groups.setdefault(f"[{one.rows} x {one.inputs}]", {})[one.module] = None
    odd = "; ".join(f"{listed([*modules], 40)} {shape}" for shape, modules in groups.items())
    if any(_turned(w) for one in solution.odd for w in adapter.modules.get(one.module, ())):
        odd += "; the factors of these look transposed"
    most = (
        ", and neither group is in the majority" if solution.split else f": most have {_sizes(solution)}, but not these"
    )
    return f"its modules do not belong to one {arch.title}{most} (rows x inputs): {odd}"


def _sizes(solution: Solution) -> str:
    return ", ".join(f"{symbol} {value}" for symbol, value in sorted(solution.values.items()))


def _in_order(path: str) -> list[tuple[int, str]]:
    """A sort key that puts block 2 before block 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in path.split(".")]


def _turned(w: LoraWeight) -> bool:
    """Whether the rank is larger than both sides, as if A and B of a square weight were transposed."""
    return bool(w.rank > max(w.rows, w.A.shape[1]))


def _released(arch: Architecture, sizes: Mapping[str, int]) -> list[tuple[Variant, dict[str, int]]]:
    """The released variants, each with its sizes in numbered blocks, of those symbols that have one of `sizes`."""
    symbols = {symbol for s in arch.in_blocks & arch.dimensions.keys() for _, symbol in arch.dimensions[s]}
    every = ((v, arch.solved(v).values) for v in arch.variants)
    return [(v, {s: n for s, n in values.items() if s in symbols & sizes.keys()}) for v, values in every]


def of_width(arch: Architecture, sizes: Mapping[str, int]) -> tuple[Variant, ...]:
    """The released variants whose blocks have these sizes; empty if there is none or too little is known."""
    return tuple(v for v, values in _released(arch, sizes) if values and values.items() <= sizes.items())


def excess(adapter: Adapter) -> dict[int, int]:
    """The block numbers that no released model of its width has -> how many blocks of that kind the deepest one has."""
    known = of_width(adapter.model, solved(adapter).values)
    depths = {s: max(v.depth(s) for v in known) for _, s, _, _ in placed(adapter)} if known else {}

    def numbers(every: Iterable[Placed]) -> list[tuple[int, str]]:
        return sorted({(number, s) for _, s, index, _ in every for _, number in index})

    if not known or all(number < depths[s] for number, s in numbers(placed(adapter))):
        return {}
    most = {number: depths[s] for number, s in numbers(_placed(adapter)[0])}
    return {number: depth for number, depth in most.items() if number >= depth}


def fills(adapter: Adapter, variant: Variant) -> int:
    """The blocks of a variant, if it has just those that the adapter has of each kind; otherwise 0."""
    kinds, tops = adapter.model.block_kinds(), defaultdict[str, tuple[int, int]](lambda: (0, 0))
    for segment, number in ((s, number) for _, s, index, _ in placed(adapter) for _, number in index):
        top, depth = tops[kinds.get(segment, segment)]
        tops[kinds.get(segment, segment)] = max(number, top), max(variant.depth(segment), depth)
    most = max((depth for _, depth in tops.values()), default=0)
    return most if all(top + 1 == depth for top, depth in tops.values()) and 2 * most >= variant.blocks else 0


def beyond(adapter: Adapter) -> str:
    """Why the released models of its width do not have all of its blocks; empty if one has, or if there is none."""
    if not (over := excess(adapter)):
        return ""
    known = of_width(adapter.model, solved(adapter).values)
    names, have = listed([v.name for v in known]), "have" if len(known) > 1 else "has"
    return f"it adapts block {max(over)}, and {names}, of its width, {have} {over[max(over)]} blocks"


def unchecked(adapter: Adapter) -> str:
    """Why its shapes were not checked against each other; empty if they were."""
    arch, why = adapter.model, "the shapes of its modules were not checked against each other"
    return "" if arch.dimensions else f"no sizes of {arch.title} are known: {why}"


def small(adapter: Adapter) -> bool:
    """Whether its base model is much narrower than every released one, like the models that tests use."""
    sizes = solved(adapter).values
    released = [size for _, values in _released(adapter.model, sizes) for size in values.items()]
    return bool(released) and all(SMALL * sizes[symbol] <= value for symbol, value in released)


def repository(name: object, near: Path | None = None) -> str | None:
    """The Hub repository that a recorded or typed base model names, with its owner's present name.

    None if `name` is not text, does not look like a repository, or is a folder here or in the folder `near`.
    """
    text = whole = str(name).strip() if isinstance(name, str) else ""
    for start in ("hf://", "https://huggingface.co/", "https://hf.co/", "huggingface.co/"):
        text = text.removeprefix(start)
    certain, text = text != whole, text.rstrip("/").partition("/tree/")[0]  # an address cannot be a path
    if not is_repo(text) or text.partition("/")[0].lower() in FOLDERS:
        return None
    if not certain and any((folder / text).exists() for folder in (Path(), near or Path())):
        return None
    present = renamed(text)
    return next((repo for repo in architectures().index.repos if repo.lower() == present.lower()), present)


def variant_of_repo(repo: str) -> tuple[Architecture, Variant] | None:
    """The released model in a repository, or in a folder named after one; None if it is not a known one."""
    name = repo.rstrip("/").replace("\\", "/").rpartition("/")[2].lower()
    exact = "/" in repo and is_repo(repo) and repository(repo) is not None
    for known, arch in architectures().index.repos.items():
        if known.lower() == repo.lower() or (not exact and known.rpartition("/")[2].lower() == name):
            return architectures()[arch], next(v for v in architectures()[arch].variants if v.repo == known)
    return None


def no_repository(base: str) -> ConversionError:
    """The error for a typed base model that is not a repository of the Hub."""
    known = variant_of_repo(base)
    meant = known[1].repo if known else base.strip().rstrip("/")
    if repository(meant) is None:  # a folder here is called so
        meant = f"hf://{meant}"
    why = "a path: a folder here is called so" if Path(base).exists() and base.strip() else "a path"
    right = [adding("--base-model", meant)] if repository(meant) else []
    return ConversionError(f"--base-model {base} is no Hub id (like zai-org/CogVideoX-5b), but {why}.", *right)


def misnamed(adapter: Adapter, base: str) -> str:
    """Why the adapter cannot be for the named base model; empty if no reason is known."""
    arch, known, fitting = adapter.model, variant_of_repo(base), fits(adapter)
    other = of_repo(base) if known is None else known[0].title
    if other not in (None, arch.title):
        return f"the adapter is not for {base}, which is {other}: its modules are those of {arch.title}"
    if known is None or known[1] in fitting or small(adapter):
        return ""
    others = " or ".join(v.repo for v in fitting) or f"no released {arch.title}"
    return f"the adapter is not for {base}: its shapes are those of {others}"


def check_base(adapter: Adapter, base: str | None, *again: str | Path) -> tuple[str, ...]:
    """Notes on what could not be checked about the named base model.

    Raises ConversionError if the adapter cannot be for it; the remedies are the command `again` with another one.
    """
    if base is None:
        return ()
    if wrong := misnamed(adapter, base):
        right = [v.repo for v in fits(adapter) if v.repo != base]
        tries = [adding("--base-model", repo).added_to(*again) for repo in right]
        where = adapter.source.path if adapter.source else Path()
        raise ConversionError(f"{wrong}.", *(tries or [Try(command("loraforge", "inspect", where))]))
    if variant_of_repo(base) is None:
        return (f"whether it fits {base} is not checked: no sizes of that model are known",)
    if small(adapter) and not fits(adapter):
        width = _sizes(solved(adapter)) or "unknown size"
        return (f"whether it fits {base} is not checked: it is for a model of {width}, and no such model is released",)
    return ()
