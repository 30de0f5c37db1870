"""A base model as files: a Diffusers pipeline or transformer folder, a SAT run or checkpoint, or one tensor file.

Sources: diffusers models/modeling_utils.py and utils/hub_utils.py (file names, index of the shards),
SwissArmyTransformer sat/training/model_io.py.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from loraforge.catalog import architectures
from loraforge.dtypes import FACTORS
from loraforge.errors import FileError, FormatError, Try, command, listed
from loraforge.formats import Choice, Found
from loraforge.formats.sat import SatFormat, undivided
from loraforge.kinds import SAT_PREFIX
from loraforge.layout import Architecture, Variant
from loraforge.source import open_tensors, snapshot
from loraforge.tensorfile import TensorFile

Kind = Literal["pipeline", "transformer", "file", "sat"]
STEM = "diffusion_pytorch_model"
INDEX = f"{STEM}.safetensors.index.json"
COMPONENT = "transformer"
"""The folder of a pipeline that holds what LoRAs adapt."""

_LORA = (".matrix_A.", ".matrix_B.", ".lora_A.", ".lora_B.")
_TORCH = {"BF16": "bfloat16", "F16": "float16"}
_FUSE_FIRST = "Fuse into the weights in full precision (bf16, fp16 or fp32), and quantise the result."


@dataclass(frozen=True)
class BaseModel:
    """An opened base model: headers only, no weight is read before it is used."""

    path: Path
    """What the user gave."""
    kind: Kind
    files: tuple[TensorFile, ...]
    """The shards, in the order of their names."""
    architecture: Architecture
    layout: str
    prefix: str
    """What stands before every parameter's name: nothing, or SAT's `model.diffusion_model.`"""
    notes: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """Where the tensor files lie."""
        return self.files[0].path.parent

    @cached_property
    def held(self) -> Mapping[str, TensorFile]:
        """Every key -> the shard it is in."""
        return {key: file for file in self.files for key in file.tensors}

    @cached_property
    def parameters(self) -> Mapping[str, str]:
        """Parameter name, in the layout's spelling -> its key. `.original.` is what SAT's LoRA run inserts."""
        return {
            key.removeprefix(self.prefix).replace(".original.", "."): key
            for key in self.held
            if key.startswith(self.prefix) and not any(part in key for part in _LORA)
        }

    @cached_property
    def lora(self) -> tuple[str, ...]:
        """The keys of a LoRA that lies in the same file, as SAT's runs have it."""
        return tuple(key for key in self.held if any(part in key for part in _LORA))

    def shape(self, parameter: str) -> tuple[int, ...] | None:
        """The shape of a parameter, None where there is none of that name."""
        key = self.parameters.get(parameter)
        return None if key is None else self.held[key].tensors[key].shape

    @cached_property
    def variants(self) -> tuple[Variant, ...]:
        """The released models it may be: those that no shape speaks against; of another width, those like it."""
        layout, shapes = self.architecture.layouts[self.layout], []
        for name in self.parameters:
            path, _, parameter = name.rpartition(".")
            place = layout.locate(path) if parameter == "weight" else None
            if place and len(segments := layout.modules[place[0]]) == 1:
                shapes.append((segments[0], place[1], self.shape(name) or ()))
        there = {segment for segment, _, _ in shapes}
        fitting = [v for v in self.architecture.variants if not any(v.objection(*entry) for entry in shapes)]
        lacking = {v.name: v.shapes.keys() & _single(layout.modules.values()) - there for v in fitting}
        told = next((shape for segment, _, shape in shapes if segment == self.architecture.told_by), None)
        return tuple(v for v in fitting if not lacking[v.name]) or (self.architecture.like(told) if told else ())


def _single(stacks: Any) -> set[str]:
    return {stack[0] for stack in stacks if len(stack) == 1}


