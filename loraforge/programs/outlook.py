"""Predicts what the programs that run adapters do with a file: which keys they apply, at which scale; and says it.

The data are in programs.toml. A program is treated as a reader that sees less: it applies what our own reader
finds in the file after everything that the program does not look at has been removed.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from loraforge.adapter.adapter import Adapter
from loraforge.adapter.differences import suffixes
from loraforge.errors import FileError, LoraforgeError
from loraforge.files.tensorfile import TensorFile
from loraforge.files.texts import read_json
from loraforge.format.protocol import Format
from loraforge.programs.table import Outcome, Run, Runtime, is_down, is_factor, running, runtimes
from loraforge.scale.rule import Choice

_MAGNITUDES = ("dora_scale", "lora_magnitude_vector")

Memo = dict[tuple[Any, ...], Adapter | None]
"""The visible keys and entries of a file -> the adapter read from them, or None."""


@dataclass(frozen=True, slots=True)
class Outlook:
    """What one program would do with a file."""

    runtime: str
    title: str
    raises: str
    """The key, missing file or other thing at which it raises an error; empty if it does not."""
    applied: int
    """Number of modules that it applies."""
    modules: int
    ratios: tuple[float, ...]
    """The distinct ratios of the applied scale to that of training; empty if the latter is not known."""
    scalings: tuple[float, ...]
    """The distinct scales that it applies."""
    lost: tuple[str, ...]
    """The keys that it ignores, by kind: `fragment xCOUNT`."""
    instead: str
    otherwise: str = ""
    """How the update differs if not by a factor; else empty."""
    program: str = ""
    run: tuple[Run, ...] = ()
    """The versions that were run on such adapters of this architecture; empty if only its source code was read."""
    lacks: bool = False
    """Whether it stops because a header entry lacks a field, so that a complete entry helps."""
    bare: bool = False
    """Whether it ignores the magnitudes of a DoRA."""
    scales: Mapping[str, float] = field(default_factory=dict)
    """Module -> the scale that it applies to it."""

    def to_dict(self) -> dict[str, Any]:
        """The row of the JSON document of `doctor`."""
        return {key: value for key, value in asdict(self).items() if key not in ("lacks", "bare", "scales")}

    @property
    def mark(self) -> str:
        """How this is known: `read only`, or on how many files it was right: `run 12/12`."""
        if not self.run:
            return "read only"
        return f"run {sum(r.agreed for r in self.run)}/{sum(r.files for r in self.run)}"


def outlook(program: Runtime, form: Format, file: TensorFile, adapter: Adapter, memo: Memo | None = None) -> Outlook:
    """What the program would do with the file; `adapter` is what we read from it, at the scale of training.

    `memo` keeps what was read for one program, for others that see the same part of the file.
    """
    program, family = program.of(file), adapter.architecture
    own = file.tensors.keys() & adapter.keys
    outcomes = {key: program.outcome(key, family) for key in file.tensors if key in own}
    kept = [key for key, outcome in outcomes.items() if outcome == "applied"]
    if program.convolution != "applied":
        kernels = {program.module(key, family) for key in kept if len(file.tensors[key].shape) > 2}
        kept = [key for key in kept if program.module(key, family) not in kernels]
    ranks = {path: max(w.rank for w in delta) for path, delta in adapter.modules.items()}
    raising, lacks = next(stops(program, file, outcomes, ranks), Stop(""))
    if not raising and program.nothing and not any(program.module(key, family) for key in outcomes):
        raising = "a file with nothing it knows"
    applied = {} if raising else _applied_scalings(program, form, file, kept, {} if memo is None else memo)
    if program.whole and len(applied) < len(adapter.modules):
        applied = {}
    otherwise = _otherwise(outcomes, adapter, applied)
    measured = family == program.architecture and not adapter.differences
    trained = {path: delta[0].scaling for path, delta in adapter.modules.items()}
    known = adapter.scale.provenance != "ambiguous" and not otherwise
    ratios = {applied[path] / trained[path] for path in applied if known and trained.get(path)}
    lost: Counter[str] = Counter()
    passed = outcomes.keys() - kept
    for key, outcome in outcomes.items():
        if key in passed and outcome != "raises":
            kind = next((f for f in program.keys if f in key and key.startswith(program.prefixes)), "")
            lost[kind if kind and outcome == program.keys[kind] != "applied" else key.split(".")[0]] += 1
    return Outlook(
        program.name, program.title, raises=raising, applied=len(applied), modules=len(adapter.modules),
        ratios=tuple(sorted({float(f"{ratio:.12g}") for ratio in ratios})),
        scalings=tuple(sorted(set(applied.values()))), lost=tuple(f"{kind} x{count}" for kind, count in lost.items()),
        instead=program.instead, otherwise=otherwise, program=program.program,
        run=program.run if measured else (), lacks=lacks, scales=applied,
        bare=any(kind.startswith(_MAGNITUDES) for kind in lost),
    )  # fmt: skip


def outlooks(form: Format, file: TensorFile, adapter: Adapter) -> tuple[Outlook, ...]:
    """What each program would do with the file."""
    memo: Memo = {}
    return tuple(outlook(program, form, file, adapter, memo) for program in running(adapter.architecture))


class Stop(NamedTuple):
    """One thing at which a program stops: a key, a header entry or a missing file, in `at`."""

    at: str
    lacks: bool = False
    """Whether it is a header entry that lacks a field."""


def stops(
    program: Runtime, file: TensorFile, outcomes: Mapping[str, Outcome], ranks: Mapping[str, int]
) -> Iterator[Stop]:
    """The things in this file at which the program stops with an error, the first one first."""
    if program.always:
        yield Stop(program.always)
    yield from (Stop(key) for key, outcome in outcomes.items() if outcome == "raises")
    if program.every_key:
        yield from (Stop(key) for key in outcomes if program.every_key not in key and "dora_scale" not in key)
    if any(key.startswith(program.prefixes) for key in outcomes):  # else Diffusers returns before it reads the header
        yield from _stops_at_header(program, file)
    if program.convolution == "raises":
        applied = (key for key, outcome in outcomes.items() if outcome == "applied")
        yield from (Stop(f"{key}, a convolution") for key in applied if len(file.tensors[key].shape) > 2)
    if program.rank:
        odd = ((path, rank) for path, rank in ranks.items() if rank != program.rank)
        yield from (Stop(f"{path} of rank {rank}: it takes {program.rank}") for path, rank in odd)
    if program.needs and not (file.path.parent / program.needs).is_file():
        yield Stop(program.needs)
    elif program.config_fields or program.config_needs:
        yield from map(Stop, _stops_at_config(program, file.path.parent / program.needs))
    if program.files and file.path.name not in program.files:
        yield Stop(program.files[0])


def _stops_at_config(program: Runtime, config: Path) -> Iterator[str]:
    with suppress(FileError):
        fields = read_json(config)
        known = program.config_fields or fields
        yield from (f"{name} in {config.name}" for name in fields if name not in known)
        yield from (f"{config.name} without {name}" for name in program.config_needs if fields.get(name) is None)


def _stops_at_header(program: Runtime, file: TensorFile) -> Iterator[Stop]:
    """The fields of header entries that stop the program, or an entry that it cannot use at all."""
    for entry in program.sees & file.metadata.keys():
        try:
            fields = json.loads(file.metadata[entry])
        except (ValueError, RecursionError):
            yield Stop(entry)
            continue
        is_object, prefix = isinstance(fields, dict), program.header_prefix
        names = [name.removeprefix(prefix) for name in fields if name.startswith(prefix)] if is_object else []
        if program.header_fields and not names:
            yield Stop(entry)
        for name in program.header_needs if is_object else ():
            if fields.get(f"{prefix}{name}") is None:
                yield Stop(f"KeyError {name!r} in {entry}", lacks=True)
        unknown = [name for name in names if program.header_fields and name not in program.header_fields]
        yield from (Stop(f"{name} in {entry}") for name in unknown)


def _applied_scalings(
    program: Runtime, form: Format, file: TensorFile, keys: Sequence[str], memo: Memo
) -> dict[str, float]:
    """Module -> the scale that the program applies, read only from what it sees of the file."""
    unseen = () if "alpha" in program.sees else (".alpha",)
    kept = {key: file.tensors[key] for key in keys if not key.endswith(unseen)}
    if not kept:
        return {}
    metadata = {key: text for key, text in file.metadata.items() if key in program.sees}
    beside = program.sees & {"adapter_config.json", "training_config.yaml"}
    path = file.path if beside else Path("elsewhere", file.path.name)
    seen = replace(file, tensors=kept, metadata=metadata, path=path)
    same = (tuple(kept), tuple(sorted(metadata)), bool(beside))
    if same not in memo:
        try:
            memo[same] = form.read(seen, Choice(program=True))
        except LoraforgeError:  # the rest of the file is not an adapter
            memo[same] = None
    adapter = memo[same]
    if adapter is None:
        return {}
    wrong = {**_wrong_rank(program, adapter, file), **_wrong_alpha(program, adapter)}
    return {
        name: delta[0].scaling * program.factor(delta[0].rank, file.path) * wrong.get(name, 1.0)
        for name, delta in adapter.modules.items()
    }


def _wrong_rank(program: Runtime, adapter: Adapter, file: TensorFile) -> Mapping[str, float]:
    """Module -> the factor by which its scale is wrong in programs that use one module's rank as lora_alpha of all."""
    ranks = {path: delta[0].rank for path, delta in adapter.modules.items()}
    if not odd_ranks(program, ranks) or program.sees & file.metadata.keys():
        return {}
    ups = [info for key, info in file.tensors.items() if is_factor(key) and not is_down(key)]
    first = min(ups, key=lambda info: info.offset).shape[1]
    return {path: first / rank for path, rank in ranks.items()}


