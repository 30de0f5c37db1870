"""Records the scale of training in the header of a file whose trainer did not. No tensor is touched."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Unpack

from loraforge.adapter.adapter import Adapter, Source
from loraforge.adapter.differences import has_lora_bias
from loraforge.adapter.fits import check_base
from loraforge.conversion.evidence import doubt
from loraforge.conversion.read import ambiguous, read_file
from loraforge.conversion.report import scale_text
from loraforge.conversion.store import entry_of, sealed
from loraforge.document import Document, rows
from loraforge.errors import FormatError, LoraforgeError, ScaleError, Try, VerificationError, adding, as_commands
from loraforge.files.destination import Destination, destination, replacing
from loraforge.files.digest import changed, scan, seal
from loraforge.files.mapped import steady
from loraforge.files.safetensors import read_safetensors, replace_entry, write_safetensors
from loraforge.files.tensorfile import KEY, TensorFile
from loraforge.format.locate import locate
from loraforge.format.not_an_adapter import not_an_adapter
from loraforge.format.peft import config_path
from loraforge.format.protocol import Format
from loraforge.names.layout import COMPONENTS
from loraforge.programs.outlook import acting, outlooks
from loraforge.scale import peft_config
from loraforge.scale.origin import origin
from loraforge.scale.resolve import given
from loraforge.scale.rule import Choice, Scale
from loraforge.scale.run_folders import states_scale
from loraforge.scale.stated import StatedBesideAlpha, choice_of, takes_stated
from loraforge.text import command, fraction, options, recorded

STAMPED = ("diffusers", "peft")
"""Formats whose readers look for a scale in the header."""


@dataclass(frozen=True, slots=True)
class Stamp(Document):
    """What was recorded, and where. schemas/stamp.schema.json explains the fields."""

    schema = "stamp"

    source: str
    output: str
    scale: Scale
    scalings: tuple[float, ...]
    replaced: tuple[str, ...]
    loads: bool
    shown: bool
    acts_in: str = ""
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        at = ", ".join(map(fraction, self.scalings))
        out = [f"{self.output} records scale {at} ({scale_text(self.scale, self.scalings)})"]
        out += [f"  replaced  {', '.join(self.replaced)}"] if self.replaced else []
        folding = command("loraforge", "convert", self.output, "--to", "diffusers")
        claim = "acts as trained" if self.shown else "is right if it is what its names fit"
        if self.scale.program:
            claim = f"acts as it acts in {self.scale.program}, whatever training used,"
        strength = f"1.0 {claim} in {self.acts_in}; what reads no header applies 1.0 to these tensors"
        if not self.acts_in:
            strength = "no program that was run takes names and scale as they stand: convert the file"
            strength += ", which tells its scale"
        table = {"tensors": "the same bytes, compared", "strength": strength, "anywhere": f"{folding}   # folds it in"}
        return [*out, *rows(table.items())]


@takes_stated
def stamp(
    source: str | Path,
    alpha: float | None = None,
    *,
    out: str | Path | None = None,
    in_place: bool = False,
    drop: Sequence[str] = (),
    force: bool = False,
    **stated: Unpack[StatedBesideAlpha],
) -> Stamp:
    """Record at what scale the adapter in `source` was trained, in the header of a new file; stated as to `convert`.

    The entry is the one Diffusers writes and reads, `lora_adapter_metadata`. Without `alpha`, the scale that the file
    records is written again in a complete entry: some versions stop at one that lacks a name. Raises a LoraforgeError,
    with nothing written, if another scale is recorded already (unless `override_scale`), if none is recorded and none
    is given, or if the file has no header.
    """
    for option, value in (("--alpha", alpha), ("--trained-scale", stated["trained_scale"])):
        if value is not None and not (math.isfinite(value) and value > 0):
            what = "lora_alpha" if option == "--alpha" else "scale"
            raise ScaleError(f"{option} {value:g} is no {what} a training can have used.")
    choice = choice_of({"alpha": alpha, **stated}, drop=drop)
    form, file = _opened(source, choice, in_place=in_place)
    adapter = read_file(form, file, choice)
    if adapter.scale.provenance == "ambiguous":
        raise as_commands(ambiguous(file.path, adapter), "loraforge", "stamp", source)
    notes = check_base(adapter, adapter.base_model, "loraforge", "convert", file.path, "--to", "diffusers")
    unshown = doubt(adapter)
    ranks = {module: delta[0].rank for module, delta in adapter.modules.items()}
    claim = given(choice.stated, ranks)
    scale = Scale("given", claim.said) if claim else adapter.scale
    adapter = replace(adapter, scale=scale, source=Source(Path(source), file, form.name, ""))
    metadata, replaced = _metadata(adapter, file, ranks, _typed(choice))
    output = _destination(file.path, _typed(choice), out, in_place=in_place, force=force)
    others = output.file.stat().st_nlink - 1 if in_place else 0
    said = "1 other name (a hard link) keeps" if others == 1 else f"{others} other names (hard links) keep"
    parted = [f"{said} the file as it was"] if others else []
    with replacing(output, file.size, force=force or in_place) as folder, steady(*file.maps):
        back, again = _written(folder / output.names[0], adapter, form, file, metadata)
        acts_in = acting(outlooks(form, back, again))
    notes, whole = (*adapter.notes, *notes, *parted, *([unshown] if unshown else [])), bool(_prefix(adapter))
    return Stamp(str(source), str(output.file), scale, adapter.scalings, replaced, whole, not unshown, acts_in, notes)


def _opened(source: str | Path, choice: Choice, *, in_place: bool) -> tuple[Format, TensorFile]:
    """The file and its format. Raises LoraforgeError if no reader of the format looks for a scale in the header."""
    form, _, file = locate(source, None, Choice(drop=choice.drop))
    if in_place and (choice.drop or file.spread):
        what = "takes nothing out of a file" if choice.drop else f"has no one file to replace: {source} lies in several"
        give = Try("--out=stamped.safetensors", instead="--in-place")
        raise LoraforgeError(f"--in-place {what}. Give a file to write.", give)
    if form is None:
        raise not_an_adapter(file)
    if file.kind != "safetensors" or form.name not in STAMPED:
        what = "is a torch file, which has no header" if file.kind != "safetensors" else f"is read as {form.name}"
        text = f"{file.path} {what}: no loader looks for a scale there. Convert it, stating the alpha."
        raise FormatError(text, command("loraforge", "convert", file.path, "--to", "diffusers", *_typed(choice)))
    if form.name == "peft" and (config := config_path(file)):
        text = f"{file.path} has its scale in the {config.name} beside it, where PEFT looks for it."
        raise FormatError(text, command("loraforge", "inspect", source))
    return form, file


def _prefix(adapter: Adapter) -> str:
    """How the keys of the file begin; empty in a bare state dict."""
    starts = [f"{name}." for name in COMPONENTS if all(key.startswith(f"{name}.") for key in adapter.keys)]
    return starts[0] if starts and adapter.keys else ""


def _metadata(
    adapter: Adapter, file: TensorFile, ranks: dict[str, int], typed: list[str]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The header's entries with the scale, and the keys of the entries that were replaced."""
    scalings = {module: delta[0].scaling for module, delta in adapter.modules.items()}
    least = peft_config.config(ranks, scalings, dora=adapter.dora, bias=has_lora_bias(adapter))
    config = {f"{_prefix(adapter)}{key}": value for key, value in least.items()}
    line, digest = command("loraforge", "stamp", recorded(file.path), *typed), scan(file, adapter.keys)
    ours = file.metadata[KEY] if origin(file.metadata).scale and not typed else None  # as true as before
    replaced = tuple(sorted(key for key, text in file.metadata.items() if states_scale(key, text)))
    return {key: text for key, text in file.metadata.items() if key not in replaced} | {
        "lora_adapter_metadata": json.dumps(config, indent=2, sort_keys=True),
        KEY: ours or entry_of(adapter, digest, line, adapter.scalings, "metadata", adapter.base_model),
    }, replaced


