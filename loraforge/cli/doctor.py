"""The command that says what is wrong with an adapter: doctor."""

from __future__ import annotations

from typing import Any

import click

import loraforge
from loraforge.cli.console import SOURCE, show
from loraforge.cli.explain import typed
from loraforge.cli.options import architecture, drop, fetch, stated_scale
from loraforge.cli.process import settle_process
from loraforge.text import short_fraction


@click.command(short_help="Say why an adapter has no effect, is too weak or too strong.")
@click.argument("source", metavar="ADAPTER", type=SOURCE)
@click.option(
    "--base", type=SOURCE, metavar="DIR", help="Base model: does the adapter fit, and would it survive a fuse?"
)
@click.option("--runtime", "runtime_", metavar="NAME", help="Program it is run with. Default: one row for each.")
@click.option("--error", metavar="TEXT|-", help="What the program printed, or - for a log on standard input.")
@click.option(
    "--settings",
    multiple=True,
    metavar="KEY=VALUE|FILE.json",
    help="What you run it with (guidance_scale=6, num_frames=49, ...), beside what the model calls for. Repeatable.",
)
@click.option(
    "--like", metavar="NAME", help="Compare with cogvideo-validation, cli_demo, load_cogvideox_lora or sat instead."
)
@click.option("--variant", metavar="NAME", help="The model (CogVideoX-5B, ...), where nothing else tells it.")
@stated_scale
@architecture
@drop
@fetch
@click.option("--json", "json_", is_flag=True, help="Print JSON (schemas/doctor.schema.json).")
@click.pass_context
def doctor(ctx: click.Context, /, source: str, json_: bool, **options: Any) -> None:
    """Say what ADAPTER does in the programs that run it, compared with what it did in training.

    The verdict comes first: acts as trained, acts in part, does nothing, 64x too weak, 128x too strong, wrong base,
    broken file, or cannot tell. Then the numbers behind it, and one command that mends it. Exit code 0 only where
    it acts as trained.

    \b
    Examples:
      loraforge doctor pytorch_lora_weights.safetensors
      loraforge doctor pytorch_lora_weights.safetensors --trained-by cogvideo --runtime cli_demo-old
      loraforge doctor my-style.safetensors --base CogVideoX-5b/transformer
    """
    settle_process()
    if options["error"] is not None:
        options["error"] = typed(options["error"])
    found = loraforge.doctor(source, **options)
    show(found, json_)
    if found.outlooks and not json_:
        from loraforge.cli.screen import table

        rows = [
            [
                o.runtime,
                "stops" if o.raises else f"{o.applied}/{o.modules}",
                ", ".join(short_fraction(scale) for scale in o.scalings),
                ", ".join(f"{ratio:.4g}" for ratio in o.ratios),
                o.raises or o.otherwise or ", ".join(o.lost),
                o.mark,
            ]
            for o in found.outlooks
        ]
        table(["runtime", "modules", "scale", "x trained", "passes over, or stops at", "known by"], rows)
    if not found.healthy:
        ctx.exit(1)