def _wrong_alpha(program: Runtime, adapter: Adapter) -> Mapping[str, float]:
    """Module -> the factor by which its scale is wrong in programs that give it the alpha most modules have."""
    alphas = {path: delta[0].scaling * delta[0].rank for path, delta in adapter.modules.items()}
    if not program.common_alpha or "alpha" not in program.sees:
        return {}
    ((common, _),) = Counter(alphas.values()).most_common(1)
    stray = (path for path in alphas if re.search(program.common_alpha, path) and alphas[path])
    return {path: common / alphas[path] for path in stray}


def odd_ranks(program: Runtime, ranks: Mapping[str, int]) -> bool:
    """Whether the program misreads an adapter whose modules have these ranks."""
    common = Counter(ranks.values()).most_common(1)[0][0]
    odd = sum(rank != common for rank in ranks.values())
    return odd == 1 if program.mixed_ranks == "first where one differs" else bool(program.mixed_ranks and odd)


def _otherwise(outcomes: Mapping[str, Outcome], adapter: Adapter, applied: Mapping[str, float]) -> str:
    """How the effect differs from that of training, if not by a factor of the update; else empty."""
    ends = tuple(suffixes())
    lost = [key for key, outcome in outcomes.items() if key.endswith(ends) and outcome != "applied"]
    if lost and adapter.differences and applied:
        return f"without {len(lost)} whole differences like {lost[0]}"
    dora = [path for path, delta in adapter.modules.items() if any(w.magnitude is not None for w in delta)]
    if not dora or not applied:
        return ""
    magnitudes = (key for key in outcomes if any(word in key for word in _MAGNITUDES))
    if lost := [key for key in magnitudes if outcomes[key] != "applied"]:
        return f"without the magnitudes of DoRA ({len(lost)} are passed over)"
    trained = {path: delta[0].scaling for path, delta in adapter.modules.items()}
    scaled = [path for path in dora if path in applied and abs(applied[path] / (trained[path] or 1.0) - 1) > 1e-9]
    return "DoRA at another scale, which is no factor of its update" if scaled else ""


