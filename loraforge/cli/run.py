"""The command that runs adapters in a pipeline: run."""

from __future__ import annotations

from typing import Any

import click

import loraforge
from loraforge.cli.console import PATH, SOURCE, show
from loraforge.cli.options import architecture, stated_scale


def _strengths(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...]:
    """`0,0.5,1` as numbers."""
    try:
        return tuple(float(word) for word in value.split(",")) if value else ()
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of strengths like 0,0.5,1.", ctx, param) from None


@click.command(short_help="Run adapters in a CogVideoX pipeline; compare with and without.")
@click.argument("adapters", metavar="ADAPTER...", type=SOURCE, nargs=-1)
@click.option("--prompt", default="", metavar="TEXT", help="What the video is to show.")
@click.option("--negative-prompt", default="", metavar="TEXT", help="What it is not to show.")
@click.option("--base", type=SOURCE, metavar="ID|DIR", help="Pipeline to run in. Default: the one the adapter names.")
@click.option("--image", type=PATH, metavar="FILE", help="First frame, for a base that begins with one.")
@click.option("--video", type=PATH, metavar="FILE", help="Video to start from (text-to-video bases).")
@click.option("-o", "--out", type=PATH, metavar="OUT.mp4", help="Default: ./<run>.mp4. Its manifest lies beside it.")
@click.option(
    "--strength",
    type=float,
    multiple=True,
    metavar="S",
    help="Once per ADAPTER, in order. Default: 1, as trained.",
)
@click.option("--check", is_flag=True, help="Only measure: the transformer alone, on and off. No text encoder, no VAE.")
@click.option(
    "--compare", callback=_strengths, metavar="S,S,...", help="Run at these times the strengths, from the same noise."
)
@click.option("--steps", type=click.IntRange(min=1), metavar="N", help="Denoising steps.")
@click.option("--guidance", type=float, metavar="G", help="Guidance scale.")
@click.option("--frames", type=click.IntRange(min=1), metavar="N", help="Frames of the video.")
@click.option("--seed", type=int, metavar="N", help="Of the noise.")
@click.option(
    "--settings",
    multiple=True,
    metavar="KEY=VALUE|FILE.json",
    help="Another setting (height=480, scheduler=..., torch_dtype=...); else what the model calls for. Repeatable.",
)
@click.option(
    "--like", metavar="NAME", help="The settings of cogvideo-validation, cli_demo, load_cogvideox_lora or sat."
)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="cuda, cuda:1, mps or cpu.")
@click.option(
    "--offload",
    type=click.Choice(["none", "model", "sequential", "group"]),
    help="Default: none. Keep weights out of the GPU: component by component, layer by layer, or in groups of layers.",
)
@click.option("--tiling/--no-tiling", default=None, help="Decode the video in tiles. Default: yes.")
@click.option("--slicing/--no-slicing", default=None, help="Decode one video of a batch at a time. Default: yes.")
@click.option("--manifest", type=PATH, metavar="FILE", help="Repeat the run that wrote FILE.")
@click.option("--anyway", is_flag=True, help="Run with settings that are wrong for the model.")
@stated_scale
@architecture
@click.option("-f", "--force", is_flag=True, help="Replace existing files.")
@click.option("--json", "json_", is_flag=True, help="Print the report as JSON (schemas/run.schema.json).")
def run(json_: bool, **options: Any) -> None:
    """Run ADAPTERs, of the formats that `loraforge formats` lists, in a CogVideoX pipeline, at the scale of training.

    Scheduler, guidance, frames, size and element type are those the base model calls for; they are printed and
    saved in a manifest, with which --manifest repeats the run. What would fail, or give a black video, is told before
    weights are loaded. Needs loraforge[pipeline].

    --check answers "does it act?" in the shortest time; --compare with a video, numbers and a contact sheet.

    \b
    Examples:
      loraforge run my-style.safetensors --prompt "a panda plays the guitar" --base zai-org/CogVideoX-5b
      loraforge run my-style.safetensors --base zai-org/CogVideoX-5b --check
      loraforge run user/my-style --prompt "a panda plays the guitar" --compare 0,0.5,1 --offload model
      loraforge run --manifest panda.json -o again.mp4
    """
    from loraforge.cli.screen import progress

    with progress("steps", "interrupted; no file was written") as update:
        report = loraforge.run(**options, progress=update)
    show(report, json_)
