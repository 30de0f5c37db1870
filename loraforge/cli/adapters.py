"""The commands on one adapter: convert, inspect, verify, stamp."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

import loraforge
from loraforge.cli.console import PATH, SOURCE, as_json, say, show
from loraforge.cli.hub import publish
from loraforge.cli.options import _format, _runtime, architecture, drop, element_type, fetch, stated_scale
from loraforge.cli.process import settle_process
from loraforge.errors import LoraforgeError

if TYPE_CHECKING:
    from loraforge.conversion.verify import Loader


@click.command(short_help="Convert an adapter, and prove the result.")
@click.argument("source", type=SOURCE)
@click.option("--to", metavar="FORMAT", callback=_format, help="Format to write; see `loraforge formats`.")
@click.option(
    "--for",
    "for_",
    metavar="RUNTIME",
    callback=_runtime,
    help="Instead of --to: the format of the program it will run in; see `loraforge doctor`.",
)
@click.option(
    "--from", "from_", metavar="FORMAT", callback=_format, help="Format of SOURCE. Default: told by its content."
)
@click.option(
    "-o",
    "--out",
    type=PATH,
    help="A folder or, where the format is one file, a .safetensors. Default: ./<run>-<iteration>-<format>, printed.",
)
@click.option(
    "--iteration", type=int, metavar="N", help="Checkpoint to take from a run. Default: the one `latest` names."
)
@click.option("--ema", is_flag=True, help="Take the averaged weights (N-ema) instead of the plain ones.")
@stated_scale
@architecture
@click.option(
    "--scale-in",
    type=click.Choice(["tensors", "metadata"]),
    default="tensors",
    show_default=True,
    help="Fold the scale into A and B, or leave them untouched and record it in the header, which some loaders do "
    "not read. To continue training, use metadata.",
)
@click.option(
    "--pad-ranks",
    is_flag=True,
    help="Give the modules one rank, the largest, by zeros: the same update. Where ranks differ, Diffusers 0.31 to "
    "0.33 needs it.",
)
@click.option(
    "--base",
    type=PATH,
    metavar="CHECKPOINT",
    help="With --to sat: the SAT checkpoint or folder of the base model, to be copied around the LoRA.",
)
@click.option("--lora-only", is_flag=True, help="With --to sat: no base, only the LoRA; SAT cannot load that alone.")
@click.option(
    "--target-alpha",
    type=float,
    metavar="N",
    help="With --to sat: the lora_alpha SAT will run with. Default: its own, 1. Written into the YAML.",
)
@element_type("Element type of the written tensors.")
@click.option("--base-model", metavar="REPO", help="Base model to record, as a Hub id: zai-org/CogVideoX-5b.")
@drop
@click.option("--dry-run", is_flag=True, help="Say what would be written, and write nothing.")
@fetch
@click.option("-f", "--force", is_flag=True, help="Replace an existing file.")
@click.option("--push", "repo", metavar="USER/REPO", help="Then publish the result; see `loraforge push`.")
@click.option("--private", is_flag=True, help="With --push: if the repository is new, for you alone.")
@click.option("--json", "json_", is_flag=True, help="Print the report as JSON (schemas/convert.schema.json).")
def convert(json_: bool, for_: Any, repo: str | None, private: bool, **options: Any) -> None:
    """Convert the adapter in SOURCE, a file, an iteration folder or a run folder.

    At strength 1.0 the written file makes the update that the source made in training. The scale comes from what
    the run recorded; where nothing recorded it and trainers differ, you are asked, never guessed for.

    \b
    Examples:
      loraforge convert runs/lora-disney-11-20-10-00 --to diffusers
      loraforge convert runs/lora-disney-11-20-10-00 --to diffusers --iteration 500 --ema
      loraforge convert mp_rank_00_model_states.pt --from sat --to diffusers --alpha 1 -o my-style.safetensors
      loraforge convert pytorch_lora_weights.safetensors --to peft --trained-by cogvideo
      loraforge convert peft-folder --to sat --base CogVideoX-2b-sat/transformer
    """
    settle_process()
    if (options["to"] is None) == (for_ is None):
        raise click.UsageError("Give --to FORMAT or --for RUNTIME.")
    if repo:
        from loraforge.publishing.push import destination

        destination(repo)  # before anything is converted
    if private and not repo:
        raise click.UsageError("--private goes with --push.")
    if repo and json_:
        raise click.UsageError("--json prints one report: convert with --json, then push with --json.")
    if repo and options["dry_run"]:
        raise click.UsageError("--dry-run writes no file that --push could look at: convert, then push --dry-run.")
    options["to"] = options["to"] or for_.format
    report = loraforge.convert(**options)
    if for_ and for_.instead:
        say("note: ", f"{for_.title}: {for_.instead}")
    show(report, json_)
    if repo:
        publish(report, repo, private=private)


@click.command(short_help="Say what a file is, from its headers.")
@click.argument("source", type=SOURCE)
@click.option(
    "--from", "from_", metavar="FORMAT", callback=_format, help="Format of SOURCE. Default: told by its content."
)
@click.option(
    "--iteration", type=int, metavar="N", help="Checkpoint to take from a run. Default: the one `latest` names."
)
@click.option("--ema", is_flag=True, help="Take the averaged weights (N-ema).")
@click.option("--json", "json_", is_flag=True, help="Print JSON (schemas/inspect.schema.json).")
@click.option(
    "--skeleton",
    is_flag=True,
    help="Print names, shapes, element types and metadata as JSON, no weight: attach it to a bug report.",
)
@architecture
@click.option("--history", is_flag=True, help="Print from which file, by which commands, it was made.")
@drop
@fetch
def inspect(source: str, from_: str | None, json_: bool, skeleton: bool, history: bool, **options: Any) -> None:
    """Say what SOURCE is: format, modules, ranks, scale, base model. Reads headers only.

    \b
    Examples:
      loraforge inspect runs/lora-disney-11-20-10-00
      loraforge inspect pytorch_lora_weights.safetensors --json
      loraforge inspect mp_rank_00_model_states.pt --skeleton > skeleton.json
      loraforge inspect user/my-style            a model on the Hub; of its file, the header alone is fetched
    """
    if skeleton:
        if options.pop("drop"):
            raise click.UsageError("--skeleton is of the whole file: it goes without --drop.")
        del options["architecture"]
        click.echo(as_json(loraforge.skeleton(source, **options)))
        return
    found = loraforge.inspect(source, from_, **options)
    show(found, json_, found.history_lines() if history else None)
    if found.problem:
        raise LoraforgeError(found.problem, *found.remedies)


@click.command(short_help="Compare two adapters, or a file with what its loader makes of it.")
@click.argument("a", type=SOURCE)
@click.argument("b", type=SOURCE, required=False)
@click.option(
    "--in",
    "in_",
    type=click.Choice(["diffusers", "peft"]),
    help="Load A with the real library (loraforge[pipeline]) and compare with what its layers hold.",
)
@click.option(
    "--base",
    type=SOURCE,
    metavar="DIR",
    help="With --in: a folder with the transformer's config.json. Default: made from A's shapes.",
)
@stated_scale
@architecture
@drop
@click.option("--json", "json_", is_flag=True, help="Print JSON (schemas/verify.schema.json).")
@click.pass_context
def verify(
    ctx: click.Context, /, a: str, b: str | None, in_: Loader | None, base: str | None, json_: bool, **options: Any
) -> None:
    """Say whether A and B, of one format or two, make the same update; or what a loader makes of A.

    They are compared row by row, in float64; rounding to the coarser type, up to 1 % of a module, is no difference.
    A scale that nothing records is taken for 1.0, unless you state it: of the one that records none; where both do,
    of A. --as-in is said of A. Exit code 1 when the two differ.

    \b
    Examples:
      loraforge verify runs/lora-disney-11-20-10-00 my-style.safetensors
      loraforge verify my-style.safetensors --in diffusers
    """
    settle_process()
    found = loraforge.verify(a, b, in_=in_, base=base, **options)
    show(found, json_)
    if not found.same:
        ctx.exit(1)


@click.command(short_help="Record the scale of training in a file's header.")
@click.argument("source", metavar="FILE", type=SOURCE)
@stated_scale
@click.option("-o", "--out", type=PATH, help="File to write. Default: ./<name>-<what you state>.safetensors, printed.")
@click.option("--in-place", is_flag=True, help="Replace FILE itself, once the new one has proved right.")
@architecture
@drop
@click.option("-f", "--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "json_", is_flag=True, help="Print JSON (schemas/stamp.schema.json).")
def stamp(source: str, json_: bool, **options: Any) -> None:
    """Record in FILE's header at what scale it was trained, stated as for convert. The tensors stay as they are.

    Diffusers reads the entry since 0.34; what does not read it needs the scale in the tensors: `loraforge convert`.
    Without --alpha the entry that FILE has is completed: Diffusers 0.34 to 0.39 stops at one without rank_pattern.

    \b
    Examples:
      loraforge stamp pytorch_lora_weights.safetensors --alpha 64 -o my-style.safetensors
      loraforge stamp pytorch_lora_weights.safetensors --in-place
    """
    show(loraforge.stamp(source, **options), json_)
