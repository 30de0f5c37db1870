"""SAT: what CogVideo's `sat/` trainer writes. A DeepSpeed run folder with the base weights; the scale is in a YAML.

This file reads it; sat_write.py writes it.

Sources: SwissArmyTransformer sat/model/finetune/lora2.py (keys, scaling = lora_alpha / r, lora_alpha = 1),
sat/training/model_io.py (folders, `latest`, `-ema`), CogVideo sat/configs/*_lora.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from loraforge.adapter.adapter import Adapter, Storage
from loraforge.errors import FileError, FormatError, ScaleError, Try, adding, names_in
from loraforge.files.neighbours import subfolders
from loraforge.files.tensorfile import TensorFile
from loraforge.files.texts import read_yaml
from loraforge.format.keys import Keys
from loraforge.format.not_an_adapter import not_an_adapter
from loraforge.format.protocol import Found, Wanted, Writer
from loraforge.format.sat_names import CHECKPOINT, CONFIG, LORA_SECTION, ORIGIN, SAT_PREFIX, STYLE, components, is_lora
from loraforge.format.sat_run import choose, only_shard, run_name, shards, undivided
from loraforge.format.sat_write import SatWriter
from loraforge.names.catalog import architecture
from loraforge.names.layout import Architecture
from loraforge.scale.origin import CHANGED, kept, origin, seal, unsealed
from loraforge.scale.recorded import around
from loraforge.scale.resolve import resolve
from loraforge.scale.rule import Choice, Rule, number, overriding
from loraforge.scale.run_folders import as_typed, of_several_runs, own
from loraforge.text import command, listed, shown, told

_OWN = re.compile(
    rf"(?:{'|'.join(map(re.escape, STYLE.prefixes))})(?:mixins\."
    r"|transformer\.layers\.\d+\.(attention\.(query_key_value|dense)|mlp\.dense_\w+|\w*layernorm)\b)"
)
"""How keys of SAT begin. Blocks are called `transformer.layers` in Diffusers' files of Z-Image and Lumina 2 too, and
`model.diffusion_model.` stands before the names of any whole model."""
_OF_BASE = re.compile(r"^(?!.*\.lora_).*\.(weight|bias)$")
"""What a parameter of the base is called: no factor in the words of another trainer, which has learned SAT's names."""


class SatFormat:
    """Reads SAT run folders, iteration folders and checkpoint files, and writes run folders."""

    name = "sat"
    summary = "CogVideo's SAT trainer: run folder or mp_rank_00_model_states.pt"
    layouts: Mapping[str, str] = {"cogvideox": "sat"}
    options = frozenset({"target_alpha", "base", "lora_only"})
    storage = Storage(parts=True, one_rank=True, magnitude=False, segments=frozenset({"q", "k", "v", "o"}))

    def writer(self, wanted: Wanted) -> Writer:
        """A writer that copies the base which the user names."""
        base = wanted.base
        if base and base.is_dir():
            checkpoint = self.find(base, Choice()) or self.below(base)
            if checkpoint is None:
                raise FileError(f"no SAT checkpoint was found in --base {base}.")
            base = checkpoint.path
        return SatWriter(wanted, base)

    def find(self, source: Path, choice: Choice) -> Found | None:
        if source.is_file():
            return Found(source, run_name(source))
        if shards(source):
            return Found(only_shard(source), run_name(source / CHECKPOINT))
        checkpoints = {child.name for child in subfolders(source) if shards(child)}
        if not checkpoints and not (source / "latest").is_file():
            return None
        chosen, note = choose(source, checkpoints, choice)
        file = only_shard(source / chosen)
        return Found(file, run_name(file), (note,))

    def below(self, folder: Path) -> Found | None:
        """The checkpoint in the only subfolder that has one: the layout of the released models.

        Raises FileError that names the subfolders if there are several.
        """
        holding = [child for child in subfolders(folder) if shards(child) or (child / "latest").is_file()]
        if len(holding) > 1:
            text = f"{folder} holds several SAT checkpoints, in {listed([child.name for child in holding])}: which?"
            raise FileError(text, *(Try(str(child), instead=str(folder)) for child in holding[:5]))
        located = self.find(holding[0], Choice()) if holding else None
        return located and replace(located, notes=(f"took {holding[0].name} of {folder.name}", *located.notes))

    def claims(self, file: TensorFile) -> bool:
        return any(_OWN.match(key) and (is_lora(key) or _OF_BASE.search(key)) for key in file.tensors)

    def read(self, file: TensorFile, choice: Choice) -> Adapter:
        undivided(file)
        arch = architecture("cogvideox")
        lora = {key: info for key, info in file.tensors.items() if _looks_like_lora(key)}
        if strange := [f"{key} ({name})" for key, name in file.opaque.items() if _looks_like_lora(key)]:
            text = f"LoRA tensors are stored as objects this tool does not build: {listed(strange)}."
            raise FormatError(f"{file.path}: {text}")
        if not any(is_lora(key) for key in lora):
            raise not_an_adapter(file, "SAT LoRA")
        try:
            pairs = STYLE.find(lora, arch, "sat")
        except FormatError as error:
            raise FormatError(f"{file.path}: {error.message}", names_in(file.path)) from error
        ranks = {path: _one_rank(file, path, keys) for path, keys in pairs.items()}
        recorded, metadata, notes = _recorded(file.path, choice, ranks)
        near = [] if recorded or choice.training_config or choice.stated.override else _near(file, ranks)
        known = origin(metadata, seal(file, sorted(filter(_looks_like_lora, file.whole)), choice))
        default = Rule("SAT's default lora_alpha 1, as no file of the run says otherwise", alpha=1.0)
        where = "no training_config.yaml is in the folder of its run, and one near by states another alpha than SAT's 1"
        if known.tensors == "others":
            recorded, metadata, near, where = [], {}, [*kept(known), *near], CHANGED
        rule, scale = resolve(recorded, choice.stated, ranks, default=None if near else default, unknown=where)
        return Adapter(
            architecture="cogvideox",
            layout="sat",
            modules=STYLE.decode(file, pairs, rule.of),
            scale=known.settle(scale, rule, choice.stated, ranks, str(file.path)),
            ranks_recorded=rule.has_rank,
            keys=tuple(sorted(lora)),
            evidence=_evidence(file, arch),
            others=components(key for key in file.tensors if key not in lora),
            metadata=metadata,
            base_model=known.base_model,
            notes=(*notes, *unsealed(known, choice)),
            candidates=tuple(near) if scale.provenance == "ambiguous" else (),
        )