def by_names(file: TensorFile) -> tuple[Outlook, ...]:
    """What each program applies of a file that no format here reads, by names and shapes; empty if none does any."""
    modules = {key.split(".lora")[0] for key in file.tensors if is_factor(key)}
    ranks = {key: info.shape[0] for key, info in file.tensors.items() if is_down(key) and info.shape}
    rows = []
    for program in (entry.of(file) for entry in runtimes().values()):
        outcomes = {key: program.outcome(key) for key in file.tensors}
        factors = [key for key, outcome in outcomes.items() if outcome == "applied" and is_factor(key)]
        applied = sum(count == 2 for count in Counter(map(program.module, factors)).values())
        raising = next(stops(program, file, outcomes, ranks), Stop("")).at
        if raising or _misshapen(program, file, outcomes) or (program.whole and applied < len(modules)):
            applied = 0
        lost = Counter(key.split(".")[0] for key, outcome in outcomes.items() if outcome in ("ignored", "warned"))
        kinds = tuple(f"{kind} x{count}" for kind, count in lost.items())[:4]
        rows.append(Outlook(
            program.name, program.title, raising, applied, len(modules), ratios=(), scalings=(), lost=kinds,
            instead=program.instead, program=program.program, run=program.run,
        ))  # fmt: skip
    return tuple(rows) if any(row.applied for row in rows) else ()


