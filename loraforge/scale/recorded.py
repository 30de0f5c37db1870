"""Finds what records the scale of an adapter file: one search through every place that can, for every format."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from loraforge.errors import FormatError, ScaleError, Try, VariantError, adding, leaving_out, names_in
from loraforge.files.tensorfile import TensorFile
from loraforge.files.texts import read_json
from loraforge.foreign import reading
from loraforge.names.layout import COMPONENTS
from loraforge.scale import peft_config, split_qkv
from loraforge.scale.origin import Origin
from loraforge.scale.rule import Choice, Rule, over, overriding
from loraforge.scale.run_folders import UP, adapters, as_typed, beside, is_anothers, of_several_runs, own, places
from loraforge.scale.split_qkv import Parts, Stacks
from loraforge.scale.training_config import TrainingScale, read_text, read_training_config, stated_in
from loraforge.text import listed, shown, told

PEFT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
PEFT_CONFIG = "adapter_config.json"
_LORA_CONFIG = ("peft_type", "r", "lora_alpha")
"""What no LoraConfig lacks."""
_MOST_BYTES = 1 << 24
_OFFERED = 4
_UNSET = ("", "none", "null", "dynamic", "auto")
"""What trainers write if alpha is not a number."""


@dataclass(slots=True)
class Record:
    """One search and its results."""

    file: TensorFile
    choice: Choice
    ranks: Mapping[str, int]
    """Module path -> rank."""
    alphas: Mapping[str, float]
    """Module path -> value of its alpha tensor."""
    dora: bool
    origin: Origin
    peft: bool
    """Whether the names in the file are PEFT's, so that a PEFT configuration beside it describes this file."""
    live: Callable[[], Mapping[str, int]]
    """Module path -> number of its components that are not exactly zero."""
    stacks: Stacks
    """The modules that stack several segments."""
    rules: list[Rule] = field(default_factory=list)
    near: list[Try] = field(default_factory=list)
    """Remedies from configurations that state a scale but may belong to another adapter."""
    notes: list[str] = field(default_factory=list)
    configs: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Where it was found -> a LoraConfig that describes the file."""

    @property
    def believed(self) -> bool:
        """Whether recorded scales count; not with --override-scale, or if they were recorded of other tensors."""
        return not self.choice.stated.override and self.origin.tensors != "others"

    def offer(self, path: Path, scaling: float, said: str) -> None:
        """Offer a configuration that counts only if the user names it."""
        where = as_typed(path, self.file.path)
        if where != told(where) or where.startswith("hf://"):  # a file on the Hub has no path that can be typed
            stated, why = ("--trained-scale", f"{scaling:.12g}"), f"if {where} is of its run"
        else:
            stated, why = ("--training-config", where), f"if that is of its run ({said})"
        self.near.append(adding(*stated, why=f"{why}: scale {scaling:g}", scale=scaling))


def search(record: Record) -> Record:
    """Look in every place, in order. Raises FormatError or ScaleError if a record contradicts the tensors."""
    for look in list(PLACES.values())[: 3 if record.choice.program else None]:
        look(record)
    del record.near[_OFFERED:]
    return record


def looked(file: TensorFile, differ: str, found: Iterable[str] = ()) -> str:
    """The sentence saying where a scale was looked for in vain. `found`: records that could not be used.

    `differ`: why the trainers that write such files do not settle it.
    """
    folder = as_typed(file.path.absolute().parent, file.path)
    unusable = "; ".join(found)
    what = f"no alpha that can be used is recorded ({unusable}; " if unusable else "no alpha is recorded ("
    return f"{what}looked for {', '.join(PLACES)}, in {folder}), and {differ}"


def header_configs(file: TensorFile) -> dict[str, dict[str, Any]]:
    """Header entry -> the LoraConfig in it, without the component's prefix; not those of text encoders.

    Raises ScaleError if an entry is not JSON.
    """
    configs = {}
    for key in places()["header"]["configs"]:
        if key not in file.metadata:
            continue
        with reading(f"{file.path}: its header entry {key}", "JSON", kind=ScaleError):
            value = json.loads(file.metadata[key])
        components = dict[str, dict[str, Any]]()
        for name, entry in value.items() if isinstance(value, dict) else ():
            component, _, word = name.rpartition(".")
            more = entry.items() if isinstance(entry, dict) and ("r" in entry or "lora_alpha" in entry) else ()
            components.setdefault(component, {})[word] = entry
            components.setdefault(name, {}).update(more)
        mine = {n: part for n, part in components.items() if ("r" in part or "lora_alpha" in part) and _adapts(n)}
        for name in [name for name in (*COMPONENTS, "") if name in mine][:1] or mine:
            configs[key if name in (*COMPONENTS, "") else f"{key} ({name})"] = mine[name]
    return configs


def _adapts(component: str) -> bool:
    """Whether a component named in a header is not a text encoder."""
    return not component.startswith(tuple(places()["header"]["text_encoders"]))


def _configs(record: Record) -> None:
    _believe(record, header_configs(record.file))
    for key in places()["header"]["configs"]:
        if not isinstance(json.loads(record.file.metadata.get(key, "{}")), dict):
            record.notes.append(f"its header entry {key} is no LoraConfig: not used")


def _believe(record: Record, configs: Mapping[str, Mapping[str, Any]], file: str = "") -> None:
    """Add one rule per LoraConfig, keyed by where it was found; none if recorded scales do not count.

    Raises FormatError if a config is more than A and B or leaves modules out, ScaleError if it contradicts the tensors.
    """
    path, ranks = record.file.path, record.ranks
    for where, config in configs.items():
        if odd := peft_config.unsupported(config):
            raise VariantError(f"{path}: its {where} has {odd}.")
        if where == "lora_config":  # finetrainers writes neither patterns nor rslora: one r and one alpha for all
            config = {"r": Counter(ranks.values()).most_common(1)[0][0], **config}
        if bool(config.get("use_dora", record.dora)) != record.dora:
            have = "and the file has" if record.dora else "but the file has no"
            text = f"{path}: its {where} says use_dora {config['use_dora']}, {have} magnitudes."
            raise FormatError(text, names_in(path))
        biases = [key for key in record.file.tensors if ".lora_B." in key and key.endswith(".bias")]
        if biases and where != "lora_config" and not config.get("lora_bias"):
            text = f"{path}: its {where} does not say lora_bias, so PEFT would leave out {listed(biases, 3)}."
            raise FormatError(text, adding("--drop", "*.lora_B*.bias", why="if they are to be left out"))
        record.configs[where] = config
        if not record.believed:
            continue
        try:
            stems = [key.partition(".lora_")[0] for key in record.file.dropped]
            dropped = {name for stem in stems for name in (stem, stem.partition(".")[2])}  # without its prefix
            record.rules.append(peft_config.rule(config, ranks, where, file, record.live, dropped))
            left = peft_config.untargeted(config, ranks, where)
        except ScaleError as error:
            raise ScaleError(f"{path}: {error.message}", *error.remedies) from error
        if left:
            narrowing = ("target_modules", "exclude_modules", "layers_to_transform")
            narrowed = ", ".join(key for key in narrowing if config.get(key))
            text = f"{path}: its {where} leaves out (by {narrowed}) {listed(left, 3)}, whose tensors are in the file: "
            raise FormatError(f"{text}PEFT would not load them, so the two do not belong together.", leaving_out(left))


def _peft(record: Record) -> None:
    """adapter_config.json beside the file: obeyed for a file with PEFT's name, else used only if all of it fits."""
    path = record.file.path.with_name(PEFT_CONFIG)
    mine = record.file.path.name in PEFT_FILES
    where = as_typed(path.absolute(), record.file.path)
    if mine and record.peft and path.exists():
        _believe(record, {where: config} if (config := read_config(path)) else {}, where)
    elif record.believed and path.is_file():
        try:
            config = read_config(path)
            if config.keys().isdisjoint(_LORA_CONFIG):  # MLX's trainers call theirs so too: nothing is said of a scale
                return
            alone = mine or [file.name for file in adapters(path.parent)] in ([], [record.file.path.name])
            trial = replace(record, rules=[], configs={})
            _believe(trial, {where: config}, where)
        except (FormatError, ScaleError) as error:
            record.notes.append(f"{where}, beside it, is of another adapter, and not used: {error.message}")
            return
        rule = trial.rules[0]
        scales = sorted({rule.of(module, rank) for module, rank in record.ranks.items()})
        if alone and config.get("target_modules"):
            record.rules.append(rule)
            record.configs.update(trial.configs)
            record.notes.append(f"the scale is read from {where}: its rank and targets are those of every module")
        else:
            record.offer(path.absolute(), scales[0], rule.values)


