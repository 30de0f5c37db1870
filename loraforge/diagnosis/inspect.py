"""Say what a file is: format, modules, ranks, scale, base. Reads names, shapes and headers; no weight is touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraforge.adapter.adapter import alike
from loraforge.adapter.differences import counted, described
from loraforge.adapter.drop import without
from loraforge.adapter.fits import fits
from loraforge.base.opening import open_base
from loraforge.base.origin import held, maker
from loraforge.conversion.evidence import read_adapter
from loraforge.conversion.report import base_text, titles, unshown
from loraforge.document import Document
from loraforge.errors import FileError, LoraforgeError, NoAdapterError, as_commands
from loraforge.files.opening import open_tensors
from loraforge.files.shards import group_of
from loraforge.format.keys import kinds
from loraforge.format.locate import locate
from loraforge.format.not_an_adapter import not_an_adapter
from loraforge.hub.address import address
from loraforge.names.layout import COMPONENTS
from loraforge.names.lookalike import lora_paths
from loraforge.scale.origin import history
from loraforge.scale.rule import Choice, Scale
from loraforge.text import fraction, listed, told


@dataclass(frozen=True, slots=True)
class Inspection(Document):
    """What a header says. schemas/inspect.schema.json explains the fields."""

    schema = "inspect"

    path: str
    container: str
    size: int
    format: str | None = None
    architecture: str | None = None
    evidence: str | None = None
    rivals: tuple[str, ...] = ()
    layout: str | None = None
    components: dict[str, int] = field(default_factory=dict)
    targets: dict[str, int] = field(default_factory=dict)
    differences: dict[str, int] = field(default_factory=dict)
    ranks: dict[int, int] = field(default_factory=dict)
    dtypes: dict[str, int] = field(default_factory=dict)
    scale: Scale | None = None
    scalings: tuple[float, ...] = ()
    fits: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    trigger_words: dict[str, str] = field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    problem: str | None = None
    remedies: tuple[str, ...] = ()
    base: dict[str, Any] | None = None

    def lines(self) -> list[str]:
        """The same for a terminal, one fact a line."""
        table = {
            "file": f"{self.path} ({self.size:,} bytes, {self.container})",
            "format": f"{self._format()}{f', layout {self.layout}' if self.layout else ''}",
            "model": self._model(),
            "holds": self._holds(),
            "modules": ", ".join(f"{name} x{count}" for name, count in self.targets.items()),
            "whole": described(self.differences),
            "rank": _counted(self.ranks),
            "dtype": _counted(self.dtypes),
            "scale": self._scale(),
            "trigger": "; ".join(f"{words} ({key})" for key, words in self.trigger_words.items()),
            "fits": base_text(self.fits, self.architecture, self.rivals) if self.scale and self.architecture else "",
        }
        lines = [f"{name:<9}{text}" for name, text in table.items() if text]
        header = [f"{key}: {_short(' '.join(value.split()))}" for key, value in self.metadata.items()]
        for name, texts in (("header", header), ("convert", [] if self.problem else self.remedies)):
            lines += [f"{'' if n else name:<9}{text}" for n, text in enumerate(texts)]
        return lines

    def history_lines(self) -> list[str]:
        """Where the file comes from, the oldest first; for `--history`."""
        if self.base and self.base["made"]:
            made = {"of": "?", "command": "?", "tool": "?", **self.base["made"]}
            fused = [f"         + {_added(one)}" for one in self.base["fused"]]
            last = [f"         {made['command']}   ({made['tool']})", f"         -> {self.path}, this model"]
            return [f"history  {made['of']}", *fused, *last]
        if not self.history:
            return ["history  none is recorded: no conversion by loraforge led to this file"]
        steps = list(reversed(self.history))
        first = steps[0]["scale"]
        at = ", ".join(map(fraction, first["scalings"]))
        lines = [f"history  {_origin(steps[0]['source'])}, at scale {at} ({first['provenance']}: {first['source']})"]
        for n, step in enumerate(steps):
            after = _origin(steps[n + 1]["source"]) if n + 1 < len(steps) else f"{self.path}, this file"
            lines += [f"         {n + 1}. {step['command']}   ({step['tool']})", f"            -> {after}"]
        return lines

    def _format(self) -> str:
        return _KINDS[self.base["kind"]] if self.base else self.format or "unknown"

    def _model(self) -> str:
        if self.base:
            return f"{self.architecture}; the released models most like it: {listed(list(self.fits)) or 'none'}"
        if self.architecture is None:
            return ""
        others = titles(self.rivals)
        return f"{self.architecture} ({self.evidence})" if self.evidence else unshown(self.architecture, others)

    def _holds(self) -> str:
        if self.base:
            fused = f"; {len(self.base['fused'])} adapters fused (--history)" if self.base["fused"] else ""
            index = f", by {self.base['index']}" if self.base["index"] else ""
            return f"{sum(self.dtypes.values())} tensors in {listed(self.base['files'], 3)}{index}{fused}"
        adapted = {name: count for name, count in self.components.items() if name in (*COMPONENTS, "text_encoder")}
        rest = {name: count for name, count in self.components.items() if name not in adapted}
        lora = ", ".join(f"{name} {count}" for name, count in adapted.items())
        text = f"LoRA modules: {lora}" if lora else ""
        return f"{text}; other tensors: {', '.join(f'{n} {c}' for n, c in rest.items())}" if rest else text

    def _scale(self) -> str:
        if self.scale is None:
            return ""
        if self.scale.provenance == "ambiguous":
            return f"unknown ({self.scale.source}; loaders apply 1.0)"
        applied = ", ".join(map(fraction, self.scalings))
        trained = ", ".join(map(fraction, self.history[-1]["scale"]["scalings"])) if self.history else applied
        unread = "; not compared with the tensors" if self.history else ""
        known = f"({self.scale.provenance}: {self.scale.source}{unread})"
        if trained == applied or self.scale.program:
            return f"{applied} {known}"
        return f"trained at {trained} {known}; readers apply {applied}"


_KINDS = {
    "pipeline": "base model, a Diffusers pipeline",
    "transformer": "base model, a Diffusers model alone",
    "file": "base model, one file of tensors",
    "sat": "base model, a SAT checkpoint",
}

TRIGGERS = (
    "modelspec.trigger_phrase modelspec.trigger_words ss_trigger_words trained_words trigger_words trigger_word "
    "trigger_phrase instance_prompt"
).split()
"""Header entries with trigger words: ModelSpec's, and those that trainers and viewers use."""


