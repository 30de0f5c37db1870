"""Convert an adapter from one format to another, and prove that the result makes the same update."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Unpack

from loraforge.conversion.prepare import ElementType
from loraforge.conversion.read import read
from loraforge.conversion.report import Report
from loraforge.conversion.write import write
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
    config = Path(stated["training_config"]) if stated["training_config"] else None
    reading = {"to": to, "from": from_, "iteration": iteration, "ema": ema, **stated, "training_config": config}
    writing: dict[str, Any] = {
        "scale_in": scale_in, "target_alpha": target_alpha, "base": Path(base) if base else None,
        "lora_only": lora_only, "pad_ranks": pad_ranks, "dtype": dtype, "base_model": base_model, "drop": drop,
    }  # fmt: skip
    typed = command("loraforge", "convert", name, *options({**reading, **writing}))
    return write(adapter, to, out, **writing, dry_run=dry_run, force=force, typed=typed)
