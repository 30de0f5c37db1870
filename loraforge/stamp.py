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
from loraforge.output import Destination, destination, replacing
from loraforge.provenance import entry, history
from loraforge.recorded import COMPONENT, HEADER
from loraforge.registry import locate
from loraforge.report import fraction
from loraforge.scale import Statement
from loraforge.shown import doubt, read_adapter
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
    shown: bool
    """Whether something shows of which architecture it is."""
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The JSON document. Its shape is a promise: see the schema."""
        return {"schema": "loraforge.stamp.v1", **asdict(self)}

    def lines(self) -> list[str]:
        """The same for a terminal."""
        at = ", ".join(map(fraction, self.scalings))
        out = [f"{self.output} records scale {at} ({self.scale.provenance}: {self.scale.source})"]
        out += [f"  replaced  {', '.join(self.replaced)}"] if self.replaced else []
        folding = command("loraforge", "convert", self.output, "--to", "diffusers")
        claim = "acts as trained" if self.shown else "is right if it is what its names fit"
        strength = (
            f"1.0 {claim} in Diffusers 0.34 or newer, which reads the header; other loaders do not"
            if self.loads
            else "no loader knows these names: convert the file, which now tells its scale"
        )
        return [
            *out,
            "  tensors   the same bytes, compared",
            f"  strength  {strength}",
            f"  anywhere  {folding}   # folds it in",
        ]


def stamp(
    source: str | Path,
    alpha: float,
    *,
    out: str | Path | None = None,
    in_place: bool = False,
    override_scale: bool = False,
    architecture: str | None = None,
    force: bool = False,
) -> Stamp:
    """Record that the adapter in `source` was trained at lora_alpha `alpha`, in the header of a new file.

    The entry is the one Diffusers writes and reads, `lora_adapter_metadata`. Raises a LoraforgeError, with
    nothing written, when a scale is recorded already and differs (unless `override_scale`), or when
    the file has no header.
    """
    from loraforge.base import check_base, fits
    from loraforge.scan import changed, scan

    if not (math.isfinite(alpha) and alpha > 0):
        raise ScaleError(f"--alpha {alpha:g} is no lora_alpha a training can have used.", "--alpha 1")
    form, _, file = locate(source, None, Choice())
    if form is None:
        raise not_an_adapter(file)
    if file.kind != "safetensors" or form.name not in STAMPED:
        what = "is a torch file, which has no header" if file.kind != "safetensors" else f"is read as {form.name}"
        raise FormatError(
            f"{file.path} {what}: no loader looks for a scale there. Convert it, stating the alpha.",
            command("loraforge", "convert", file.path, "--to", "diffusers", "--alpha", f"{alpha:g}"),
        )
    if form.name == "peft" and (config := config_path(file)):
        raise FormatError(
            f"{file.path} has its scale in the {config.name} beside it, where PEFT looks for it.",
            command("loraforge", "inspect", source),
        )
    stated = Statement(alpha=alpha, override=override_scale)
    try:
        adapter = read_adapter(form, file, Choice(stated=stated, architecture=architecture))
    except LoraforgeError as error:
        if any(remedy.command.startswith("--override-scale") for remedy in error.remedies):
            raise
        raise as_commands(error, "loraforge", "convert", file.path, "--to", "diffusers") from None
    notes = check_base(adapter, adapter.base_model, "loraforge", "convert", file.path, "--to", "diffusers")
    unshown = doubt(adapter)
    digest = scan(file, adapter.keys)
    ranks = {module: delta[0].rank for module, delta in adapter.modules.items()}
    scalings = {module: delta[0].scaling for module, delta in adapter.modules.items()}
    dora = any(w.magnitude is not None for delta in adapter.modules.values() for w in delta)
    prefix = f"{COMPONENT}." if all(key.startswith(f"{COMPONENT}.") for key in adapter.keys) else ""
    least = {f"{prefix}{key}": value for key, value in peftrules.config(ranks, scalings, dora=dora).items()}
    replaced = tuple(key for key in HEADER if key in file.metadata)
    scale = Scale("given", f"--alpha {alpha:g}")
    told = tuple(sorted(set(scalings.values())))
    words = ["loraforge", "stamp", recorded(file.path), "--alpha", f"{alpha:g}", *["--override-scale"] * override_scale]
    metadata = {key: text for key, text in file.metadata.items() if key not in HEADER} | {
        "lora_adapter_metadata": json.dumps(least, indent=2, sort_keys=True),
        KEY: entry(
            command(*words),
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
    notes = (*adapter.notes, *notes, *([unshown] if unshown else []))
    return Stamp(str(source), str(goes.file), scale, told, replaced, bool(prefix), not unshown, notes)


def _destination(file: Path, alpha: float, out: str | Path | None, *, in_place: bool, force: bool) -> Destination:
    if in_place and out:
        raise LoraforgeError("--in-place and -o exclude each other.", Try("--in-place", "write no second file"))
    if in_place:
        whole = file.resolve()  # a link stays one
        return Destination(whole.parent, (whole.name,))
    default = f"{file.stem}-alpha{alpha:g}.safetensors"
    return destination(Path(out) if out else None, default, (file.name,), [file], force=force)
