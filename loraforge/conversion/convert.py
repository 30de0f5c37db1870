"""Convert an adapter from one format to another, and prove that the result makes the same update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal, Unpack

from loraforge.conversion.prepare import ElementType, WriteRequest
from loraforge.conversion.read import read
from loraforge.conversion.report import Report
from loraforge.conversion.write import written
from loraforge.format.protocol import Wanted
from loraforge.scale.stated import Stated, takes_stated
from loraforge.text import command, options, recorded


@takes_stated
def convert(
    source: str | Path,
    to: str,
    from_: str | None = None,
    out: str | Path | None = None,
    *,
    iteration: int | None = None,
    ema: bool = False,
    scale_in: Literal["tensors", "metadata"] = "tensors",
    target_alpha: float | None = None,
    base: str | Path | None = None,
    lora_only: bool = False,
    pad_ranks: bool = False,
    dtype: ElementType = "keep",
    base_model: str | None = None,
    drop: Sequence[str] = (),
    dry_run: bool = False,
    fetch: bool = False,
    force: bool = False,
    **stated: Unpack[Stated],
) -> Report:
    """Convert the adapter in `source` to the format `to`; the arguments are those of `loraforge convert`.

    `source` may be an address on the Hub; a dry run reads no more than its header, unless `fetch`. Returns the report.
    Raises a LoraforgeError, with nothing written, when the source is not what it should be, its scale is ambiguous
    or contradictory, it does not fit the target, or the written file does not do what the source does.
    """
    adapter = read(source, from_, iteration=iteration, ema=ema, drop=drop, fetch=fetch or not dry_run, **stated)
    name = recorded(adapter.source.file.path) if adapter.source else ""
    wanted = Wanted(scale_in, target_alpha, Path(base) if base else None, lora_only, pad_ranks)
    place, config = Path(out) if out else None, stated["training_config"]
    request = WriteRequest(to, place, wanted, dtype, base_model, tuple(drop), dry_run, force)
    reading = {"to": to, "from": from_, "iteration": iteration, "ema": ema, **stated}
    reading["training_config"] = Path(config) if config else None
    writing = {**asdict(wanted), "dtype": dtype, "base_model": base_model, "drop": drop}
    return written(adapter, request, command("loraforge", "convert", name, *options({**reading, **writing})))
