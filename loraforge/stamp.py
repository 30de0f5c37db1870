"""Records the scale of training in the header of a file whose trainer did not. No tensor is touched."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loraforge import peftrules
from loraforge.adapter import Scale
from loraforge.errors import (
    FormatError,
    LoraforgeError,
    ScaleError,
    Try,
    VerificationError,
    as_commands,
    command,
    recorded,
)
from loraforge.formats import Choice
from loraforge.formats.peft import config_path
from loraforge.kinds import not_an_adapter
from loraforge.measured import acting
from loraforge.output import Destination, destination, replacing
from loraforge.provenance import entry, history, origin
from loraforge.read import ambiguous
from loraforge.recorded import COMPONENT, HEADER
from loraforge.registry import locate
from loraforge.report import fraction
from loraforge.runtimes import outlooks
from loraforge.scale import Statement
from loraforge.tensorfile import KEY, read_safetensors, write_safetensors

STAMPED = ("diffusers", "peft")
"""Formats whose readers look for a scale in the header."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What was recorded, and where. Its JSON follows schemas/stamp.schema.json."""

    source: str
    output: str
    scale: Scale
    scalings: tuple[float, ...]
    replaced: tuple[str, ...]
    """Header entries that said something else before."""
    loads: bool
    """Whether Diffusers knows the names in the file; a bare state dict needs a conversion besides."""
    acts_in: str = ""
    """Programs, with the versions that were run, that apply the file at this scale."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON document. Its shape is a promise: see the schema."""
        return {"schema": "loraforge.stamp.v1", **asdict(self)}

    def lines(self) -> list[str]:
        """The same for a terminal."""
        at = ", ".join(map(fraction, self.scalings))
        out = [f"{self.output} records scale {at} ({self.scale.provenance}: {self.scale.source})"]
        out += [f"  replaced  {', '.join(self.replaced)}"] if self.replaced else []
        folding = command("loraforge", "convert", self.output, "--to", "diffusers")
        strength = (
            f"1.0 acts as trained in {self.acts_in}; what reads no header applies 1.0 to these tensors"
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
    out: str | Path | None = None,
    in_place: bool = False,
    override_scale: bool = False,
    force: bool = False,
) -> Stamp:
    """Record that the adapter in `source` was trained at lora_alpha `alpha`, in the header of a new file.

    The entry is the one Diffusers writes and reads, `lora_adapter_metadata`. Without `alpha` the scale that the file
    records is written anew, in an entry that is whole: some versions stop at one that lacks a name. Raises a
    LoraforgeError, with nothing written, when a scale is recorded already and differs (unless `override_scale`),
    when none is recorded and none is given, or when the file has no header.
    """
    from loraforge.base import fits
    from loraforge.scan import changed, scan

    if alpha is not None and not (math.isfinite(alpha) and alpha > 0):
        raise ScaleError(f"--alpha {alpha:g} is no lora_alpha a training can have used.", "--alpha 1")
    form, _, file = locate(source, None, Choice())
    if form is None:
        raise not_an_adapter(file)
    if file.kind != "safetensors" or form.name not in STAMPED:
        what = "is a torch file, which has no header" if file.kind != "safetensors" else f"is read as {form.name}"
        raise FormatError(
            f"{file.path} {what}: no loader looks for a scale there. Convert it, stating the alpha.",
            command("loraforge", "convert", file.path, "--to", "diffusers", *_said(alpha)),
        )
    if form.name == "peft" and (config := config_path(file)):
        raise FormatError(
            f"{file.path} has its scale in the {config.name} beside it, where PEFT looks for it.",
            command("loraforge", "inspect", source),
        )
    stated = Statement(alpha=alpha, override=override_scale)
    try:
        adapter = form.read(file, Choice(stated=stated))
    except LoraforgeError as error:
        if any(remedy.command.startswith("--override-scale") for remedy in error.remedies):
            raise
        raise as_commands(error, "loraforge", "convert", file.path, "--to", "diffusers") from None
    if adapter.scale.provenance == "ambiguous":
        raise as_commands(ambiguous(file.path, adapter), "loraforge", "convert", file.path, "--to", "diffusers")
    digest = scan(file, adapter.keys)
    ranks = {module: delta[0].rank for module, delta in adapter.modules.items()}
    scalings = {module: delta[0].scaling for module, delta in adapter.modules.items()}
    dora = any(w.magnitude is not None for delta in adapter.modules.values() for w in delta)
    prefix = f"{COMPONENT}." if all(key.startswith(f"{COMPONENT}.") for key in adapter.keys) else ""
    least = {f"{prefix}{key}": value for key, value in peftrules.config(ranks, scalings, dora=dora).items()}
    replaced = tuple(key for key in HEADER if key in file.metadata)
    scale = adapter.scale if alpha is None else Scale("given", f"--alpha {alpha:g}")
    told = tuple(sorted(set(scalings.values())))
    words = ["loraforge", "stamp", recorded(file.path), *_said(alpha), *["--override-scale"] * override_scale]
    mine = file.metadata[KEY] if alpha is None and origin(file.metadata).scale else None  # as true as before
    metadata = {key: text for key, text in file.metadata.items() if key not in HEADER} | {
        "lora_adapter_metadata": json.dumps(least, indent=2, sort_keys=True),
        KEY: mine
        or entry(
            command(*words),
            {"path": recorded(file.path), "format": form.name, "size": file.size, "digest": digest},
            scale,
            told,
            told,
            "metadata",
            adapter.base_model,
            [variant.name for variant in fits(adapter)],
            history(adapter.metadata),
        ),
    }
    goes = _destination(file.path, alpha, out, in_place=in_place, force=force)
    with replacing(goes, file.size, force=force or in_place) as folder:
        written = folder / goes.names[0]
        header = {key: (info.dtype, info.shape) for key, info in file.tensors.items()}
        sums = write_safetensors(written, header, ((key, file[key]) for key in file.tensors), metadata)
        back = read_safetensors(written)
        if changed(back, sums) or changed(file, sums):
            raise VerificationError("the disk gave back other bytes than were written. Nothing was kept.")
        again = form.read(back, Choice())
        if {module: delta[0].scaling for module, delta in again.modules.items()} != scalings:
            raise VerificationError("the written header does not give the scale back. Nothing was kept.")
        acts_in = acting(outlooks(form, back, again))
    return Stamp(str(source), str(goes.file), scale, told, replaced, bool(prefix), acts_in)


def _said(alpha: float | None) -> list[str]:
    return [] if alpha is None else ["--alpha", f"{alpha:g}"]


def _destination(
    file: Path, alpha: float | None, out: str | Path | None, *, in_place: bool, force: bool
) -> Destination:
    if in_place and out:
        raise LoraforgeError("--in-place and -o exclude each other.", Try("--in-place", "write no second file"))
    if in_place:
        whole = file.resolve()  # a link stays one
        return Destination(whole.parent, (whole.name,))
    default = f"{file.stem}-{'mended' if alpha is None else f'alpha{alpha:g}'}.safetensors"
    return destination(Path(out) if out else None, default, (file.name,), [file], force=force)
