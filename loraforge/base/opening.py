"""Opens a base model: finds its files and its layout, and refuses what is no base model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from loraforge.algebra.dtypes import FACTORS
from loraforge.base.model import INDEX, LORA, NAME, STEM, BaseModel, Kind
from loraforge.errors import FileError, FormatError, Try, absent, names_in
from loraforge.files.opening import open_tensors, snapshot
from loraforge.files.shards import group_of, indexed, is_numbered
from loraforge.files.tensorfile import TensorFile
from loraforge.files.texts import read_json
from loraforge.format.grammar import wrappers
from loraforge.format.sat import SatFormat
from loraforge.format.sat_names import SAT_PREFIX
from loraforge.format.sat_run import undivided
from loraforge.hub.address import perhaps
from loraforge.names.catalog import architectures
from loraforge.names.layout import COMPONENT, COMPONENTS, Architecture
from loraforge.scale.rule import Choice
from loraforge.text import command, listed

_PREFIXES = (SAT_PREFIX, "", "transformer.", "unet.", "diffusion_model.", "model.", "net.")
"""What whole models are saved behind: SAT, ComfyUI, Diffusers, modules of one's own, DeepSpeed, Cosmos."""
_Around = tuple[str, bool]
"""The prefix of the names, and whether words of wrappers (DistributedDataParallel, torch.compile, FSDP) are in them."""
_FUSE_FIRST = "Fuse into the weights in full precision (bf16, fp16 or fp32), and quantise the result."


def open_base(path: str | Path) -> BaseModel:
    """Open a base model.

    Raises FileError or FormatError that names what was given instead: an adapter, quantised weights, several versions
    of the weights, a model saved with its LoRA layers, or an index that does not match its shards.
    """
    source = Path(path)
    if not source.exists():
        raise absent(path, *perhaps(path))
    source, took = snapshot(source)
    notes, index = list(took), ""
    if source.is_dir():
        whole = (source / "config.json").exists() or (source / "model_index.json").exists()
        if not whole and (sat := SatFormat().find(source, Choice()) or SatFormat().below(source)):
            kind: Kind = "sat"
            files, notes = [_open(sat.path)], [*notes, *sat.notes]
        else:
            kind = "pipeline" if (source / "model_index.json").exists() else "transformer"
            folder = _component(source) if kind == "pipeline" else source
            _full_precision(folder)
            files, index = _shards(folder, notes)
    else:
        files, kind = [_open(source)], "file"
    arch, layout, around = _recognised(source, files)
    if index and (files[0].path.parent / index).is_file():
        notes += _agrees(files, index, arch.layouts[layout], around)
    prefix = ""
    if around == (SAT_PREFIX, False) and kind in ("sat", "file"):  # SAT's own names, and those of one file for ComfyUI
        prefix, saved_by_sat = SAT_PREFIX, files[0].kind == "torch" and files[0].wrappers == ("module",)
        kind = "sat" if saved_by_sat else "file"
    else:
        kind = "file" if kind == "sat" else kind
        files = [_bare(file, around, notes) for file in files]
    base = BaseModel(source, kind, tuple(files), arch, layout, prefix, tuple(notes), index)
    base = replace(base, architecture=arch.ending(arch.layouts[layout].last_block(base.parameters)))
    _check(base)
    return base


def _component(pipeline: Path) -> Path:
    """The folder of the model that LoRAs adapt."""
    return next((pipeline / name for name in COMPONENTS if (pipeline / name).is_dir()), pipeline / COMPONENT)


def _open(path: Path) -> TensorFile:
    with path.open("rb") as stream:
        if stream.read(4) == b"GGUF":
            text = f"{path} is a GGUF model, whose weights are quantised. {_FUSE_FIRST}"
            raise FileError(text)
    file = open_tensors(path)[0]
    undivided(file)
    return file


def _full_precision(folder: Path) -> None:
    """Raise FileError if the config.json is missing or declares the weights quantised."""
    file = folder / "config.json"
    if not file.is_file():
        if (folder / "adapter_config.json").is_file():
            raise _swapped(folder)
        if not folder.is_dir():
            others = listed(sorted(child.name for child in folder.parent.iterdir() if child.is_dir()), 5) or "none"
            text = f"{folder.parent} has a model_index.json and no folder {folder.name}, which is what is read of it"
            raise FileError(f"{text}; its folders: {others}.")
        text = f"{folder} has no config.json, which a Diffusers model has, and no checkpoint of SAT was found in it."
        if models := sorted(path.parent for path in folder.glob("*/model_index.json")):
            text += f" Below it there is {listed([str(path) for path in models], 3)}: give that."
        elif files := sorted(path for path in folder.glob("*.safetensors")):
            text += f" Where {listed([path.name for path in files], 3)} is the model, give the file."
        raise FileError(text)
    quantized = read_json(file).get("quantization_config")
    if quantized is not None:
        method = quantized.get("quant_method", "some method") if isinstance(quantized, dict) else "some method"
        raise FileError(f"{file} says the weights are quantised ({method!s:.60}). {_FUSE_FIRST}")


