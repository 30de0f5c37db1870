"""Which released base models an adapter's shapes allow, and whether the one that is named is among them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from loraforge.adapter.adapter import Adapter
from loraforge.errors import ConversionError, Try
from loraforge.hub.address import is_repo, renamed
from loraforge.names.catalog import architecture, architectures
from loraforge.names.diffusers_config import Placed
from loraforge.names.dimensions import Sized, Solution, agree, solve
from loraforge.names.layout import Architecture, Variant
from loraforge.names.lookalike import of_repo
from loraforge.text import command, listed

if TYPE_CHECKING:
    from loraforge.algebra.lora import Delta, LoraWeight

FOLDERS = (
    "models",
    "model",
    "checkpoints",
    "ckpts",
    "ckpt",
    "weights",
    "pretrained",
    "outputs",
    "output",
    "data",
    "cache",
)
"""What people call the folder that models lie in; no owner of CogVideoX or its kin on the Hub."""
SMALL = 4
"""A model this many times narrower than the narrowest released one is a test's."""


_LAST: list[tuple[Mapping[str, Delta], tuple[Placed, ...], Solution]] = []
"""What was found of the modules asked for last: one question is followed by others about the same."""


def _found(adapter: Adapter) -> tuple[tuple[Placed, ...], Solution]:
    if not _LAST or _LAST[0][0] is not adapter.modules:
        every = tuple(_placed(adapter))
        sized = [Sized(path, s, shape[0], shape[1]) for path, s, _, shape in every if len(shape) > 1]
        _LAST[:] = [(adapter.modules, every, solve(sized, architecture(adapter.architecture).dimensions))]
    return _LAST[0][1:]


def placed(adapter: Adapter) -> tuple[Placed, ...]:
    """Module, segment, block numbers and base weight's shape of everything the adapter updates, or has beside it."""
    return _found(adapter)[0]


def solved(adapter: Adapter) -> Solution:
    """The sizes of the model that the adapter is of, as far as its modules tell them."""
    return _found(adapter)[1]


def _placed(adapter: Adapter) -> Iterator[Placed]:
    arch = architecture(adapter.architecture)
    layout = arch.layouts[adapter.layout]
    for segment, shape in adapter.evidence.items():
        yield f"the base's {segment}", segment, (), shape
    for path, delta in adapter.modules.items():
        if place := layout.locate(path):
            segments = layout.modules[place[0]]
            sizes = arch.sizes(segments, _rows(delta)) or []
            parts = delta if len(delta) == len(segments) else [delta[0]] * len(segments)
            for segment, size, part in zip(segments, sizes, parts, strict=False):
                yield path, segment, place[1], part.base_shape(size)


def fits(adapter: Adapter) -> tuple[Variant, ...]:
    """The variants that no shape of the adapter, nor of base weights found beside it, speaks against."""
    arch = architecture(adapter.architecture)
    shapes = {(segment, index, shape) for _, segment, index, shape in placed(adapter)}
    sizes = solved(adapter).values
    return tuple(
        v
        for v in arch.variants
        if agree(sizes, arch.solved(v).values, sizes) and not any(v.objection(*place) for place in shapes)
    )