def open_base(path: str | Path) -> BaseModel:
    """Open a base model.

    Raises FileError or FormatError that says what is there instead: an adapter, quantised weights, `.bin` files, a
    model saved with its LoRA layers in it, an index that does not agree with its shards.
    """
    source = Path(path)
    look = command("ls", "-l", source if source.exists() else source.parent)
    if not source.exists():
        raise FileError(f"{source} does not exist.", look)
    source, took = snapshot(source)
    notes: list[str] = list(took)
    if source.is_dir():
        whole = (source / "config.json").exists() or (source / "model_index.json").exists()
        sat = None if whole else _sat(source)
        if sat:
            kind: Kind = "sat"
            files, notes = [_open(sat.path)], [*notes, *sat.notes]
        else:
            kind = "pipeline" if (source / "model_index.json").exists() else "transformer"
            folder = source / COMPONENT if kind == "pipeline" else source
            _full_precision(folder)
            files = _shards(folder, notes)
    else:
        files = [_open(source)]
        kind = "file" if files[0].kind == "safetensors" else "sat"
    arch, layout, prefix = _recognised(source, files)
    base = BaseModel(source, kind, tuple(files), arch, layout, prefix, tuple(notes))
    _check(base)
    return base


def _sat(source: Path) -> Found | None:
    try:
        return SatFormat().find(source, Choice()) or SatFormat().below(source)
    except FileError as error:  # the verbs that take a base model have no --iteration
        error.remedies = tuple(
            Try(str(source / remedy.command.split()[-1]), instead=str(source))
            if remedy.command.startswith("--iteration ")
            else remedy
            for remedy in error.remedies
        )
        raise


def _open(path: Path) -> TensorFile:
    with path.open("rb") as stream:
        if stream.read(4) == b"GGUF":
            raise FileError(
                f"{path} is a GGUF model, whose weights are quantised. {_FUSE_FIRST}", command("ls", "-l", path.parent)
            )
    file = open_tensors(path)[0]
    undivided(file)
    return file


def _full_precision(folder: Path) -> None:
    """Refuses what a config.json declares quantised."""
    file = folder / "config.json"
    if not file.is_file():
        if (folder / "adapter_config.json").is_file():
            raise _swapped(folder)
        what = (
            f"{folder} has no config.json: it is no folder of a Diffusers model, and it holds no SAT checkpoint."
            if folder.is_dir()
            else f"{folder.parent} has a model_index.json and no folder {folder.name}: the pipeline is not complete."
        )
        raise FileError(what, command("ls", "-l", folder if folder.is_dir() else folder.parent))
    config = read_json(file)
    said = config.get("quantization_config")
    if said is not None:
        method = said.get("quant_method", "some method") if isinstance(said, dict) else "some method"
        raise FileError(
            f"{file} says the weights are quantised ({method!s:.60}). {_FUSE_FIRST}", command("ls", "-l", folder)
        )


def _swapped(source: Path) -> FormatError:
    text = f"{source} is an adapter, not a base model. The base model comes first: loraforge fuse BASE ADAPTER."
    return FormatError(text, command("loraforge", "inspect", source))


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object in a file. Raises FileError where there is none."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FileError(f"{file} cannot be read as JSON: {error}.", command("ls", "-l", file)) from error
    if not isinstance(found, dict):
        raise FileError(f"{file} holds no JSON object.", command("ls", "-l", file))
    return found


def _shards(folder: Path, notes: list[str]) -> list[TensorFile]:
    """The tensor files of a model folder, as `from_pretrained` picks them."""
    look = command("ls", "-l", folder)
    single, index = folder / f"{STEM}.safetensors", folder / INDEX
    if single.is_file() and index.is_file():
        text = f"{folder} holds {single.name} and {index.name}: two models, of which loaders take the second."
        raise FileError(f"{text} Remove the one that is not meant.", look)
    others = sorted({p.name for p in folder.glob("*.safetensors")} - {single.name})
    if single.is_file():
        if others:
            notes.append(f"left out, as {single.name} is the model: {listed(others, 3)}")
        return [_open(single)]
    if index.is_file():
        names = _indexed(index)
        if rest := sorted(set(others) - set(names)):
            notes.append(f"left out, as the index does not name it: {listed(rest, 3)}")
        files = [_open(folder / name) for name in names]
        _agrees(index, files)
        return files
    pickles = sorted(folder.glob(f"{STEM}*.bin"))
    if pickles:
        stored = Counter(info.dtype for info in _open(pickles[0]).tensors.values()).most_common(1)
        dtype = _TORCH.get(stored[0][0] if stored else "", "float32")  # without it, float32 is made of anything
        load = f"AutoModel.from_pretrained({str(folder)!r}, use_safetensors=False, torch_dtype=torch.{dtype})"
        line = f"{load}.save_pretrained('as-safetensors')"
        raise FileError(
            f"{folder} holds its weights as {pickles[0].name}; save them as safetensors first (./as-safetensors).",
            command("python", "-c", f"import torch; from diffusers import AutoModel; {line}"),
        )
    if others:
        raise FileError(
            f"{folder} has no {single.name}, only {listed(others, 3)}: another version of the weights. Where it is one "
            "file, give the file; where it is shards, save them without a variant.",
            look,
        )
    raise FileError(f"{folder} has no {single.name} and no {index.name}.", look)