def _swapped(source: Path) -> FormatError:
    text = f"{source} is an adapter, not a base model. The base model comes first: loraforge fuse BASE ADAPTER."
    return FormatError(text, command("loraforge", "inspect", source))


def missing_parts(base: BaseModel) -> list[str]:
    """The components that a pipeline's model_index.json names as absent."""
    parts = read_json(base.path / "model_index.json").items()
    return sorted(name for name, kind in parts if kind == [None, None])


def _shards(folder: Path, notes: list[str]) -> tuple[list[TensorFile], str]:
    """The tensor files that `from_pretrained` loads from a model folder, and the name of their index."""
    single, index = folder / f"{STEM}.safetensors", folder / INDEX
    others = sorted({p.name for p in folder.glob("*.safetensors")} - {single.name})
    if single.is_file() and index.is_file():
        text = f"{folder} holds {single.name} and {index.name}: two models, of which loaders take the second."
        raise FileError(text, _aside(single), _aside(index))
    if single.is_file():
        if others:
            notes.append(f"left out, as {single.name} is the model: {listed(others, 3)}")
        return [_open(single)], ""
    if not index.is_file():
        chosen = _under_another_name(folder)
        notes.append(f"read {chosen.name}, as there is no {single.name}")
        if is_numbered(chosen) and (group := group_of(chosen)):
            return [_open(folder / name) for name in group.names], INDEX  # which the result gets
        if not chosen.name.endswith(".json"):
            return [_open(chosen)], ""
        index = chosen
    names = _indexed(index)
    if rest := sorted(set(others) - set(names)):
        notes.append(f"left out, as the index does not name it: {listed(rest, 3)}")
    return [_open(folder / name) for name in names], index.name


def _under_another_name(folder: Path) -> Path:
    """The one index or file of weights that has another name: of a variant, of `zero_to_fp32.py`, or `*.bin`."""
    known = [(path, match) for path in sorted(folder.iterdir()) if (match := NAME.fullmatch(path.name))]
    whole = [(path, match) for path, match in known if match["index"] or not match["part"]]
    chosen = [path for path, match in whole if match["suffix"] == "safetensors"] or [path for path, _ in whole]
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        text = f"{folder} holds several versions of the weights: {listed([p.name for p in chosen])}. Keep one of them."
        raise FileError(text, *map(_aside, sorted(chosen, key=_bytes)[:-1]))  # the largest has the most bits
    if parts := [path.name for path, _ in known]:
        group = group_of(folder / parts[0])
        if group and sorted(group.names) == sorted(parts):
            return folder / group.names[0]
        text = f"{folder} holds {listed(parts, 3)}, and no index of its parts."
        raise FileError(text, names_in(folder / parts[0]))
    text = f"{folder} has no {STEM}.safetensors and no {INDEX}"
    strange = sorted(p.name for p in folder.glob("*.safetensors"))
    more = f"; there is {listed(strange, 3)}: where that is the model, give the file" if strange else ""
    raise FileError(f"{text}{more}.")


def _aside(path: Path) -> Try:
    """The remedy that gives a file a name that nobody reads."""
    return Try(command("mv", path, path.with_name(f"{path.name}.unused")), "it stays, and is not read")


def _bytes(path: Path) -> int:
    """Size of a file, or of all files that an index names."""
    names = _indexed(path) if path.suffix == ".json" else [path.name]
    return sum((path.parent / name).stat().st_size for name in names)


def _indexed(index: Path) -> list[str]:
    """The files that an index names, sorted. Raises FileError if one of them is missing."""
    names = list(indexed(index).names)
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        text = f"{index} names {missing[0]!r:.100}, which is not there"
        raise FileError(f"{text}. Get the files again, or the index that belongs to these.")
    return names


