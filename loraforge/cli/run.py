"""The command that runs adapters in a pipeline: run."""

from __future__ import annotations

from typing import Any

import click

import loraforge
from loraforge.cli.console import PATH, SOURCE, show
from loraforge.cli.options import choice, flag, stated, value


def _strengths(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...]:
    """`0,0.5,1` as numbers."""
    try:
        return tuple(float(word) for word in value.split(",")) if value else ()
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of strengths like 0,0.5,1.", ctx, param) from None


@click.command(short_help="Run adapters in a CogVideoX pipeline; compare with and without.")
@click.argument("adapters", metavar="ADAPTER...", type=SOURCE, nargs=-1)
@value("--prompt", "TEXT", "What the video should show.", default="")
@value("--negative-prompt", "TEXT", "What the video should not show.", default="")
@value("--base", "ID|DIR", "Pipeline to run in. Default: the one the adapter names.", type=SOURCE)
@value("--image", "FILE", "First frame, for a base that starts from an image.", type=PATH)
@value("--video", "FILE", "Video to start from (text-to-video bases).", type=PATH)
@value("-o --out", "OUT.mp4", "Video to write, and beside it a manifest. Default: ./<run>.mp4.", type=PATH)
@value("--strength", "S", "Once per ADAPTER, in order. Default: 1, as trained.", type=float, multiple=True)
@flag("--check", "Only measure the transformer, with and without the adapter: no text encoder, no VAE.")
@value("--compare", "S,S,...", "Run at these multiples of the strengths, from the same noise.", callback=_strengths)
@value("--steps", "N", "Denoising steps.", type=click.IntRange(min=1))
@value("--guidance", "G", "Guidance scale.", type=float)
@value("--frames", "N", "Frames of the video.", type=click.IntRange(min=1))
@value("--seed", "N", "Seed of the noise.", type=int)
@value(
    "--settings", "KEY=VALUE|FILE.json", "Settings to change (height=480, scheduler=...). Repeatable.", multiple=True
)
@value("--like", "NAME", "Use the settings of cogvideo-validation, cli_demo, load_cogvideox_lora or sat.")
@value("--device", "NAME", "cuda, cuda:1, mps or cpu.", default="auto", show_default=True)
@choice(
    "--offload",
    ["none", "model", "sequential", "group"],
    "Keep weights out of the GPU by component, by layer, or in groups of layers. Default: none.",
)
@click.option("--tiling/--no-tiling", default=None, help="Decode the video in tiles. Default: yes.")
@click.option("--slicing/--no-slicing", default=None, help="Decode one video of a batch at a time. Default: yes.")
@value("--manifest", "FILE", "Repeat the run that wrote FILE.", type=PATH)
@flag("--anyway", "Run even with settings that are wrong for the model.")
@stated
@flag("-f --force", "Replace existing files.")
@flag("--json json_", "Print the report as JSON (schemas/run.schema.json).")
def run(json_: bool, **options: Any) -> None:
    """Run ADAPTERs in a CogVideoX pipeline, at the scale of training. Their formats: `loraforge formats`.

    Of CogVideoX alone. Another adapter goes into its own pipeline in Python: loraforge.load_into(pipe, FILE),
    or pipe.load_lora_weights after `loraforge convert FILE --to diffusers`.

    Scheduler, guidance, frames, size and element type are those that the base model needs. They are printed, and
    saved in a manifest: --manifest repeats the run. What would fail, or give a black video, is reported before
    weights are loaded. Needs loraforge[pipeline].

    --check answers "does it act?" in the shortest time; --compare answers it with videos, numbers and a contact sheet.

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
