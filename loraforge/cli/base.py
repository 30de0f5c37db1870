"""The commands about base weights: fuse and convert-base."""

from __future__ import annotations

from typing import Any

import click

import loraforge
from loraforge.cli.console import PATH, SOURCE, show
from loraforge.cli.options import architecture, drop, element_type, stated_scale
from loraforge.cli.process import settle_process

_INTERRUPTED = "interrupted. Type the same command again to go on; the work is in {out}.partial"


@click.command(short_help="Add adapters to base weights for good.")
@click.argument("base", type=SOURCE)
@click.argument("adapters", metavar="ADAPTER...", type=SOURCE, nargs=-1, required=True)
@click.option("-o", "--out", type=PATH, required=True, help="Model to write: a folder, or a file where BASE is one.")
@click.option(
    "--strength",
    type=float,
    multiple=True,
    metavar="S",
    help="How strongly, once per ADAPTER and in their order; 1 is as trained. Default: 1 for each.",
)
@element_type("Element type of the weights.")
@click.option("--transformer-only", is_flag=True, help="Of a pipeline, write the transformer folder alone.")
@click.option("--backend", default="auto", show_default=True, metavar="NAME", help="numpy, torch or a plugin's.")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="cpu, cuda, cuda:1.")
@stated_scale
@architecture
@drop
@click.option("--dry-run", is_flag=True, help="Compute what would survive the rounding; write nothing.")
@click.option("-f", "--force", is_flag=True, help="Replace an earlier result.")
@click.option("--json", "json_", is_flag=True, help="Print the report as JSON (schemas/fuse.schema.json).")
def fuse(json_: bool, **options: Any) -> None:
    """Add the updates of ADAPTERs to the weights of BASE, and say what of them survived the rounding.

    BASE is a Diffusers pipeline or transformer folder, a SAT run or checkpoint, or one safetensors file; an
    ADAPTER is of a format that `loraforge formats` lists. The result is of BASE's kind, with its keys, shards and
    configuration. A run that was killed goes on where it was when it is typed again.

    \b
    Examples:
      loraforge fuse CogVideoX-5b my-style.safetensors -o CogVideoX-5b-my-style
      loraforge fuse CogVideoX-5b a.safetensors b.safetensors --strength 0.8 --strength 0.5 -o both
      loraforge fuse CogVideoX-2b-sat/transformer my-style.safetensors -o sat-my-style
    """
    settle_process()
    from loraforge.cli.screen import progress

    with progress("fusing", _INTERRUPTED.format(**options)) as update:
        report = loraforge.fuse(**options, progress=update)
    show(report, json_)


@click.command("convert-base", short_help="Move base weights between SAT and Diffusers.")
@click.argument("source", type=SOURCE)
@click.option("--to", metavar="LAYOUT", required=True, help="Layout to write: diffusers, sat, or another of the model.")
@click.option("-o", "--out", type=PATH, required=True, help="Folder to write.")
@element_type("Element type of the weights.")
@click.option(
    "--sample",
    metavar="FRAMESxHEIGHTxWIDTH",
    help="To Diffusers: size in pixels that learned positions are for, if it is not the released one's: 49x480x720.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be written; write nothing.")
@click.option("-f", "--force", is_flag=True, help="Replace an earlier result.")
@click.option("--json", "json_", is_flag=True, help="Print the report as JSON (schemas/convert-base.schema.json).")
def convert_base(json_: bool, **options: Any) -> None:
    """Write the transformer in SOURCE as another framework names it: a SAT run or checkpoint, or a Diffusers folder.

    What is written for Diffusers has the config.json of its variant; what is written for SAT has the tables SAT
    insists on. Text encoder and VAE are not converted. A run that was killed goes on when it is typed again.

    \b
    Examples:
      loraforge convert-base CogVideoX-2b-sat/transformer --to diffusers -o CogVideoX-2b-transformer
      loraforge convert-base CogVideoX-5b --to sat -o CogVideoX-5b-sat
    """
    settle_process()
    from loraforge.cli.screen import progress

    with progress("converting", _INTERRUPTED.format(**options)) as update:
        report = loraforge.convert_base(**options, progress=update)
    show(report, json_)
