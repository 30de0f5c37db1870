"""Reads an adapter of any format, checks it against itself, and finds the evidence for its architecture."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from loraforge.adapter import fits
from loraforge.adapter.adapter import Adapter
from loraforge.adapter.fits import repository, variant_of_repo
from loraforge.algebra.lora import Delta
from loraforge.conversion.report import unshown
from loraforge.errors import BaseError, FormatError, NamesError, Try, adding, leaving_out, names_in
from loraforge.files.tensorfile import TensorFile
from loraforge.format.not_an_adapter import foreign
from loraforge.format.protocol import Format
from loraforge.names.catalog import architecture, architectures, holding
from loraforge.names.layout import Architecture
from loraforge.names.lookalike import models, of_repo, of_words, sharing
from loraforge.programs.as_in import read_at
from loraforge.scale.origin import own_entry
from loraforge.scale.rule import Choice, unusual
from loraforge.scale.writers import narrowed
from loraforge.text import listed

WORDS = ("modelspec.architecture", "ss_base_model_version")
_FEW = 3
"""Blocks that --drop is offered for; an adapter with more surplus blocks is for another model."""
BASES = ("base_model", "base_model_name_or_path")


def read_adapter(form: Format, file: TensorFile, choice: Choice, *, named: str | None = None) -> Adapter:
    """The adapter in a file, checked against itself. `named`: the base model that the user states, as evidence.

    Where several architectures remain possible, it is of one of them, and `rivals` are the others. Raises
    NoAdapterError if it is for an unknown model, FormatError if its modules do not belong to one model or its header
    names another, and BaseError if the released models of its width have fewer blocks.
    """
    stated = architecture(choice.architecture).name if choice.architecture else None
    choice = replace(choice, architecture=stated)
    first = _readable(form, file, choice)
    if stated and first.architecture != stated:
        text = f"{file.path} is an adapter of {first.model.title}: its modules are not called as those of {stated}."
        raise FormatError(text, *_settling([first.architecture]))
    some = first if choice.drop else fits.sample(first)
    every = [] if stated else holding(some.modules, form.layouts, getattr(form, "separator", "."))
    if any(w.kernel for delta in some.modules.values() for w in delta):  # where one has it as a linear module
        every = [name for name in every if _understood(form, file, replace(choice, architecture=name))]
    rivals = {name: form.layouts[name] for name in every if name != first.architecture}
    rank_known = choice.stated.trained_by is not None or _ranks_recorded(first)
    pairs, shown = [], dict[str, Evidence]()
    for one in (some, *(replace(some, rivals=rivals).as_of(name) for name in rivals)):
        one = _ended(one, _kept(one, choice), rank_known=rank_known)
        shown[one.architecture] = evidence(one, file, stated, named)
        pairs.append((replace(one, shown=shown[one.architecture].text), replace(_kept(one, choice), last=one.last)))
    told = [pair for pair in pairs if shown[pair[0].architecture].text and not shown[pair[0].architecture].is_measured]
    left = _possible(told or pairs, rank_known=rank_known)
    writers = narrowed([one.architecture for one, _ in left], getattr(form, "like", None) or form.name, file.metadata)
    left = [pair for pair in left if pair[0].architecture in writers]
    adapter = left[0][0]
    if len(left) > 1 and not told:  # what several models show is evidence of none
        adapter = replace(adapter, shown="")
    if adapter.architecture != first.architecture:  # what is known of scales depends on the architecture
        first = _read(form, file, replace(choice, architecture=adapter.architecture))
    rivals = {one.architecture: one.layout for one, _ in left[1:]}
    adapter = replace(first, shown=adapter.shown, last=adapter.last, rivals=rivals)
    checked = _kept(adapter, choice)
    adapter = _least_known(adapter, form, file, choice)
    inspect = names_in(file.path)
    if fault := fits.broken(checked, rank_known=rank_known):
        sound = [one.architecture for one, kept in pairs if not fits.broken(kept, rank_known=rank_known)]
        raise FormatError(f"{file.path}: {fault}.", *_settling(sound), inspect)
    if not stated and not shown[adapter.architecture].outweighs_header and (recorded := _contradicted(adapter, file)):
        text = f"{file.path}: {recorded}, and its modules are called as those of {adapter.model.title}. Which is it?"
        raise FormatError(text, *_settling([adapter.architecture, *adapter.rivals]))
    if fault := fits.beyond(checked):
        raise BaseError(f"{file.path}: {fault}.", *_leaving(checked, adapter.modules), inspect)
    bases = [(name, repository(name, file.path.parent)) for name in _bases(adapter, file)]
    lost = [name for name, repo in bases if not repo][:1]
    notes = [f"its base model is recorded as {name}, which names no repository: not carried over" for name in lost]
    notes += [note] if (note := fits.unchecked(adapter)) else []
    notes += [f"a scale of {scale:g} {odd}" for scale in adapter.scalings if (odd := unusual(scale))][:1]
    base = adapter.base_model and repository(adapter.base_model, file.path.parent)
    base = base or next((repo for _, repo in bases if repo), None)
    return replace(adapter, base_model=base, notes=(*adapter.notes, *notes))


def _readable(form: Format, file: TensorFile, choice: Choice) -> Adapter:
    """The adapter, as of the architecture that has most of its names; if its shapes forbid that, as of another."""
    try:
        return _read(form, file, choice)
    except FormatError:
        with suppress(FormatError):  # the statement may be at fault: then that is what is told
            if choice.architecture and (meant := _read(form, file, replace(choice, architecture=None))):
                return meant
        style = getattr(form, "style", None)
        paths = {hit.path for hit in style.hits(file.tensors)} if style and not choice.architecture else ()
        for name in holding(paths, form.layouts, style.sep) if style and paths else ():
            with suppress(FormatError):
                return _read(form, file, replace(choice, architecture=name))
        raise


def _understood(form: Format, file: TensorFile, choice: Choice) -> bool:
    with suppress(FormatError):
        _read(form, file, choice)
        return True
    return False


def _possible(pairs: Sequence[tuple[Adapter, Adapter]], *, rank_known: bool) -> list[tuple[Adapter, Adapter]]:
    """The architectures that remain possible, each with what --drop leaves: those with the strongest evidence.

    A broken file of a model that something shows, or that is of a released width, is no file of another model.
    """
    shown = [pair for pair in pairs if pair[0].shown]
    left = shown or [pair for pair in pairs if _released(pair[1])] or [*pairs]
    sound = [pair for pair in left if not fits.broken(pair[1], rank_known=rank_known)]
    return [pair for pair in sound if not fits.beyond(pair[1])] or sound or left[:1]


def _released(adapter: Adapter) -> bool:
    """Whether a released model has its width, or the shapes of the modules by which such models are told."""
    return bool(fits.of_width(adapter.model, fits.solved(adapter).values) or fits.fits(adapter))


def _ended(adapter: Adapter, checked: Adapter, *, rank_known: bool) -> Adapter:
    """The adapter with the number of the last block of its model, where that block is built differently.

    The heights of its modules tell whether its last block is the model's; if they do not, a released model of its
    width does. Raises FormatError if neither tells.
    """
    layout = adapter.model.layouts[adapter.layout]
    if (top := layout.last_block(adapter.modules)) is None:
        return adapter
    ended, model = (replace(adapter, last=top), adapter.model.ending(top))
    other = model.layouts[adapter.layout]
    placed = filter(None, map(other.locate, checked.modules))
    if any(index and index[0][1] == top and model.lacks(other.modules[one], index) for one, index in placed):
        return adapter  # a module that the last block has not got
    if not (odd := [path for path in checked.modules if other.locate(path) != layout.locate(path)]):
        return ended
    ways = [one for one in (adapter, ended) if not fits.broken(replace(checked, last=one.last), rank_known=rank_known)]
    depths = {v.blocks for v in fits.of_width(adapter.model, fits.solved(checked).values)}
    if len(ways) != 1 and depths:
        return ended if top + 1 in depths else adapter
    if len(ways) == 2:
        text = f"whether block {top} is the last of its {adapter.model.title} is not known, and {odd[0]} differs there."
        raise FormatError(text, leaving_out(odd))
    return (ways or [adapter])[0]


def _least_known(adapter: Adapter, form: Format, file: TensorFile, choice: Choice) -> Adapter:
    """The adapter with the scale that is known of every architecture it may be of: ambiguous if one has it so."""
    if adapter.scale.provenance != "assumed":
        return adapter
    others = (_read(form, file, replace(choice, architecture=name)) for name in adapter.rivals)
    doubtful = next((one for one in others if one.scale.provenance == "ambiguous"), None)
    return replace(adapter, scale=doubtful.scale, candidates=doubtful.candidates) if doubtful else adapter


def _leaving(adapter: Adapter, modules: Mapping[str, Delta]) -> list[Try]:
    """The options that drop the blocks that no released model of its width has; none if no module would remain."""
    over = fits.excess(adapter)
    others = [path for path in modules if not any(f".{number}." in path for number in over)]
    if not over or len(over) > _FEW or not others:
        return []
    words = [word for number in over for word in ("--drop", f"*.{number}.*")]
    return [adding(*words, why=f"leave out block{'s' if len(over) > 1 else ''} {listed([*map(str, over)])}")]


def _read(form: Format, file: TensorFile, choice: Choice) -> Adapter:
    """Read the adapter; if that fails and the file is of a known foreign model, the refusal names that model."""
    try:
        return read_at(form, file, choice)
    except NamesError as error:
        if other := foreign(file):
            raise other from error
        raise


def _kept(adapter: Adapter, choice: Choice) -> Adapter:
    """The adapter without the modules that match --drop; unchanged if all of them do."""
    if not choice.drop:
        return adapter
    left = [path for path in adapter.modules if not any(fnmatch.fnmatch(path, p) for p in choice.drop)]
    if len(left) in (0, len(adapter.modules)):
        return adapter
    return replace(adapter, modules={path: adapter.modules[path] for path in left})


def _ranks_recorded(adapter: Adapter) -> bool:
    """Whether the rank was recorded along with the scale; the reader has already compared it with the tensors."""
    if adapter.scale.provenance != "recorded" or any(key.endswith(".alpha") for key in adapter.keys):
        return False
    return adapter.ranks_recorded or bool(own_entry(adapter.metadata))


class Evidence(NamedTuple):
    """What shows that an adapter is of its architecture."""

    text: str
    """Empty if nothing does."""
    outweighs_header: bool = False
    """Whether it counts even if the header names another model."""
    is_measured: bool = False
    """Whether it is names and shapes, which count less than what a file or its user says."""


def evidence(adapter: Adapter, file: TensorFile, stated: str | None, named: str | None) -> Evidence:
    """The strongest evidence for the adapter's architecture."""
    arch = adapter.model
    if stated == arch.name:
        return Evidence(f"--architecture {arch.name}", outweighs_header=True)
    if named and (known := variant_of_repo(named)) and known[1] in fits.fits(adapter):
        return Evidence(f"--base-model {named}", outweighs_header=True)
    if text := next(_recorded(adapter, file, arch), ""):
        return Evidence(text)
    for key in WORDS:
        words = file.metadata.get(key, "")
        named_there = of_words(words) or (arch.title if _plain(arch.title) in _plain(words) else None)
        if named_there == arch.title:
            return Evidence(f"the header's {key} says {file.metadata[key]:.60}", outweighs_header=True)
    return Evidence(next(_measured(adapter, arch), ""), is_measured=True)