def _misshapen(program: Runtime, file: TensorFile, outcomes: Mapping[str, Outcome]) -> bool:
    """Whether two factors that the program would apply cannot be multiplied: empty, or of different ranks."""
    ranks: dict[str, set[int]] = {}
    for key, outcome in outcomes.items():
        shape = file.tensors[key].shape
        if outcome == "applied" and is_factor(key):
            rank = 0 if len(shape) < 2 or 0 in shape else shape[0 if is_down(key) else 1]
            ranks.setdefault(program.module(key), set()).add(rank)
    return any(0 in both or len(both) > 1 for both in ranks.values())


@dataclass(frozen=True, slots=True)
class Program:
    """What the written file does in one program, according to programs.toml."""

    runtime: str
    """Its row in the table."""
    program: str
    title: str
    versions: tuple[str, ...]
    """The versions in which files of this kind were run; empty if only its source code was read."""
    otherwise: str
    """How the effect differs from that of training; empty if it does not."""
    instead: str
    """What to change in the program."""


def joined(programs: Iterable[tuple[str, Sequence[str]]]) -> str:
    """Programs with their versions in order, each once: `Diffusers 0.40.0, 0.42.1; PEFT 0.21.2`."""
    versions: dict[str, dict[str, None]] = {}
    for name, known in programs:
        versions.setdefault(name, {}).update(dict.fromkeys(known))

    def order(version: str) -> tuple[int, ...]:
        return tuple(int(part) for part in version.split(".")) if version.replace(".", "").isdecimal() else ()

    return "; ".join(f"{name} {', '.join(sorted(known, key=order))}" for name, known in versions.items())


def strength_text(ratios: Sequence[float]) -> str:
    """Sorted ratios of the applied scale to that of training as text: `64x too weak`; empty if all are 1, or none."""
    if tuple(ratios) in ((), (1.0,)):
        return ""
    low, high = ratios[0], ratios[-1]
    if low < 0:
        return "cannot tell (the two scales differ in sign)"
    if high <= 1:
        return f"{1 / low:.3g}x too weak" if low == high else f"{1 / high:.3g}x to {1 / low:.3g}x too weak"
    if low == high:
        return f"{high:.3g}x too strong"
    return f"{1 / low:.3g}x too weak to {high:.3g}x too strong" if low < 1 else f"{low:.3g}x to {high:.3g}x too strong"


def does(own: Outlook) -> str:
    """How the effect of a file in a program differs from that of training; empty if it does not."""
    if own.raises:
        return f"stops at {own.raises}"
    if not own.applied:
        return "does nothing"
    if own.applied < own.modules:
        return f"applies {own.applied} of {own.modules} modules"
    return own.otherwise or strength_text(own.ratios)


def programs(outlooks: Sequence[Outlook], to: str) -> tuple[Program, ...]:
    """The programs of the format `to`, and those of other formats that were run and apply the file as in training."""
    result = []
    for own in outlooks:
        otherwise, of_format = does(own), runtimes()[own.runtime].format == to
        if of_format or (own.run and not otherwise):
            versions = tuple(run.version for run in own.run)
            result.append(Program(own.runtime, own.program, own.title, versions, otherwise, own.instead))
    return tuple(result)


def acting(outlooks: Sequence[Outlook]) -> str:
    """The measured versions in which a file acts as in training: `Diffusers 0.40.0, 0.42.1; PEFT 0.21.2`, or ""."""
    return joined(
        (own.program, [run.version for run in own.run])
        for own in outlooks
        if own.run and own.ratios == (1.0,) and not does(own)
    )


def mixed_ranks(to: str, ranks: Mapping[str, int]) -> str:
    """The programs of a format that silently apply a file of these ranks at a wrong scale, with commas between them."""
    return ", ".join(
        program.title
        for program in runtimes().values()
        if program.format == to and not program.always and not program.sees and odd_ranks(program, ranks)
    )
