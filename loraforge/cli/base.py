"""The commands that need base weights: fuse, convert-base, run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

import loraforge
from loraforge.cli.console import PATH, SOURCE, Numeric, show
from loraforge.cli.options import choice, drop, dtype, flag, stated, value
from loraforge.document import Document

_GO_ON = "interrupted. Type the same command again to go on; the work is in {}.partial"


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
    _with_progress(loraforge.fuse, "fusing", _GO_ON.format(options["out"]), json_, options)


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
    _with_progress(loraforge.convert_base, "converting", _GO_ON.format(options["out"]), json_, options)


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
    _with_progress(loraforge.run, "steps", "interrupted; no file was written", json_, options)


def _with_progress(
    verb: Callable[..., Document], label: str, interrupted: str, json_: bool, options: dict[str, Any]
) -> None:
    from loraforge.cli.screen import progress

    with progress(label, interrupted) as update:
        report = verb(**options, progress=update)
    show(report, json_)