def _looks_like_lora(key: str) -> bool:
    return is_lora(key) or "lora" in key.lower()


def _one_rank(file: TensorFile, path: str, pairs: list[Keys]) -> int:
    ranks = {file.tensors[keys.B].shape[1] for keys in pairs}
    if len(ranks) > 1:
        raise FormatError(f"{file.path}: the parts of {path} have ranks {sorted(ranks)}; SAT trains them all at one.")
    return ranks.pop()


_Recorded = tuple[list[Rule], dict[str, str], tuple[str, ...]]
"""Rules of scale, the metadata of the source's header, notes."""


def _recorded(file: Path, choice: Choice, ranks: Mapping[str, int]) -> _Recorded:
    """The scale that the run's YAML records, and the origin that loraforge wrote into it.

    The YAML is the one that the user names, otherwise the one in the folder of the run.
    """
    if choice.stated.override:
        return [], {}, ()
    path = choice.training_config or next((f / CONFIG for f in own(file) if (f / CONFIG).is_file()), None)
    if path is None or (path != choice.training_config and of_several_runs(path.parent)):
        return [], {}, ()
    document = read_yaml(path)
    section = _section(document)
    if not isinstance(section, dict):
        if choice.training_config:
            text = f"{path} has no {'.'.join(LORA_SECTION)}: it does not configure SAT's LoRA."
            raise ScaleError(text, command("grep", "-n", "lora", path))
        return [], {}, (f"{path.name} has no lora_config section, so it records no scale",)
    r, alpha = number(section.get("r")), number(section.get("lora_alpha", 1))
    if r is None or alpha is None:
        text = f"{path}: r {shown(section.get('r'))}, lora_alpha {shown(section.get('lora_alpha'))} are no numbers."
        raise ScaleError(text, overriding("--alpha", 1, "if the run did not set lora_alpha"))
    if odd := sorted({rank for rank in ranks.values() if rank != r}):
        have = ", ".join(map(str, odd))
        text = f"{path} says r {r:g}, but the tensors of {file} have rank {have}: it belongs to another run."
        raise ScaleError(text, overriding("--alpha", 1, "if training used SAT's default lora_alpha"))
    default = "lora_alpha" not in section
    text = f"r {r:g}, lora_alpha not set: SAT's default 1," if default else f"r {r:g}, lora_alpha {alpha:g}"
    where = told(path) if path == choice.training_config else as_typed(path, file)
    rule = Rule(f"{text} in {where}", alpha=alpha, file=where, has_rank=True)
    origins = document.get(ORIGIN)
    texts = origins.items() if isinstance(origins, dict) else ()
    metadata = {key: text for key, text in texts if isinstance(key, str) and isinstance(text, str)}
    return [rule], metadata, ()


def _section(document: Any) -> Any:
    for key in LORA_SECTION:
        document = document.get(key) if isinstance(document, dict) else None
    return document


def _near(file: TensorFile, ranks: Mapping[str, int]) -> list[Try]:
    """What to type if configurations near by show that training may not have used SAT's default."""
    whose, others = around(file.path, ranks, siblings=False)
    configs = [(path, one) for path, one in [*([whose] if whose else []), *others] if one.rank in ranks.values()]
    if all(config.alpha == 1 for _, config in configs):
        return []
    tries = []
    for path, config in configs[:3]:
        where, scale = as_typed(path, file.path), config.scaling(min(ranks.values()))
        sats = not where.startswith("hf://") and path.suffix == ".yaml" and isinstance(_section(read_yaml(path)), dict)
        stated = ("--training-config", where) if sats else ("--trained-scale", f"{scale:.12g}")
        tries.append(adding(*stated, why=f"if {where} is of its run ({config.said}): scale {scale:g}", scale=scale))
    default = 1 / min(ranks.values())
    return [*tries, adding("--alpha", "1", why=f"if the run did not set lora_alpha: scale {default:g}", scale=default)]


def _evidence(file: TensorFile, arch: Architecture) -> dict[str, tuple[int, ...]]:
    """Segment -> shape of its base weight in this file, for modules that hold one segment."""
    shapes = {}
    for key, info in file.tensors.items():
        path = key.removeprefix(SAT_PREFIX).removesuffix(".weight").removesuffix(".original")
        segments = arch.layouts["sat"].stacked(path) if key.endswith(".weight") else ()
        if len(segments) == 1:
            shapes[segments[0]] = info.shape
    return shapes