def trigger_words(metadata: Mapping[str, str]) -> dict[str, str]:
    """Header entry -> the trigger words in it."""
    return {key: " ".join(metadata[key].split()) for key in TRIGGERS if metadata.get(key, "").strip()}


def _origin(source: Mapping[str, Any]) -> str:
    return f"{source['path']} ({source['format']}, {source['size']:,} bytes, {source['digest'][:19]}...)"


def _added(one: Mapping[str, Any]) -> str:
    """An adapter that was fused into a base model."""
    trained = f"trained at {', '.join(map(fraction, one['scalings']))} ({one['provenance']}: {one['said']})"
    return f"{one['path']} ({one['format']}) at strength {one['strength']:g}, {trained}"


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:150]} ... ({len(text)} characters; --json shows all)"


def _counted(counts: Mapping[Any, int]) -> str:
    """`128`, or `4 x3, 8 x1` where they differ."""
    return ", ".join(f"{value} x{count}" if len(counts) > 1 else f"{value}" for value, count in counts.items())


def inspect(
    source: str | Path,
    from_: str | None = None,
    *,
    iteration: int | None = None,
    ema: bool = False,
    drop: Sequence[str] = (),
    architecture: str | None = None,
    fetch: bool = False,
) -> Inspection:
    """Describe the adapter in `source`, a path or an address on the Hub, without reading a weight.

    Only the header of a file on the Hub is fetched; with `fetch`, the whole file, into the Hub's cache. A base model
    on this machine is described as one. Any other file that opens but is no adapter is described too, with `problem`
    set. Raises a LoraforgeError if it cannot be opened.
    """
    choice = Choice(iteration, ema, drop=tuple(drop), architecture=architecture)
    asked = (from_, iteration) == (None, None) and not (ema or drop)
    try:
        form, located, file = locate(source, from_, choice, fetch=fetch)
    except FileError:
        if asked and (model := _whole(source, choosing=True)):
            return model
        raise
    start = ("loraforge", "convert", file.path, "--to", "diffusers")
    adapter, error = None, None
    try:
        if form is None:
            raise not_an_adapter(file)
        adapter, _ = without(read_adapter(form, file, choice), drop, file)
    except LoraforgeError as refusal:
        adapters = file.path == Path(source) and lora_paths(kinds(file))  # then it is not opened again
        if asked and isinstance(refusal, NoAdapterError) and not adapters and (model := _whole(source)):
            return model
        error = as_commands(refusal, *start) if form else refusal
    layout = adapter.model.layouts[adapter.layout] if adapter else None
    ranks, targets = Counter[int](), Counter[str]()
    for delta, paths in alike(adapter.modules) if adapter else ():
        ranks[delta[0].rank] += len(paths)
        each = paths if layout and layout.last is not None else paths[:1]  # the last block may be of another kind
        for template, _ in filter(None, map(layout.locate, each)) if layout else ():
            targets[template.text] += len(paths) // len(each)
    some = adapter.keys if adapter and len(adapter.keys) < len(file.tensors) else file.tensors
    types = Counter([file.tensors[key].dtype for key in some])
    remedies = [remedy.command for remedy in error.remedies] if error else []
    if adapter and form and adapter.scale.provenance == "ambiguous":
        less = [word for pattern in drop for word in ("--drop", pattern)]
        remedies = [str(remedy.added_to(*start, *less)) for remedy in adapter.candidates]
    return Inspection(
        path=told(file.path),
        container=file.kind,
        size=file.size,
        format=form.name if form else None,
        architecture=adapter.architecture if adapter else None,
        evidence=(adapter.shown or None) if adapter else None,
        rivals=tuple(adapter.rivals) if adapter else (),
        layout=adapter.layout if adapter else None,
        components=({adapter.model.component: len(adapter.modules), "text_encoder": 0} | dict(adapter.others))
        if adapter
        else {},
        targets=dict(targets),
        differences=counted(adapter.differences) if adapter else {},
        ranks=dict(sorted(ranks.items())),
        dtypes=dict(sorted(types.items())),
        scale=adapter.scale if adapter else None,
        scalings=adapter.scalings if adapter else (),
        fits=tuple(variant.name for variant in fits(adapter)) if adapter else (),
        metadata=dict(sorted(file.metadata.items())),
        trigger_words=trigger_words(file.metadata),
        history=history(adapter.metadata if adapter else file.metadata),
        notes=(*located.notes, *(adapter.notes if adapter else ())),
        problem=error.message if error else None,
        remedies=tuple(remedies),
    )


