"""Convert an adapter from one format to another, and prove that the result makes the same update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from loraforge.conversion.read import read
from loraforge.conversion.report import Report
from loraforge.conversion.write import write
from loraforge.text import command, recorded


def convert(
    source: str | Path,
    to: str,
    from_: str | None = None,
    out: str | Path | None = None,
    *,
    iteration: int | None = None,
    ema: bool = False,
    alpha: float | None = None,
    trained_scale: float | None = None,
    trained_by: str | None = None,
    training_config: str | Path | None = None,
    as_in: str | None = None,
    as_loaded: bool = False,
    override_scale: bool = False,
    architecture: str | None = None,
    scale_in: Literal["tensors", "metadata"] = "tensors",
    target_alpha: float | None = None,
    base: str | Path | None = None,
    lora_only: bool = False,
    pad_ranks: bool = False,
    dtype: Literal["keep", "fp32", "bf16", "fp16"] = "keep",
    base_model: str | None = None,
    drop: Sequence[str] = (),
    dry_run: bool = False,
    fetch: bool = False,
    force: bool = False,
) -> Report:
    """Convert the adapter in `source` to the format `to`; the arguments are those of `loraforge convert`.

    `source` may be an address on the Hub; a dry run reads no more than its header, unless `fetch`. Returns the report.
    Raises a LoraforgeError, with nothing written, when the source is not what it should be, its scale is ambiguous
    or contradictory, it does not fit the target, or the written file does not do what the source does.
    """
    options = dict(locals())
    adapter = read(
        source,
        from_,
        iteration=iteration,
        ema=ema,
        alpha=alpha,
        trained_scale=trained_scale,
        trained_by=trained_by,
        training_config=training_config,
        as_in=as_in,
        as_loaded=as_loaded,
        override_scale=override_scale,
        architecture=architecture,
        drop=drop,
        fetch=fetch or not dry_run,
    )
    name = recorded(adapter.source.file.path) if adapter.source else ""
    return write(
        adapter,
        to,
        out,
        scale_in=scale_in,
        target_alpha=target_alpha,
        base=base,
        lora_only=lora_only,
        pad_ranks=pad_ranks,
        dtype=dtype,
        base_model=base_model,
        drop=drop,
        dry_run=dry_run,
        force=force,
        typed=_typed(options, name),
    )


def _typed(options: Mapping[str, object], name: str) -> str:
    """The command as the result records it: no folders, and only what can change the result."""
    words = ["loraforge", "convert", name]
    for option, value in options.items():
        flag = "--" + option.rstrip("_").replace("_", "-")
        if option in ("source", "out", "force", "dry_run", "fetch") or value is None or value is False:
            continue  # by identity: a stated scale of 0 equals False
        if value in ("tensors", "keep"):
            continue
        if isinstance(value, list | tuple):
            words += [word for item in value for word in (flag, item)]
        elif option in ("training_config", "base"):
            words += [flag, Path(str(value)).name]
        else:
            words += [flag] if value is True else [flag, f"{value:g}" if isinstance(value, float) else str(value)]
    return command(*words)