def broken(adapter: Adapter, *, rank_known: bool = False) -> str:
    """Why the modules of an adapter cannot be those of one model; empty where they can.

    `rank_known`: something beside the tensors says that they are of this rank, so that they are not transposed.
    """
    arch = architecture(adapter.architecture)
    layout = arch.layouts[adapter.layout]
    weights = [w for delta in adapter.modules.values() for w in delta]
    if all(map(_turned, weights)) and not rank_known and not adapter.evidence:  # a base weight would tell the size
        w = weights[0]
        return (
            f"its rank ({w.rank}) is larger than the weight it is for ({w.rows} x {w.A.shape[1]}), in every module: "
            "the factors look transposed"
        )
    uneven = [
        f"{path} ({_rows(delta)} rows for {', '.join(layout.stacked(path))})"
        for path, delta in adapter.modules.items()
        if layout.stacked(path) and arch.sizes(layout.stacked(path), _rows(delta)) is None
    ]
    if uneven:
        return f"the rows of {listed(uneven, 40)} cannot be shared by what is stacked there"
    found = solved(adapter)
    if not found.odd:
        return ""
    groups: dict[str, dict[str, None]] = {}
    for one in sorted(found.odd, key=lambda one: _in_order(one.module)):
        groups.setdefault(f"[{one.rows} x {one.inputs}]", {})[one.module] = None
    odd = "; ".join(f"{listed([*modules], 40)} {shape}" for shape, modules in groups.items())
    turned = any(_turned(w) for one in found.odd for w in adapter.modules.get(one.module, ()))
    said = "; the factors of these look transposed" if turned else ""
    if found.split:
        return (
            f"its modules are not of one {arch.title}, and neither side is in the majority (rows x inputs): {odd}{said}"
        )
    sizes = ", ".join(f"{symbol} {value}" for symbol, value in sorted(found.values.items()))
    return f"its modules are not of one {arch.title}: the others have {sizes}, and not so (rows x inputs) {odd}{said}"


def _in_order(path: str) -> list[tuple[int, str]]:
    """A key that sorts the blocks by their numbers."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in path.split(".")]


def _rows(delta: Delta) -> int:
    return sum(w.rows for w in delta)


def _turned(w: LoraWeight) -> bool:
    """Whether the rank is larger than both sides, as it is where A and B of a square weight are transposed."""
    return bool(w.rank > max(w.rows, w.A.shape[1]))


def of_width(arch: Architecture, sizes: Mapping[str, int]) -> tuple[Variant, ...]:
    """The released variants whose blocks have these sizes; empty where the sizes do not tell, or none has."""
    symbols = _of_blocks(arch) & sizes.keys()
    known = [(v, arch.solved(v).values) for v in arch.variants]
    return tuple(v for v, values in known if symbols & values.keys() and agree(sizes, values, symbols))


def _of_blocks(arch: Architecture) -> set[str]:
    """The symbols of segments that stand in numbered blocks."""
    inside = {s for layout in arch.layouts.values() for t, stack in layout.modules.items() if t.holes for s in stack}
    return {symbol for s in inside & arch.dimensions.keys() for _, symbol in arch.dimensions[s] if symbol}


def highest(adapter: Adapter) -> int | None:
    """The highest block number; None where no module stands in a block."""
    return max((number for _, _, index, _ in placed(adapter) for _, number in index), default=None)


def excess(adapter: Adapter) -> list[int]:
    """The block numbers that no released model of its width has."""
    known = of_width(architecture(adapter.architecture), solved(adapter).values)
    most = max((v.blocks for v in known), default=None)
    numbers = {number for _, _, index, _ in placed(adapter) for _, number in index}
    return sorted(number for number in numbers if most is not None and number >= most)


def beyond(adapter: Adapter) -> str:
    """Why the released models of this width have not got all of its blocks; empty where one has, or there is none."""
    if not (over := excess(adapter)):
        return ""
    known = of_width(architecture(adapter.architecture), solved(adapter).values)
    names, have = listed([v.name for v in known]), "have" if len(known) > 1 else "has"
    return f"it adapts block {over[-1]}, and {names}, of its width, {have} {max(v.blocks for v in known)} blocks"


def unchecked(adapter: Adapter) -> str:
    """Why its shapes were not checked against each other; empty where they were."""
    arch = architecture(adapter.architecture)
    if not arch.dimensions:
        return f"no sizes of {arch.title} are known: the shapes of its modules were not checked against each other"
    return ""


def _width(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{symbol} {value}" for symbol, value in sorted(sizes.items())) or "not told"


def small(adapter: Adapter) -> bool:
    """Whether it is of a model much narrower than every released one, as tests have them."""
    arch, sizes = architecture(adapter.architecture), solved(adapter).values
    known = [arch.solved(v).values for v in arch.variants]
    pairs = [(sizes[s], min(values[s] for values in known if s in values)) for s in _of_blocks(arch) & sizes.keys()
             if any(s in values for values in known)]  # fmt: skip
    return bool(pairs) and all(SMALL * mine <= least for mine, least in pairs)


def repository(said: object, near: Path | None = None) -> str | None:
    """The repository that a recorded or typed base model names, under its owner's name of today; None for a folder."""
    text = str(said).strip() if isinstance(said, str) else ""
    whole = text
    for start in ("hf://", "https://huggingface.co/", "https://hf.co/", "huggingface.co/"):
        text = text.removeprefix(start)
    certain = text != whole  # an address is no path
    text = text.rstrip("/").partition("/tree/")[0]
    if not is_repo(text) or text.partition("/")[0].lower() in FOLDERS:
        return None
    if not certain and any((place / text).exists() for place in (Path(), *([near] if near else []))):
        return None
    right = renamed(text)
    return next((v.repo for v in _variants() if v.repo.lower() == right.lower()), right)