def _tensors(record: Record) -> None:
    if not record.alphas or not record.believed:
        return
    alphas, every = record.alphas, sorted(set(record.alphas.values()))
    text = f"alpha {every[0]:g}" if len(every) == 1 else f"alphas from {every[0]:g} to {every[-1]:g}"
    parts = Parts({})
    if record.origin.scale is None and not record.choice.program:  # ours has counted them
        by = record.choice.stated.trained_by
        parts = split_qkv.parts(alphas, record.ranks, record.stacks, record.file.metadata, by)
    if parts.counts:
        record.notes.append(parts.note)
        text += f" over the rank of each part ({parts.why})"
    scalings = {path: alpha * parts.counts.get(path, 1) / record.ranks[path] for path, alpha in alphas.items()}
    record.rules.append(Rule(f"{text} in its alpha tensors", exceptions=scalings, covers=frozenset(alphas)))


def _plain(record: Record) -> None:
    """Single values: an alpha over the rank recorded with it, or over the rank of each tensor."""
    words, groups = places()["header"], dict[str, dict[str, float]]()
    flags = {component for component, word, text in _words(record, words["rslora"]) if text.lower() in ("true", "1")}
    for component, word, text in _words(record, (*words["alpha"], *words["rank"])):
        try:
            value = float(text)
        except ValueError:
            if word in words["alpha"] and text.lower() not in _UNSET:
                record.notes.append(f"its header says {word} {shown(text)}, which is no number: not used")
            continue
        groups.setdefault(component, {})[word] = value
    renamed = not record.alphas and any(".lora_A." in key for key in record.file.tensors)
    if renamed and "ss_network_module" in record.file.metadata:
        groups.pop("ss", None)  # a converter multiplied alpha in, and kept the header of the file that it read
    ours = record.origin.scale is not None  # what was true of the source need not be true of our result
    for component, values in groups.items() if record.believed and not ours else ():
        ranks = {word: value for word, value in values.items() if word in words["rank"]}
        for word, alpha in values.items():
            if word in words["alpha"]:
                _one(record, component, word, alpha, ranks, rslora=component in flags)


