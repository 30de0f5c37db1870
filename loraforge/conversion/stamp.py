"""Records the scale of training in the header of a file whose trainer did not. No tensor is touched."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loraforge.adapter.drop import without
from loraforge.adapter.fits import check_base, fits
from loraforge.conversion.evidence import doubt, read_adapter
from loraforge.conversion.read import ambiguous
from loraforge.conversion.report import scale_text
from loraforge.document import Document
from loraforge.errors import FormatError, LoraforgeError, ScaleError, Try, VerificationError, adding, as_commands
from loraforge.files.destination import Destination, destination, replacing
from loraforge.files.digest import changed, scan
from loraforge.files.safetensors import read_safetensors, write_safetensors
from loraforge.files.tensorfile import KEY
from loraforge.format.locate import locate
from loraforge.format.not_an_adapter import not_an_adapter
from loraforge.format.peft import config_path
from loraforge.names.layout import COMPONENT
from loraforge.programs.measured import acting
from loraforge.programs.outlook import outlooks
from loraforge.scale import peft_config
from loraforge.scale.origin import entry, history, origin
from loraforge.scale.resolve import STATES, given, statement
from loraforge.scale.rule import Choice, Scale
from loraforge.scale.run_folders import states_scale
from loraforge.text import command, fraction, recorded

STAMPED = ("diffusers", "peft")
"""Formats whose readers look for a scale in the header."""


@dataclass(frozen=True, slots=True)
class Stamp(Document):
    """What was recorded, and where. Its JSON follows schemas/stamp.schema.json."""

    schema = "stamp"

    source: str
    output: str
    scale: Scale
    scalings: tuple[float, ...]
    replaced: tuple[str, ...]
    """Header entries that said something else before."""
    loads: bool
    """Whether Diffusers knows the names in the file; a bare state dict needs a conversion besides."""
    shown: bool
    """Whether something shows of which architecture it is."""
    acts_in: str = ""
    """Programs, with the versions that were run, that apply the file at this scale."""
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The same for a terminal."""
        at = ", ".join(map(fraction, self.scalings))
        out = [f"{self.output} records scale {at} ({scale_text(self.scale, self.scalings)})"]
        out += [f"  replaced  {', '.join(self.replaced)}"] if self.replaced else []
        folding = command("loraforge", "convert", self.output, "--to", "diffusers")
        claim = "acts as trained" if self.shown else "is right if it is what its names fit"
        if self.scale.program:
            claim = f"acts as it acts in {self.scale.program}, whatever training used,"
        strength = (
            f"1.0 {claim} in {self.acts_in}; what reads no header applies 1.0 to these tensors"
            if self.acts_in
            else "no program that was run takes names and scale as they stand: convert the file, which tells its scale"
        )
        return [
            *out,
            "  tensors   the same bytes, compared",
            f"  strength  {strength}",
            f"  anywhere  {folding}   # folds it in",
        ]


