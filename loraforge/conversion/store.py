"""Writes what was prepared, while its numbers are computed on threads; a dry run computes them and writes nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loraforge._version import __version__
from loraforge.adapter import fit
from loraforge.adapter.adapter import Adapter, Step
from loraforge.adapter.fits import fits
from loraforge.algebra.lora import Array, Delta
from loraforge.conversion.prepare import Prepared, refusal
from loraforge.files.destination import replacing
from loraforge.files.digest import UNSEALED, scan, scan_modules, seal
from loraforge.files.mapped import steady
from loraforge.files.safetensors import replace_entry
from loraforge.files.tensorfile import KEY, RELEASE_EVERY
from loraforge.scale.origin import digest_of, history
from loraforge.scale.recorded import PEFT_CONFIG
from loraforge.text import recorded, told
from loraforge.threads import in_order


@dataclass(frozen=True, slots=True)
class Written:
    """Files in a temporary folder."""

    folder: Path
    file: Path
    """The tensor file."""
    sums: Mapping[str, int]
    """Key -> CRC-32 of its bytes."""
    metadata: Mapping[str, str]
    computed: Computed


@dataclass(frozen=True, slots=True)
class Computed:
    """The numbers of the result, one module after the other."""

    digest: str | None
    """Of the source's tensors; None if they were not fetched."""
    steps: list[Step]
    """Of the modules whose tensors were taken."""
    tensors: Iterator[tuple[str, Array]]
    """Raises ConversionError at its end if a module lost too much to rounding."""


@contextmanager
def computed(prepared: Prepared) -> Iterator[Computed]:
    """Compute the numbers on threads while the source's are scanned. Raises FormatError if the source has NaN."""
    file, steps = prepared.file, list[Step]()

    def encoded(fitted: Iterator[tuple[Delta, Step]]) -> Iterator[tuple[str, Array]]:
        for delta, step in fitted:
            steps.append(step)
            yield from prepared.writer.encode(step.module, delta)
            if file and len(steps) % RELEASE_EVERY == 0:
                file.release()
        for one in [] if prepared.unfetched else prepared.whole:
            numbers, made = one.stored(prepared.policy.dtype)
            steps.extend([made] if made.sources else [])
            yield prepared.writer.difference(one.path, one.suffix), numbers
        if lossy := fit.too_lossy(steps):
            raise refusal(prepared, lossy)

    with in_order(fit.carry_out, [] if prepared.unfetched else prepared.plans) as fitted:
        digest = None
        if not prepared.unfetched:
            digest = scan(file, prepared.adapter.keys) if file else scan_modules(prepared.adapter.updates)
        yield Computed(digest, steps, encoded(fitted))


@contextmanager
def store(prepared: Prepared, typed: str, *, force: bool) -> Iterator[Written]:
    """The written files. They get their names if the block ends without an error, and vanish if not.

    `typed`: the command that the file records. Raises OutputError if the disk cannot be written.
    """
    with computed(prepared) as made:
        output, result, writer = prepared.destination, prepared.result, prepared.writer
        entry = entry_of(
            prepared.adapter, made.digest, typed, result.scalings.values(), writer.stored, result.base_model,
            writer.beside(result).get(PEFT_CONFIG),
        )  # fmt: skip
        header, metadata = prepared.header, {**prepared.metadata, KEY: entry}
        maps = prepared.file.maps if prepared.file else ()
        with replacing(output, writer.size(header), force=force) as folder, steady(*maps):
            file = folder / output.names[0]
            file.parent.mkdir(exist_ok=True)
            sums = writer.write(file, header, made.tensors, metadata)
            entry = sealed(entry, seal(header, sums))
            replace_entry(file, KEY, entry)
            beside = replace(result, metadata={**result.metadata, KEY: entry})
            for name, text in writer.beside(beside).items():
                (folder / name).write_text(text, "utf-8")
            yield Written(folder, file, sums, {**metadata, KEY: entry}, made)


def source(adapter: Adapter, digest: str | None) -> dict[str, Any]:
    """Where the adapter came from, for the report and for the entry in the written file."""
    if adapter.source is None:
        size = sum(f.nbytes for delta in adapter.updates.values() for w in delta for f in (w.A, w.B))
        return {"path": "made-in-python", "format": "python", "size": size, "digest": digest}
    file = adapter.source.file
    return {"path": told(file.path), "format": adapter.source.format, "size": file.size, "digest": digest}


def entry_of(
    adapter: Adapter, digest: str | None, typed: str, applied: Iterable[float], stored: str, base: str | None,
    config: str | None = None,
) -> str:  # fmt: skip
    """Our entry in the header of a file that the command `typed` made of `adapter`, to be `sealed`.

    No folders and no dates: the same input gives the same bytes. `applied`: the scalings that its readers apply.
    `config`: the LoraConfig beside it.
    """
    scale, described = adapter.scale, source(adapter, digest)
    if adapter.source:
        described["path"] = recorded(adapter.source.file.path)
    trained: dict[str, Any] = {"provenance": scale.provenance, "source": scale.portable, "scalings": adapter.scalings}
    shown = adapter.architecture if adapter.shown or not adapter.source else None
    beside = config and digest_of(json.loads(config))
    optional = {"earlier": history(adapter.metadata), "architecture": shown, "config": beside}
    entry = {
        "tool": f"loraforge {__version__}",
        "command": typed,
        "source": described,
        "scale": trained | ({"program": scale.program} if scale.program else {}),
        "stored": stored,
        "applied": sorted(set(applied)),
        "base_model": base,
        "fits": [variant.name for variant in fits(adapter)],
        "tensors": UNSEALED,
        **{name: value for name, value in optional.items() if value},
    }
    return json.dumps(entry, sort_keys=True)


def sealed(entry: str, tensors: str) -> str:
    """The entry, as long as before, with the seal of the tensors that were written beside it, if it waits for one."""
    said = json.loads(entry)
    return json.dumps(said | {"tensors": tensors}, sort_keys=True) if said.get("tensors") == UNSEALED else entry