def _recorded(adapter: Adapter, file: TensorFile, arch: Architecture) -> Iterator[str]:
    """What our own entry, a base model or a configuration says."""
    own = own_entry(adapter.metadata)
    if own.get("architecture") == arch.name:
        yield "recorded by loraforge"
    for base in _bases(adapter, file):
        repo = repository(base, file.path.parent) or base
        known = variant_of_repo(repo)
        # an entry by loraforge repeats what somebody stated: it is no more evidence than that statement
        if known and (known[1] in fits.fits(adapter) or (not own and not fits.misnamed(adapter, known[1].repo))):
            yield f"its base model is recorded: {base}"
        elif not known and not own and of_repo(repo) == arch.title:
            yield f"its base model is recorded: {base}, which is {arch.title}"
    for where, config in adapter.configs.items():
        mapping = config.get("auto_mapping")
        name = mapping.get("base_model_class") if isinstance(mapping, dict) else None
        if isinstance(name, str) and name in arch.transformers:
            yield f"{where} names {name}"


def _measured(adapter: Adapter, arch: Architecture) -> Iterator[str]:
    """What names and shapes show that no other model has."""
    sizes = fits.solved(adapter).values
    known_width = fits.of_width(arch, sizes)
    layout = arch.layouts[adapter.layout]
    free = known_width or fits.small(adapter) or not any(arch.solved(v).values for v in arch.variants)
    if free and not alike(adapter):
        for path in adapter.modules:
            if (located := layout.locate(path)) and located[0] in layout.own:
                yield f"no other model is known to have an adapter of {path}"
    others = [size for title in alike(adapter) for size in models()[title].get("sizes", ())]
    for variant in known_width:
        blocks = fits.fills(adapter, variant)
        if blocks and not any(width in sizes.values() and depth == blocks for width, depth in others):
            yield f"its {blocks} blocks and its width are those of {variant.name}"