def _indexed(index: Path) -> list[str]:
    table = read_json(index).get("weight_map")
    names = (
        sorted(set(table.values()))
        if isinstance(table, dict) and all(isinstance(v, str) for v in table.values())
        else []
    )
    strange = [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]
    if strange or not names:
        what = f"names {strange[0]!r:.100}, which is not there" if strange else "names no files"
        raise FileError(f"{index} {what}: the download or the copy is not complete.", command("ls", "-l", index.parent))
    return names


def _agrees(index: Path, files: list[TensorFile]) -> None:
    table = read_json(index)["weight_map"]
    real = {key: file.path.name for file in files for key in file.tensors}
    wrong = sorted(key for key in real.keys() | table.keys() if real.get(key) != table.get(key))
    if wrong:
        raise FileError(
            f"{index.name} and the shards beside it do not agree, in {listed(wrong, 3)}: they are of different models.",
            command("ls", "-l", index.parent),
        )


def _recognised(source: Path, files: list[TensorFile]) -> tuple[Architecture, str, str]:
    """The architecture, layout and prefix that explain most names, and at least half of those with the prefix."""
    keys = [key for file in files for key in file.tensors if not any(part in key for part in _LORA)]
    wrapped = [key for key in keys if ".base_layer." in key]
    if wrapped:
        raise FormatError(
            f"{source} was saved with its LoRA layers still in it ({wrapped[0]}): loaders read noise from it. "
            "Call unload_lora_weights() before saving it, or give the base model as it was released; the adapter in it "
            "is read by convert.",
            command("ls", "-l", source),
        )
    best, score = None, 0
    for prefix in (SAT_PREFIX, ""):
        names = [key.removeprefix(prefix).replace(".original.", ".") for key in keys if key.startswith(prefix)]
        for arch in architectures().values():
            for layout in arch.layouts.values():
                found = sum(layout.locate(name.rpartition(".")[0]) is not None for name in names)
                if found > score and 2 * found >= len(names):
                    best, score = (arch, layout.name, prefix), found
    if best is None:
        if not keys:
            raise _swapped(source)
        known = " or ".join(arch.title for arch in architectures().values())
        raise FormatError(
            f"{source} holds no base model of {known}" + (f": its names are like {listed(keys, 3)}." if keys else "."),
            command("loraforge", "inspect", "--skeleton", files[0].path),
        )
    return best


def _check(base: BaseModel) -> None:
    look = command("loraforge", "inspect", "--skeleton", base.files[0].path)
    if base.kind == "sat" and (base.files[0].wrappers != ("module",) or base.prefix != SAT_PREFIX):
        raise FormatError(
            f"{base.files[0].path} is no checkpoint of SAT, whose weights stand under `module` as {SAT_PREFIX}...: "
            "save it as safetensors, or give a Diffusers folder.",
            look,
        )
    unreadable = [key for file in base.files for key in file.opaque]
    if unreadable:
        raise FileError(f"{base.path} holds objects this tool cannot copy: {listed(unreadable, 3)}.", look)
    packed = list(_packed(base))
    if packed:
        raise FormatError(f"{base.path} holds quantised weights: {listed(packed, 3)}. {_FUSE_FIRST}", look)


def _packed(base: BaseModel) -> Iterator[str]:
    """The parameters that are no plain numbers: 8 bits, 4 bits packed into bytes, and what lies beside those."""
    for name, key in base.parameters.items():
        dtype = base.held[key].tensors[key].dtype
        if dtype not in FACTORS and base.architecture.layouts[base.layout].needless(name) is None:
            yield f"{key} ({dtype})"