def _written(
    path: Path, adapter: Adapter, form: Format, file: TensorFile, metadata: dict[str, str]
) -> tuple[TensorFile, Adapter]:
    """Write the new file and read it back. Raises VerificationError if its bytes or scalings are wrong."""
    header = {key: (info.dtype, info.shape) for key, info in file.tensors.items()}
    sums = write_safetensors(path, header, ((key, file[key]) for key in file.tensors), metadata)
    replace_entry(path, KEY, sealed(metadata[KEY], seal(header, sums)))
    back = read_safetensors(path)
    if changed(back, sums) or changed(file, sums):
        raise VerificationError("the disk gave back other bytes than were written. Nothing was kept.")
    again = form.read(back, Choice(architecture=adapter.architecture))
    before, after = ({module: delta[0].scaling for module, delta in one.modules.items()} for one in (adapter, again))
    if before != after:
        raise VerificationError("the written header does not give the scale back. Nothing was kept.")
    return back, again


def _typed(choice: Choice) -> list[str]:
    """The options that state the scale, without folders."""
    return [*choice.stated.options, *options({"training_config": choice.training_config})]


def _destination(file: Path, typed: list[str], out: str | Path | None, *, in_place: bool, force: bool) -> Destination:
    if in_place and out:
        raise LoraforgeError("--in-place and -o exclude each other.", adding("--in-place", why="write no second file"))
    if in_place:
        whole = file.resolve()  # a link stays one
        return Destination(whole.parent, (whole.name,))
    suffix = "".join(typed[:2]).lstrip("-").replace("trained-", "").removesuffix(".yaml")
    default = f"{file.stem}-{suffix or 'mended'}.safetensors"
    return destination(Path(out) if out else None, default, (file.name,), [file], force=force)
