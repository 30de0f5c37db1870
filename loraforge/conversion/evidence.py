"""Reads an adapter of any format and checks it against itself; says what shows that it is of its architecture."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from loraforge.adapter import fits
from loraforge.adapter.adapter import Adapter
from loraforge.adapter.fits import repository, variant_of_repo
from loraforge.algebra.lora import Delta
from loraforge.conversion.report import unshown
from loraforge.errors import BaseError, FormatError, NamesError, Try, adding
from loraforge.files.tensorfile import TensorFile
from loraforge.format.not_an_adapter import foreign
from loraforge.format.protocol import Format
from loraforge.names.catalog import architecture, architectures, holding
from loraforge.names.layout import Architecture
from loraforge.names.lookalike import of_words, sharing
from loraforge.programs.as_in import read_at
from loraforge.scale.origin import own_entry
from loraforge.scale.rule import Choice
from loraforge.text import command, listed

_WORDS = ("modelspec.architecture", "ss_base_model_version")
_FEW = 3
"""Blocks that may be left out of an adapter; of more it is another model's."""
_BASES = ("base_model", "base_model_name_or_path")


def read_adapter(form: Format, file: TensorFile, choice: Choice, *, named: str | None = None) -> Adapter:
    """The adapter in a file, checked against itself. `named`: the base model the user states, which shows what it is.

    Raises NoAdapterError where it is another model's, FormatError where its modules are not of one model, or where
    several architectures are left, and BaseError where released models of its width have fewer blocks.
    """
    wanted = architecture(choice.architecture).name if choice.architecture else None
    choice = replace(choice, architecture=wanted)
    first = _read(form, file, choice)
    if wanted and first.architecture != wanted:
        text = f"{file.path} is an adapter of {_title(first)}: its modules are not called as those of {wanted}."
        raise FormatError(text, *_settling([first.architecture]))
    rivals = [name for name in holding(first.modules, form.layouts) if name != first.architecture]
    tried = [first, *(_read(form, file, replace(choice, architecture=name)) for name in ([] if wanted else rivals))]
    shown = {one.architecture: evidence(one, file, wanted, named) for one in tried}
    tried = [replace(one, shown=shown[one.architecture].text) for one in tried]
    sure = choice.stated.trained_by is not None or _ranks_recorded(first)
    pairs = [(one, _kept(one, choice)) for one in tried]
    sound = [pair for pair in pairs if not fits.broken(pair[1], rank_known=sure)]
    left = [pair for pair in sound if pair[0].shown] or sound
    if len(left) > 1:
        titles = ", ".join(_title(one) for one, _ in left)
        text = f"{file.path}: its modules are those of {titles}, and nothing says which it is of."
        raise FormatError(text, *_settling([one.architecture for one, _ in left]))
    adapter, checked = (left or pairs)[0]
    look = command("loraforge", "inspect", "--skeleton", file.path)
    if fault := fits.broken(checked, rank_known=sure):
        raise FormatError(f"{file.path}: {fault}.", look)
    if not wanted and not shown[adapter.architecture].outweighs_header and (said := _contradicted(adapter, file)):
        text = f"{file.path}: {said}, and its modules are called as those of {_title(adapter)}. Which is it?"
        raise FormatError(text, *_settling([adapter.architecture]))
    if fault := fits.beyond(checked):
        raise BaseError(f"{file.path}: {fault}.", *_leaving(checked, adapter.modules), look)
    bases = [(said, repository(said, file.path.parent)) for said in _bases(adapter, file)]
    nameless = [said for said, repo in bases if not repo][:1]
    notes = [f"its base model is recorded as {said}, which names no repository: not carried over" for said in nameless]
    notes += [note] if (note := fits.unchecked(adapter)) else []
    base = adapter.base_model and repository(adapter.base_model, file.path.parent)
    base = base or next((repo for _, repo in bases if repo), None)
    return replace(adapter, base_model=base, notes=(*adapter.notes, *notes))


def _leaving(adapter: Adapter, modules: Mapping[str, Delta]) -> list[Try]:
    """The options that leave out the blocks that no released model of its width has, where others are left."""
    over = fits.excess(adapter)
    others = [path for path in modules if not any(f".{number}." in path for number in over)]
    if not over or len(over) > _FEW or not others:
        return []
    words = [word for number in over for word in ("--drop", f"*.{number}.*")]
    return [adding(*words, why=f"leave out block{'s' if len(over) > 1 else ''} {listed([*map(str, over)])}")]


def _read(form: Format, file: TensorFile, choice: Choice) -> Adapter:
    """What the format reads; a refusal says what the file looks like where it is another model's."""
    try:
        return read_at(form, file, choice)
    except NamesError as error:
        if other := foreign(file):
            raise other from error
        raise


def _kept(adapter: Adapter, choice: Choice) -> Adapter:
    """The adapter without the modules that --drop names, unless that is all of them."""
    left = {m: d for m, d in adapter.modules.items() if not any(fnmatch.fnmatch(m, p) for p in choice.drop)}
    return replace(adapter, modules=left) if left and len(left) < len(adapter.modules) else adapter