def _whole(source: str | Path, *, choosing: bool = False) -> Inspection | None:
    """What the base model at a path is; None if there is none that can be opened.

    `choosing`: raise the FileError of a folder with several, which asks for one.
    """
    path = Path(source)
    if address(source):
        return None
    try:
        base = open_base(path.parent if group_of(path) else path)
    except LoraforgeError as error:
        if choosing and any(remedy.instead for remedy in error.remedies):
            raise
        return None
    if lora_paths(key for file in base.files for key in file.tensors):
        return None  # an adapter in words that no format reads has modules of a base too
    every = Counter(info.dtype for file in base.files for info in file.tensors.values())
    names = [file.path.name for file in base.files]
    return Inspection(
        told(base.path), base.files[0].kind, sum(file.size for file in base.files), layout=base.layout,
        architecture=base.architecture.name, fits=tuple(variant.name for variant in base.variants),
        dtypes=dict(sorted(every.items())), metadata=dict(sorted(base.files[0].metadata.items())), notes=base.notes,
        base={"kind": base.kind, "files": names, "index": base.index, "fused": held(base), "made": maker(base)},
    )  # fmt: skip


def skeleton(
    source: str | Path, *, iteration: int | None = None, ema: bool = False, fetch: bool = False
) -> dict[str, Any]:
    """Everything of a file but its weights, to rebuild one of the same shapes: schemas/skeleton.schema.json."""
    path, choice = Path(source), Choice(iteration, ema)
    alone = choice == Choice() and address(source) is None and path.is_file()  # of several formats, or of none
    file = open_tensors(path)[0] if alone else locate(source, None, choice, fetch=fetch)[2]
    return {
        "schema": "loraforge.skeleton.v1",
        "name": file.path.name,
        "container": file.kind,
        "size": file.size,
        "tops": list(file.tops),
        "wrappers": list(file.wrappers),
        "globals": list(file.globals),
        "opaque": dict(file.opaque),
        "metadata": dict(file.metadata),
        "tensors": {key: {"dtype": info.dtype, "shape": list(info.shape)} for key, info in file.tensors.items()},
    }
