"""What a conversion decides before a tensor is computed: the writer, the header, the source's record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from loraforge.adapter.adapter import Adapter
from loraforge.adapter.fits import no_repository, repository
from loraforge.algebra.dtypes import CHOICES, name_of
from loraforge.errors import ConversionError
from loraforge.format.protocol import Format, Header, Wanted, Writer
from loraforge.format.registry import formats
from loraforge.text import command, told

if TYPE_CHECKING:
    from loraforge.algebra.lora import Delta


def _source(adapter: Adapter, digest: str | None) -> dict[str, Any]:
    """What the report and the provenance say of where the adapter came from."""
    if adapter.source is None:
        size = sum(f.nbytes for delta in adapter.modules.values() for w in delta for f in (w.A, w.B))
        return {"path": "made-in-python", "format": "python", "size": size, "digest": digest}
    file = adapter.source.file
    return {"path": told(file.path), "format": adapter.source.format, "size": file.size, "digest": digest}


def _check(scale_in: str, dtype: str, base_model: str | None) -> None:
    for option, value, known in (("scale_in", scale_in, ("tensors", "metadata")), ("dtype", dtype, ("keep", *CHOICES))):
        if value not in known:
            raise ConversionError(f"{option} is {value!r}; it can be {', '.join(known)}.")

    if base_model is not None and repository(base_model) is None:
        raise no_repository(base_model)


def _writer(target: Format, wanted: Wanted) -> Writer:
    if target.writer is None:
        raise ConversionError(f"{target.name} is read, not written.", command("loraforge", "formats"))
    for option in fields(Wanted):
        if option.name in target.options or getattr(wanted, option.name) == option.default:
            continue
        if knowing := [name for name, form in formats().items() if option.name in form.options]:
            flag = "--" + option.name.replace("_", "-")
            raise ConversionError(f"{flag} goes with --to {' or '.join(knowing)}, not with --to {target.name}.")
    return target.writer(wanted)


def _header(writer: Writer, outlines: Mapping[str, Delta]) -> Header:
    """Key -> element type and shape of every tensor that will be written."""
    encoded = (pair for module, delta in outlines.items() for pair in writer.encode(module, delta))
    return {key: (name_of(tensor.dtype), tensor.shape) for key, tensor in encoded}