def _ranks_recorded(adapter: Adapter) -> bool:
    """Whether what records the scale recorded the rank too, which readers have compared by now."""
    if adapter.scale.provenance != "recorded" or any(key.endswith(".alpha") for key in adapter.keys):
        return False
    return adapter.ranks_recorded or isinstance(own_entry(adapter.metadata), dict)


class Evidence(NamedTuple):
    """What shows that an adapter is of its architecture."""

    text: str
    """Empty where nothing does."""
    outweighs_header: bool = False
    """Whether it counts although the header calls the model otherwise."""


def evidence(adapter: Adapter, file: TensorFile, wanted: str | None, named: str | None) -> Evidence:
    """The first that shows it."""
    arch = architecture(adapter.architecture)
    if wanted == arch.name:
        return Evidence(f"--architecture {arch.name}", outweighs_header=True)
    if named and (known := variant_of_repo(named)) and known[1] in fits.fits(adapter):
        return Evidence(f"--base-model {named}", outweighs_header=True)
    if text := next(_recorded(adapter, file, arch), ""):
        return Evidence(text)
    for key in _WORDS:
        if _plain(arch.name) in (said := _plain(file.metadata.get(key, ""))) or (said and _plain(arch.title) in said):
            return Evidence(f"the header's {key} says {file.metadata[key]:.60}", outweighs_header=True)
    return Evidence(next(_measured(adapter, arch), ""))


def _recorded(adapter: Adapter, file: TensorFile, arch: Architecture) -> Iterator[str]:
    """What our own entry, a base model or a configuration says."""
    own = own_entry(adapter.metadata)
    if isinstance(own, dict) and own.get("architecture") == arch.name:
        yield "recorded by loraforge"
    for said in _bases(adapter, file):
        known = variant_of_repo(repository(said, file.path.parent) or said)
        # what loraforge wrote repeats what somebody stated: no more evidence than the statement
        if known and (known[1] in fits.fits(adapter) or (own is None and not fits.misnamed(adapter, known[1].repo))):
            yield f"its base model is recorded: {said}"
    for where, config in adapter.configs.items():
        mapping = config.get("auto_mapping")
        name = mapping.get("base_model_class") if isinstance(mapping, dict) else None
        if isinstance(name, str) and name == arch.transformer:
            yield f"{where} names {name}"


def _measured(adapter: Adapter, arch: Architecture) -> Iterator[str]:
    """What names and shapes show that no other model has."""
    sizes = fits.solved(adapter).values
    known_width = fits.of_width(arch, sizes)
    layout = arch.layouts[adapter.layout]
    free = known_width or fits.small(adapter) or not any(arch.solved(v).values for v in arch.variants)
    if free and not alike(adapter):
        for path in adapter.modules:
            if (place := layout.locate(path)) and place[0] in layout.own:
                yield f"no other model is known to have an adapter of {path}"
    top = fits.highest(adapter)
    for variant in known_width:
        if top is not None and top + 1 == variant.blocks:
            yield f"its {variant.blocks} blocks and its width are those of {variant.name}"


def stated_by(adapter: Adapter, base: str | None) -> Adapter:
    """The adapter, shown by the base model that the user states where nothing else shows it and its shapes fit."""
    known = variant_of_repo(base) if base and not adapter.shown else None
    return replace(adapter, shown=f"--base-model {base}") if known and known[1] in fits.fits(adapter) else adapter


def _plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def _bases(adapter: Adapter, file: TensorFile) -> list[str]:
    """The base models that the file, or what lies beside it, records."""
    own = own_entry(adapter.metadata)
    said: list[Any] = [own.get("base_model") if isinstance(own, dict) else None, adapter.base_model]
    said += [config.get("base_model_name_or_path") for config in adapter.configs.values()]
    said += [file.metadata.get(key) for key in _BASES]
    return list(dict.fromkeys(text for text in said if isinstance(text, str) and text.strip()))


def _contradicted(adapter: Adapter, file: TensorFile) -> str:
    """What of the header names another model; empty where nothing does."""
    words = [(key, file.metadata[key]) for key in _WORDS if file.metadata.get(key)]
    title = _title(adapter)
    others = (f"the header's {key} says {text:.60}" for key, text in words if of_words(text) not in (None, title))
    return next(others, "")


def alike(adapter: Adapter, target: str = "") -> tuple[str, ...]:
    """The other models that have all of its modules under these names; with `target`, and a layout so called too."""
    first = next(iter(adapter.modules), "")
    sep = "." if not adapter.keys or any(first in key for key in adapter.keys) else "_"
    titles = sharing(adapter.modules, adapter.layout, sep)
    return tuple(t for t in titles if not target or t in sharing((), target))


def doubt(adapter: Adapter) -> str:
    """The sentence for an adapter of which nothing shows what it is; empty for the others."""
    return "" if adapter.shown else unshown(adapter.architecture, alike(adapter))


def _title(adapter: Adapter) -> str:
    return architecture(adapter.architecture).title


def _settling(names: list[str]) -> list[Try]:
    return [adding("--architecture", name, why=f"if it is {architectures()[name].title}") for name in names]
