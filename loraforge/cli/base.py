"""The commands about base weights: fuse and convert-base."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

import loraforge
from loraforge.cli.console import PATH, SOURCE, Numeric, show
from loraforge.cli.options import drop, dtype, flag, stated, value
from loraforge.document import Document


@click.command(cls=Numeric, short_help="Add adapters to base weights for good.")
@click.argument("base", type=SOURCE)
@click.argument("adapters", metavar="ADAPTER...", type=SOURCE, nargs=-1, required=True)
@value("-o --out", "PATH", "Model to write: a folder, or a file where BASE is one.", type=PATH, required=True)
@value("--strength", "S", "Once per ADAPTER, in order; 1 is as trained. Default: 1.", type=float, multiple=True)
@dtype("Element type of the weights.")
@flag("--transformer-only", "Write only the transformer folder of a pipeline.")
@value("--backend", "NAME", "numpy, torch, or one from a plugin.", default="auto", show_default=True)
@value("--device", "NAME", "cpu, cuda, cuda:1.", default="auto", show_default=True)
@stated
@drop
@flag("--dry-run", "Compute what would survive the rounding; write nothing.")
@flag("-f --force", "Replace an earlier result.")
@flag("--json json_", "Print the report as JSON (schemas/fuse.schema.json).")
def fuse(json_: bool, **options: Any) -> None:
    """Add the updates of ADAPTERs to the weights of BASE, and say how much of them survived the rounding.

    BASE is a Diffusers pipeline or transformer folder, a SAT run or checkpoint, or one safetensors file. An
    ADAPTER has a format that `loraforge formats` lists. The result is of the same kind as BASE, with the same keys,
    shards and configuration. To continue a run that was killed, type the same command again.

    \b
    Examples:
      loraforge fuse CogVideoX-5b my-style.safetensors -o CogVideoX-5b-my-style
      loraforge fuse CogVideoX-5b a.safetensors b.safetensors --strength 0.8 --strength 0.5 -o both
      loraforge fuse CogVideoX-2b-sat/transformer my-style.safetensors -o sat-my-style
    """
    _with_progress(loraforge.fuse, "fusing", json_, options)


@click.command("convert-base", cls=Numeric, short_help="Move base weights between SAT and Diffusers.")
@click.argument("source", type=SOURCE)
@value("--to", "LAYOUT", "Layout to write: diffusers, sat, or another that the model has.", required=True)
@value("-o --out", "PATH", "Folder to write.", type=PATH, required=True)
@dtype("Element type of the weights.")
@value(
    "--sample", "FRAMESxHEIGHTxWIDTH", "To Diffusers: size of learned positions if not the released one: 49x480x720."
)
@flag("--dry-run", "Say what would be written; write nothing.")
@flag("-f --force", "Replace an earlier result.")
@flag("--json json_", "Print the report as JSON (schemas/convert-base.schema.json).")
def convert_base(json_: bool, **options: Any) -> None:
    """Write the transformer in SOURCE as another framework names it: a SAT run or checkpoint, or a Diffusers folder.

    A result for Diffusers has the config.json of its variant; one for SAT has the tables that SAT requires. Text
    encoder and VAE are not converted. To continue a run that was killed, type the same command again.

    \b
    Examples:
      loraforge convert-base CogVideoX-2b-sat/transformer --to diffusers -o CogVideoX-2b-transformer
      loraforge convert-base CogVideoX-5b --to sat -o CogVideoX-5b-sat
    """
    _with_progress(loraforge.convert_base, "converting", json_, options)


def _with_progress(verb: Callable[..., Document], label: str, json_: bool, options: dict[str, Any]) -> None:
    from loraforge.cli.screen import progress

    interrupted = f"interrupted. Type the same command again to go on; the work is in {options['out']}.partial"
    with progress(label, interrupted) as update:
        report = verb(**options, progress=update)
    show(report, json_)