def stated_by(adapter: Adapter, base: str | None) -> Adapter:
    """The adapter, with the stated base model as evidence if there is no other and the shapes fit."""
    known = variant_of_repo(base) if base and not adapter.shown else None
    if known and known[0].name in (adapter.architecture, *adapter.rivals):
        adapter = replace(adapter.as_of(known[0].name), rivals={})
    return replace(adapter, shown=f"--base-model {base}") if known and known[1] in fits.fits(adapter) else adapter


def _plain(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


def _bases(adapter: Adapter, file: TensorFile) -> list[str]:
    """The base models that the file, or what lies beside it, records."""
    own = own_entry(adapter.metadata)
    recorded: list[Any] = [own.get("base_model"), adapter.base_model]
    recorded += [config.get("base_model_name_or_path") for config in adapter.configs.values()]
    recorded += [file.metadata.get(key) for key in BASES]
    return list(dict.fromkeys(text for text in recorded if isinstance(text, str) and text.strip()))


def _contradicted(adapter: Adapter, file: TensorFile) -> str:
    """The header entry that names another model; empty if none does."""
    words = [(key, file.metadata[key]) for key in WORDS if file.metadata.get(key)]
    others = ((key, text) for key, text in words if of_words(text) not in (None, adapter.model.title))
    return next((f"the header's {key} says {text:.60}" for key, text in others), "")


def alike(adapter: Adapter) -> dict[str, frozenset[str]]:
    """Each other model that has all of its modules under these names -> whose names they are (names/lookalike.py)."""
    first = next(iter(adapter.modules), "")
    sep = "." if not adapter.keys or first in "\n".join(adapter.keys) else "_"
    return sharing(adapter.modules, sep)


def doubt(adapter: Adapter) -> str:
    """A sentence saying that nothing shows the architecture; empty if something does."""
    others = (architectures().index.titles[name] for name in adapter.rivals)
    return "" if adapter.shown else unshown(adapter.architecture, [*others, *alike(adapter)])


def _settling(names: list[str]) -> list[Try]:
    return [adding("--architecture", name, why=f"if it is {architectures()[name].title}") for name in names]