def stamp(
    source: str | Path,
    alpha: float | None = None,
    *,
    trained_scale: float | None = None,
    trained_by: str | None = None,
    training_config: str | Path | None = None,
    as_in: str | None = None,
    as_loaded: bool = False,
    override_scale: bool = False,
    out: str | Path | None = None,
    in_place: bool = False,
    architecture: str | None = None,
    drop: Sequence[str] = (),
    force: bool = False,
) -> Stamp:
    """Record at what scale the adapter in `source` was trained, in the header of a new file; stated as to `convert`.

    The entry is the one Diffusers writes and reads, `lora_adapter_metadata`. Without `alpha` the scale that the file
    records is written anew, in an entry that is whole: some versions stop at one that lacks a name. Raises a
    LoraforgeError, with nothing written, when a scale is recorded already and differs (unless `override_scale`),
    when none is recorded and none is given, or when the file has no header.
    """
    for option, value in (("--alpha", alpha), ("--trained-scale", trained_scale)):
        if value is not None and not (math.isfinite(value) and value > 0):
            what = "lora_alpha" if option == "--alpha" else "scale"
            raise ScaleError(f"{option} {value:g} is no {what} a training can have used.", adding(option, "1"))
    stated = statement(
        alpha=alpha, trained_scale=trained_scale, trained_by=trained_by,
        as_in=as_in, as_loaded=as_loaded, override_scale=override_scale,
    )  # fmt: skip
    config = Path(training_config) if training_config else None
    choice = Choice(training_config=config, stated=stated, drop=tuple(drop), architecture=architecture)
    typed = _typed(choice)
    form, _, file = locate(source, None, Choice(drop=tuple(drop)))
    if in_place and (drop or file.spread):
        what = "takes nothing out of a file" if drop else f"has no one file to replace: {source} lies in several"
        give = Try("--out=stamped.safetensors", instead="--in-place")
        raise LoraforgeError(f"--in-place {what}. Give a file to write.", give)
    if form is None:
        raise not_an_adapter(file)
    if file.kind != "safetensors" or form.name not in STAMPED:
        what = "is a torch file, which has no header" if file.kind != "safetensors" else f"is read as {form.name}"
        raise FormatError(
            f"{file.path} {what}: no loader looks for a scale there. Convert it, stating the alpha.",
            command("loraforge", "convert", file.path, "--to", "diffusers", *typed),
        )
    if form.name == "peft" and (config := config_path(file)):
        raise FormatError(
            f"{file.path} has its scale in the {config.name} beside it, where PEFT looks for it.",
            command("loraforge", "inspect", source),
        )
    try:
        adapter, _ = without(read_adapter(form, file, choice), drop, file)
    except LoraforgeError as error:
        if error.remedies and all(remedy.gives_only(STATES) for remedy in error.remedies):
            raise
        raise as_commands(error, "loraforge", "convert", file.path, "--to", "diffusers") from None
    if adapter.scale.provenance == "ambiguous":
        raise as_commands(ambiguous(file.path, adapter), "loraforge", "stamp", source)
    notes = check_base(adapter, adapter.base_model, "loraforge", "convert", file.path, "--to", "diffusers")
    unshown = doubt(adapter)
    digest = scan(file, adapter.keys)
    ranks = {module: delta[0].rank for module, delta in adapter.modules.items()}
    scalings = {module: delta[0].scaling for module, delta in adapter.modules.items()}
    dora = any(w.magnitude is not None for delta in adapter.modules.values() for w in delta)
    prefix = f"{COMPONENT}." if all(key.startswith(f"{COMPONENT}.") for key in adapter.keys) else ""
    least = {f"{prefix}{key}": value for key, value in peft_config.config(ranks, scalings, dora=dora).items()}
    replaced = tuple(sorted(key for key, text in file.metadata.items() if states_scale(key, text)))
    scale = given(stated, ranks) or adapter.scale
    told = tuple(sorted(set(scalings.values())))
    mine = None if typed else file.metadata[KEY] if origin(file.metadata).scale else None  # as true as before
    metadata = {key: text for key, text in file.metadata.items() if key not in replaced} | {
        "lora_adapter_metadata": json.dumps(least, indent=2, sort_keys=True),
        KEY: mine
        or entry(
            command("loraforge", "stamp", recorded(file.path), *typed),
            {"path": recorded(file.path), "format": form.name, "size": file.size, "digest": digest},
            scale,
            told,
            told,
            "metadata",
            adapter.base_model,
            [variant.name for variant in fits(adapter)],
            history(adapter.metadata),
            None if unshown else adapter.architecture,
        ),
    }
    goes = _destination(file.path, typed, out, in_place=in_place, force=force)
    with replacing(goes, file.size, force=force or in_place) as folder:
        written = folder / goes.names[0]
        header = {key: (info.dtype, info.shape) for key, info in file.tensors.items()}
        sums = write_safetensors(written, header, ((key, file[key]) for key in file.tensors), metadata)
        back = read_safetensors(written)
        if changed(back, sums) or changed(file, sums):
            raise VerificationError("the disk gave back other bytes than were written. Nothing was kept.")
        again = form.read(back, Choice(architecture=adapter.architecture))
        if {module: delta[0].scaling for module, delta in again.modules.items()} != scalings:
            raise VerificationError("the written header does not give the scale back. Nothing was kept.")
        acts_in = acting(outlooks(form, back, again))
    notes = (*adapter.notes, *notes, *([unshown] if unshown else []))
    return Stamp(str(source), str(goes.file), scale, told, replaced, bool(prefix), not unshown, acts_in, notes)


def _typed(choice: Choice) -> list[str]:
    """The options that state the scale, without folders."""
    file = choice.training_config
    return [*choice.stated.options, *(["--training-config", file.name] if file else [])]


def _destination(file: Path, typed: list[str], out: str | Path | None, *, in_place: bool, force: bool) -> Destination:
    if in_place and out:
        raise LoraforgeError("--in-place and -o exclude each other.", adding("--in-place", why="write no second file"))
    if in_place:
        whole = file.resolve()  # a link stays one
        return Destination(whole.parent, (whole.name,))
    said = "".join(typed[:2]).lstrip("-").replace("trained-", "").removesuffix(".yaml")
    default = f"{file.stem}-{said or 'mended'}.safetensors"
    return destination(Path(out) if out else None, default, (file.name,), [file], force=force)