def _agrees(files: list[TensorFile], index: str, layout: Any, around: _Around) -> Iterator[str]:
    """Notes on differences between an index and its shards that loaders ignore.

    Raises FileError if a weight of the model is missing, is in several shards, or in another than the index names.
    """
    file = files[0].path.parent / index
    table = indexed(file).places
    real = {key: shard.path.name for shard in files for key in shard.tensors}
    counts = Counter(key for shard in files for key in shard.tensors)
    missing = sorted(table.keys() - real.keys())
    needed = [key for key in missing if layout.locate(_name(key, around).rpartition(".")[0])]
    faults = {
        "is in several shards": sorted(key for key, count in counts.items() if count > 1),
        "is in another shard than the index says": sorted(k for k in real if table.get(k, real[k]) != real[k]),
        "is in none of the shards, although the index names it": needed,
    }
    for what, keys in faults.items():
        if keys:
            text = f"{file} and the shards beside it do not agree: {listed(keys, 3)} {what}."
            odd = file.parent / real.get(keys[0], files[0].path.name)
            raise FileError(text, names_in(odd))
    if missing:
        yield f"the index names {listed(missing, 3)}, which no shard holds and the model has no place for"
    if extra := sorted(real.keys() - table.keys()):
        yield f"the index does not name {listed(extra, 3)}, which a shard holds"


def _name(key: str, around: _Around) -> str:
    """The name of a parameter without what stands around it."""
    prefix, wrapped = around
    words = (word for word in key.split(".") if not wrapped or word not in wrappers())
    return ".".join(words).removeprefix(prefix)


def _bare(file: TensorFile, around: _Around, notes: list[str]) -> TensorFile:
    """The file with its parameters' own names. Raises FormatError if two keys have the same."""
    names = {key: _name(key, around) for key in file.tensors}
    keys = {name: key for key, name in names.items()}
    if twice := [key for key, name in names.items() if keys[name] != key]:
        text = f"{file.path} holds two weights of one name, {twice[0]} and {keys[names[twice[0]]]}: which is meant?"
        raise FormatError(text, names_in(file.path))
    if changed := [key for key, name in names.items() if key != name]:
        one = f"{changed[0]} is {names[changed[0]]}"
        notes.append(f"{len(changed)} names in {file.path.name} are read without what stands around them: {one}")
    return replace(file, tensors={name: file.tensors[key] for name, key in keys.items()}) if changed else file


def _recognised(source: Path, files: list[TensorFile]) -> tuple[Architecture, str, _Around]:
    """The architecture and layout that explain most names, at least half of those with a prefix; and what is around."""
    keys = [key for file in files for key in file.tensors if not LORA.search(key)]
    look = names_in(files[0].path)
    if layers := [key for key in keys if ".base_layer." in key]:
        raise FormatError(
            f"{source} was saved with its LoRA layers still in it ({layers[0]}): loaders read noise from it. "
            "Give the base model as it was released, and the adapter beside it; or call unload_lora_weights() before "
            "save_pretrained(). The adapter in it is read by convert.",
            look,
        )
    best, score = None, 0
    every = [(arch, layout) for arch in architectures().values() for layout in arch.layouts.values()]
    plain = [key.replace(".original.", ".") for key in keys]
    for wrapped in (False, True):
        bare = [_name(key, ("", True)).replace(".original.", ".") for key in keys] if wrapped else plain
        for prefix in _PREFIXES if not wrapped or bare != plain else ():
            names = [name.removeprefix(prefix) for name in bare if name.startswith(prefix)]
            for arch, layout in every:
                modules = filter(None, (name.rpartition(".")[0] for name in names))  # a name without one is nobody's
                count = sum(layout.locate(module) is not None for module in modules)
                if count > score and 2 * count >= len(names):
                    best, score = (arch, layout.name, (prefix, wrapped)), count
    if not keys:
        raise _swapped(source)
    if best is None:
        known = " or ".join(arch.title for arch in architectures().values())
        text = f"{source} is not recognised as a base model of {known}: its names are like {listed(keys, 3)}."
        raise FormatError(text, look)
    return best


def _check(base: BaseModel) -> None:
    look = names_in(base.files[0].path)
    if unreadable := [key for file in base.files for key in file.opaque]:
        raise FileError(f"{base.path} holds objects this tool cannot copy: {listed(unreadable, 3)}.", look)
    layout = base.architecture.layouts[base.layout]
    dtypes = ((name, key, base.held[key].tensors[key].dtype) for name, key in base.parameters.items())
    odd = [(name, f"{key} ({dtype})") for name, key, dtype in dtypes if dtype not in FACTORS]
    # 8 bits, 4 bits packed into bytes, and what lies beside those
    if packed := [text for name, text in odd if layout.needless(name) is None]:
        raise FormatError(f"{base.path} holds quantised weights: {listed(packed, 3)}. {_FUSE_FIRST}", look)
