"""What the programs that run adapters make of a file: which keys, at what scale. Data; see programs.toml.

A program is taken for a reader that sees less: what it applies is what our own reader finds in a file from which
everything the program does not look at has been taken away.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraforge.adapter.adapter import Adapter
from loraforge.errors import LoraforgeError
from loraforge.format.protocol import Format
from loraforge.programs.table import is_factor, running
from loraforge.scale.rule import Choice

if TYPE_CHECKING:
    from loraforge.files.tensorfile import TensorFile
    from loraforge.programs.table import Outcome, Run, Runtime

Memo = dict[tuple[Any, ...], Adapter | None]
"""What was read of a file: the keys and entries that were seen -> the adapter in them."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What one program would make of a file."""

    runtime: str
    title: str
    raises: str
    """The key, or the missing file, at which it stops; empty where it does not."""
    applied: int
    modules: int
    ratios: tuple[float, ...]
    """The distinct ratios of the scale it applies to the scale of training; empty where that is not known."""
    scalings: tuple[float, ...]
    """The distinct scales it applies."""
    lost: tuple[str, ...]
    """Keys it passes over, by kind: fragment x count."""
    instead: str
    otherwise: str = ""
    """What it makes of the update that no factor says; empty where a factor says it."""
    program: str = ""
    run: tuple[Run, ...] = ()
    """Where it was really run, on adapters of this architecture; empty where its source was read."""

    @property
    def mark(self) -> str:
        """How this is known, in a few words."""
        if not self.run:
            return "read only"
        return f"run {sum(r.agreed for r in self.run)}/{sum(r.files for r in self.run)}"


def outlook(program: Runtime, form: Format, file: TensorFile, adapter: Adapter, memo: Memo | None = None) -> Outlook:
    """What the program would make of the file, given how we read it: its modules, and their scale in training.

    `memo` keeps what was read for one program, for those that see the same.
    """
    program, title = program.of(file), program.title
    outcomes, kept = _outcomes(program, file, adapter)
    ranks = {path: max(w.rank for w in delta) for path, delta in adapter.modules.items()}
    raising = next(stops(program, file, outcomes, ranks), "")
    applied = _applied_scalings(program, form, file, kept, {} if memo is None else memo)
    if program.whole and len(applied) < len(adapter.modules):
        applied = {}
    if not raising and program.nothing and not any(program.module(key, adapter.architecture) for key in outcomes):
        raising = "a file with nothing it knows"
    known = adapter.scale.provenance != "ambiguous" and not raising
    otherwise = "" if raising else _otherwise(outcomes, adapter, applied)
    trained = {path: delta[0].scaling for path, delta in adapter.modules.items()}
    ratios = (
        {applied[path] / trained[path] for path in applied if trained.get(path)} if known and not otherwise else set()
    )
    lost: Counter[str] = Counter()
    for key, found in outcomes.items():
        if key not in kept and found != "raises":
            kind = next((f for f in program.keys if f in key and key.startswith(program.prefixes)), "")
            lost[kind if kind and found == program.keys[kind] != "applied" else key.split(".")[0]] += 1
    return Outlook(
        program.name,
        title,
        raising,
        0 if raising else len(applied),
        len(adapter.modules),
        tuple(sorted({float(f"{ratio:.12g}") for ratio in ratios})),
        () if raising else tuple(sorted(set(applied.values()))),
        tuple(f"{kind} x{count}" for kind, count in lost.items()),
        program.instead,
        otherwise,
        program.program,
        program.run if adapter.architecture == program.architecture else (),
    )


def scales(program: Runtime, form: Format, file: TensorFile, adapter: Adapter) -> dict[str, float]:
    """Module -> the scale that the program applies to it, if it does not stop."""
    program = program.of(file)
    return _applied_scalings(program, form, file, _outcomes(program, file, adapter)[1], {})


def _outcomes(program: Runtime, file: TensorFile, adapter: Adapter) -> tuple[dict[str, Outcome], list[str]]:
    """What becomes of each key of the adapter, and the keys that are applied."""
    outcomes = {key: program.outcome(key, adapter.architecture) for key in file.tensors if key in adapter.keys}
    kept = [key for key, found in outcomes.items() if found == "applied"]
    if program.convolution != "applied":
        kernels = {program.module(key, adapter.architecture) for key in kept if len(file.tensors[key].shape) > 2}
        kept = [key for key in kept if program.module(key, adapter.architecture) not in kernels]
    return outcomes, kept


def outlooks(form: Format, file: TensorFile, adapter: Adapter) -> tuple[Outlook, ...]:
    """What each program would make of the file."""
    memo: Memo = {}
    return tuple(outlook(program, form, file, adapter, memo) for program in running(adapter.architecture))