def _words(record: Record, words: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """Component, word and text of the header entries with these names; those of sd-scripts are a component."""
    for name, text in record.file.metadata.items():
        component, _, word = name.rpartition(".")
        if word in words and _adapts(component):
            yield component or word.partition("_")[0] * word.startswith("ss_"), word, text.strip()


def _one(record: Record, component: str, word: str, alpha: float, stated: Mapping[str, float], *, rslora: bool) -> None:
    name = f"{component}.{word}" if component not in ("", "ss") else word
    covers = {path for path, rank in record.ranks.items() if all(rank == value for value in stated.values())}
    beside = ", ".join(f"{other} {value:g}" for other, value in stated.items())
    statement = f"{name} {alpha:g}{f', {beside}' if beside else ''}{', rslora' if rslora else ''} in its header"
    if not covers:
        ranks = ", ".join(map(str, sorted(set(record.ranks.values()))))
        if any(rule.covers is None or rule.covers >= record.ranks.keys() for rule in record.rules):
            record.notes.append(f"{statement}, and its tensors have rank {ranks}: not used")
            return
        tries = [overriding("--alpha", alpha, f"if alpha {alpha:g} holds at rank {ranks}")]
        rank = next(iter(stated.values()))
        if rank > 0 and len(set(stated.values())) == 1:
            scale = over(alpha, rank, rslora=rslora)
            tries.append(overriding("--trained-scale", scale, f"if its scale is right: {scale:g}"))
        raise ScaleError(f"{record.file.path}: {statement}, but its tensors have rank {ranks}.", *tries)
    record.rules.append(Rule(statement, alpha, rslora=rslora, covers=frozenset(covers), has_rank=bool(stated)))


def _documents(record: Record) -> None:
    for key in places()["header"]["documents"] if record.believed and record.origin.scale is None else ():
        try:
            config = read_text(record.file.metadata.get(key, ""), Path(f"{key}.json"))
        except ScaleError:  # it states none, or is no configuration
            continue
        if config.rank in (None, *record.ranks.values()):
            rank = {} if config.rank is None else {"rank": config.rank}
            _one(record, "", key, config.alpha, rank, rslora=config.rslora)


def _own(record: Record) -> None:
    """Our own entry: the scale is in the tensors, or all modules were written with one scale."""
    if record.rules or not record.believed:
        return
    if record.origin.folded:
        record.rules.append(Rule("folded in by loraforge", scaling=1.0))
    elif len(record.origin.applied) == 1:
        scale = record.origin.applied[0]
        record.rules.append(Rule(f"scale {scale:g} in loraforge's own entry", scaling=scale))


def _training(record: Record) -> None:
    """The training configuration that the user names; if nothing is recorded, one in the run's own folder."""
    named = record.choice.training_config
    if named and not record.choice.stated.override:
        record.rules.append(_named(record, named))
    elif not record.rules and record.believed:
        mine, others = around(record.file.path, record.ranks)
        if mine:
            record.rules.append(_rule(mine[1], record, mine[0]))
        ranks = set(record.ranks.values())
        for path, config in others:
            if config.rank is None or ranks == {config.rank}:
                record.offer(path, config.scaling(min(ranks)), config.said)
            elif path.parent in own(record.file.path):
                where = as_typed(path, record.file.path)
                record.notes.append(f"{where} states a scale, but not for an adapter of this rank: not used")


def _named(record: Record, named: Path) -> Rule:
    if named.name == PEFT_CONFIG:
        trial = replace(record, rules=[])
        _believe(trial, {told(named): read_config(named)}, told(named))
        return trial.rules[0]
    config = read_training_config(named)
    if config.rank is not None and set(record.ranks.values()) != {config.rank}:
        ranks = ", ".join(map(str, sorted(set(record.ranks.values()))))
        text = f"{named} says rank {config.rank:g}, but the tensors of {record.file.path} have rank {ranks}"
        raise ScaleError(f"{text}: it belongs to another run.")
    return _rule(config, record, named)


def around(
    file: Path, ranks: Mapping[str, int], *, siblings: bool = True
) -> tuple[tuple[Path, TrainingScale] | None, list[tuple[Path, TrainingScale]]]:
    """The run's own configuration or None, and those that may belong to another run, the nearest first."""
    others, mine = list[tuple[Path, TrainingScale]](), list[tuple[Path, TrainingScale]]()
    for folder in own(file):
        configs = stated_in(folder)
        sound = [(path, said) for path, said in configs.items() if said]
        one = len(sound) == len(configs) and len({(said.alpha, said.rslora) for _, said in sound}) == 1
        fits = sound and set(ranks.values()) == {sound[0][1].rank}
        if one and fits and not is_anothers(sound[0][1].output, folder, file) and not of_several_runs(folder):
            mine.append(sound[0])
        others += sound
    if mine and len({(said.alpha, said.rslora) for _, said in mine}) == 1:
        return mine[0], []
    above = [folder for folder in file.absolute().parents[:UP] if folder not in own(file)]
    for folders in (above, beside(file) if siblings else []):
        others += [(path, said) for folder in folders if not others for path, said in stated_in(folder).items() if said]
    return None, others


def _rule(config: TrainingScale, record: Record, path: Path) -> Rule:
    where = as_typed(path.absolute(), record.file.path) if path != record.choice.training_config else told(path)
    has_rank = config.rank is not None
    return Rule(f"{config.said} in {where}", config.alpha, rslora=config.rslora, file=where, has_rank=has_rank)


def read_config(path: Path) -> dict[str, Any]:
    """PEFT's configuration. Raises FormatError if it cannot be read."""
    if not path.is_file():  # opening a pipe would wait for ever
        raise FormatError(f"{path} is no file that can be read, and the scale would stand in it.")
    return read_json(path, "a LoraConfig in JSON", kind=FormatError, most=_MOST_BYTES)


PLACES: Mapping[str, Callable[[Record], None]] = {
    "lora_adapter_metadata, lora_config": _configs,
    "adapter_config.json": _peft,
    "alpha tensors": _tensors,
    "header entries lora_alpha, network_alpha, alpha, ss_network_alpha": _plain,
    "training_config, ss_network_args": _documents,
    "loraforge's own entry": _own,
    "training configurations of its run": _training,
}
"""Every place that can record a scale, by its name for a reader -> the function that looks there."""
