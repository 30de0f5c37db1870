"""`loraforge doctor`: what is wrong with an adapter."""

from __future__ import annotations

from typing import Any

import click

import loraforge
from loraforge.cli.console import SOURCE, Numeric, show
from loraforge.cli.explain import typed_log
from loraforge.cli.options import drop, fetch, flag, stated, value
from loraforge.text import listed, short_fraction


@click.command(cls=Numeric, short_help="Say why an adapter has no effect, is too weak or too strong.")
@click.argument("source", metavar="ADAPTER", type=SOURCE)
@value("--base", "DIR", "Base model: does the adapter fit, and would it survive a fuse?", type=SOURCE)
@value("--runtime runtime_", "NAME", "Program that runs it. Default: one row for each.")
@value("--error", "TEXT|FILE|-", "What the program printed, a log, or - for a log from standard input.")
@value("--settings", "KEY=VALUE|FILE.json", "Settings you run with (guidance_scale=6, ...). Repeatable.", multiple=True)
@value("--like", "NAME", "Compare with cogvideo-validation, cli_demo, load_cogvideox_lora or sat instead.")
@value("--variant", "NAME", "Model (CogVideoX-5B, ...), if nothing else shows it.")
@stated
@drop
@fetch
@flag("--json json_", "Print JSON (schemas/doctor.schema.json).")
@click.pass_context
def doctor(ctx: click.Context, /, source: str, json_: bool, **options: Any) -> None:
    """Say what ADAPTER does in the programs that run it, compared with what it did in training.

    The verdict comes first: acts as trained, acts in part, does nothing, 64x too weak, 128x too strong, wrong base,
    broken file, or cannot tell. Then the numbers behind it, and one command that fixes it. Exit code 0 only if
    it acts as trained.

    \b
    Examples:
      loraforge doctor pytorch_lora_weights.safetensors
      loraforge doctor pytorch_lora_weights.safetensors --trained-by cogvideo --runtime cli_demo-old
      loraforge doctor my-style.safetensors --base CogVideoX-5b/transformer
    """
    if options["error"] is not None:
        options["error"] = typed_log(options["error"])
    diagnosis = loraforge.doctor(source, **options)
    show(diagnosis, json_)
    if diagnosis.outlooks and not json_:
        from loraforge.cli.screen import table

        rows = [
            [
                o.runtime,
                "stops" if o.raises else f"{o.applied}/{o.modules}",
                ", ".join(short_fraction(scale) for scale in o.scalings),
                ", ".join(f"{ratio:.4g}" for ratio in o.ratios),
                o.raises or o.otherwise or listed(list(o.lost), 4),
                o.mark,
            ]
            for o in diagnosis.outlooks
        ]
        table(["runtime", "modules", "scale", "x trained", "passes over, or stops at", "known by"], rows)
    if not diagnosis.healthy:
        ctx.exit(1)