def variant_of_repo(repo: str) -> tuple[Architecture, Variant] | None:
    """The released model in a repository, or of that name in a folder; None where it is none that is known."""
    name = repo.rstrip("/").replace("\\", "/").rpartition("/")[2].lower()
    exact = "/" in repo and is_repo(repo) and repository(repo) is not None
    for arch in architectures().values():
        for v in arch.variants:
            if v.repo.lower() == repo.lower() or (not exact and v.repo.rpartition("/")[2].lower() == name):
                return arch, v
    return None


def no_repository(base: str) -> ConversionError:
    """The refusal of a typed base model that names no repository."""
    known = variant_of_repo(base)
    meant = known[1].repo if known else base.strip().rstrip("/") if Path(base).is_dir() else "zai-org/CogVideoX-5b"
    if repository(meant) is None:  # a folder here is called so
        meant = f"hf://{meant}" if repository(f"hf://{meant}") else "hf://zai-org/CogVideoX-5b"
    why = "a path: a folder here is called so" if Path(base).exists() and base.strip() else "a path"
    right = Try(command("--base-model", meant), "" if known else "for example")
    return ConversionError(f"--base-model {base} is no Hub id (like zai-org/CogVideoX-5b), but {why}.", right)


def _variants() -> Iterator[Variant]:
    for arch in architectures().values():
        yield from arch.variants


def misnamed(adapter: Adapter, base: str) -> str:
    """Why the adapter cannot be for the base model that is named; empty where nothing speaks against it."""
    arch = architecture(adapter.architecture)
    known = variant_of_repo(base)
    if known is None:
        other = of_repo(base)
        return (
            f"the adapter is not for {base}, which is {other}: its modules are those of {arch.title}" if other else ""
        )
    if known[0].name != arch.name:
        return f"the adapter is not for {base}, which is {known[0].title}: its modules are those of {arch.title}"
    right = fits(adapter)
    if known[1] in right or small(adapter):
        return ""
    those = " or ".join(v.repo for v in right) or f"no released {arch.title}"
    return f"the adapter is not for {base}: its shapes are those of {those}"


def check_base(adapter: Adapter, base: str | None, *again: str | Path) -> tuple[str, ...]:
    """Notes on the base model that is named, of what could not be checked.

    Raises ConversionError where the adapter speaks against it; `again` is the command to which --base-model is added.
    """
    if base is None:
        return ()
    start = f"{command(*again)} " if again else ""
    if wrong := misnamed(adapter, base):
        right = [v.repo for v in fits(adapter) if v.repo != base]
        tries = [Try(f"{start}--base-model {repo}") for repo in right]
        where = adapter.source.path if adapter.source else Path()
        raise ConversionError(f"{wrong}.", *(tries or [Try(command("loraforge", "inspect", where))]))
    if variant_of_repo(base) is None:
        return (f"whether it fits {base} is not checked: no sizes of that model are known",)
    if small(adapter) and not fits(adapter):
        return (f"it is for a model of {_width(solved(adapter).values)}, as none is released: {base} is not checked",)
    return ()