def stops(
    program: Runtime, file: TensorFile, outcomes: Mapping[str, Outcome], ranks: Mapping[str, int]
) -> Iterator[str]:
    """Where the program stops at this file; nothing where it goes on."""
    if program.always:
        yield program.always
    yield from (key for key, found in outcomes.items() if found == "raises")
    if program.every_key:
        yield from (key for key in outcomes if program.every_key not in key and "dora_scale" not in key)
    if any(key.startswith(program.prefixes) for key in outcomes):  # without one, Diffusers returns before the header
        yield from filter(None, [_stops_at_header(program, file)])
    if program.convolution == "raises":
        kernels = (key for key, found in outcomes.items() if found == "applied" and len(file.tensors[key].shape) > 2)
        yield from (f"{key}, a convolution" for key in kernels)
    if program.rank:
        yield from (
            f"{path} of rank {rank}: it takes {program.rank}" for path, rank in ranks.items() if rank != program.rank
        )
    if program.needs and not (file.path.parent / program.needs).is_file():
        yield program.needs
    elif program.config_fields or program.config_needs:
        yield from _stops_at_config(program, file.path.parent / program.needs)
    if program.files and file.path.name not in program.files:
        yield program.files[0]


def _stops_at_config(program: Runtime, config: Path) -> Iterator[str]:
    try:
        said = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if isinstance(said, dict):
        known = program.config_fields or said
        yield from (f"{name} in {config.name}" for name in said if name not in known)
        yield from (f"{config.name} without {name}" for name in program.config_needs if said.get(name) is None)


def _stops_at_header(program: Runtime, file: TensorFile) -> str:
    """The name in the header entry that the program cannot take, or the entry itself where nothing in it is for it."""
    for entry in program.sees & file.metadata.keys():
        try:
            said = json.loads(file.metadata[entry])
        except (ValueError, RecursionError):
            return entry
        prefix = program.header_prefix
        mine = [name.removeprefix(prefix) for name in said if name.startswith(prefix)] if isinstance(said, dict) else []
        if program.header_fields and not mine:
            return entry
        for name in program.header_needs if isinstance(said, dict) else ():
            if said.get(f"{prefix}{name}") is None:
                return f"KeyError {name!r} in {entry}"
        if unknown := [name for name in mine if program.header_fields and name not in program.header_fields]:
            return f"{unknown[0]} in {entry}"
    return ""


def _applied_scalings(
    program: Runtime, form: Format, file: TensorFile, keys: Sequence[str], memo: Memo
) -> dict[str, float]:
    """Module -> the scale the program applies. Read from what it sees of the file, and nothing else."""
    blind = () if "alpha" in program.sees else (".alpha",)
    kept = {key: file.tensors[key] for key in keys if not key.endswith(blind)}
    if not kept:
        return {}
    metadata = {key: text for key, text in file.metadata.items() if key in program.sees}
    beside = program.sees & {"adapter_config.json", "training_config.yaml"}
    path = file.path if beside else Path("elsewhere", file.path.name)
    seen = file.hiding(tensors=kept, metadata=metadata, path=path)
    same = (tuple(kept), tuple(sorted(metadata)), bool(beside))
    if same not in memo:
        try:
            memo[same] = form.read(seen, Choice(program=True))
        except LoraforgeError:  # what is left of the file is no adapter
            memo[same] = None
    adapter = memo[same]
    if adapter is None:
        return {}
    wrong = _wrong_rank(program, adapter, file)
    return {
        name: delta[0].scaling * program.factor(delta[0].rank, file.path) * wrong.get(name, 1.0)
        for name, delta in adapter.modules.items()
    }


def _wrong_rank(program: Runtime, adapter: Adapter, file: TensorFile) -> Mapping[str, float]:
    """Module -> what is wrong with its scale in programs that take one module's rank for lora_alpha of all."""
    ranks = {path: delta[0].rank for path, delta in adapter.modules.items()}
    if not odd_ranks(program, ranks) or program.sees & file.metadata.keys():
        return {}
    heights = {key: info for key, info in file.tensors.items() if is_factor(key) and ("_B" in key or "up" in key)}
    first = min(heights.values(), key=lambda info: info.offset).shape[1]
    return {path: first / rank for path, rank in ranks.items()}


def odd_ranks(program: Runtime, ranks: Mapping[str, int]) -> bool:
    """Whether the program takes modules of these ranks for others than they are."""
    common = Counter(ranks.values()).most_common(1)[0][0]
    odd = sum(rank != common for rank in ranks.values())
    return odd == 1 if program.mixed_ranks == "first where one differs" else bool(program.mixed_ranks and odd)


def _otherwise(outcomes: Mapping[str, Outcome], adapter: Adapter, applied: Mapping[str, float]) -> str:
    """What a program makes of DoRA, where that is no factor of the update."""
    dora = [path for path, delta in adapter.modules.items() if any(w.magnitude is not None for w in delta)]
    if not dora or not applied:
        return ""
    passed = [key for key, found in outcomes.items() if found != "applied" and _is_magnitude(key)]
    if passed:
        return f"without the magnitudes of DoRA ({len(passed)} are passed over)"
    trained = {path: delta[0].scaling for path, delta in adapter.modules.items()}
    scaled = [path for path in dora if path in applied and abs(applied[path] / (trained[path] or 1.0) - 1) > 1e-9]
    return "DoRA at another scale, which is no factor of its update" if scaled else ""


def _is_magnitude(key: str) -> bool:
    return "lora_magnitude_vector" in key or "dora_scale" in key
