"""The commands on one adapter: convert, inspect, verify, stamp, push."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import loraforge
from loraforge.cli.console import PATH, SOURCE, Numeric, as_json, say, show
from loraforge.cli.options import architecture, checkpoint, choice, drop, dtype, fetch, flag, stated, target, value
from loraforge.document import Document
from loraforge.errors import LoraforgeError, as_commands

if TYPE_CHECKING:
    from loraforge.conversion.report import Report


@click.command(cls=Numeric, short_help="Convert an adapter, and prove the result.")
@click.argument("source", type=SOURCE)
@target
@value("-o --out", "PATH", "Folder or .safetensors file to write. Default: ./<run>-<iteration>-<format>.", type=PATH)
@checkpoint
@stated
@choice(
    "--scale-in",
    ["tensors", "metadata"],
    "Fold the scale into A and B, or leave them unchanged and record it in the header, which some loaders do not "
    "read. To continue training, use metadata.",
    default="tensors",
    show_default=True,
)
@flag("--pad-ranks", "Pad mixed ranks with zeros to the largest: the same update. Diffusers 0.31 to 0.33 needs it.")
@value("--base", "CHECKPOINT", "With --to sat: SAT checkpoint or folder of the base; a copy gets the LoRA.", type=PATH)
@flag("--lora-only", "With --to sat: write only the LoRA, without a base; SAT cannot load it alone.")
@value("--target-alpha", "N", "With --to sat: lora_alpha that SAT will use, put into the YAML. Default: 1.", type=float)
@dtype("Element type of the written tensors.")
@value("--base-model", "REPO", "Hub id of the base model to record: zai-org/CogVideoX-5b.")
@drop
@flag("--dry-run", "Say what would be written, and write nothing.")
@fetch
@flag("-f --force", "Replace an existing file.")
@value("--push repo", "USER/REPO", "Publish the result afterwards; see `loraforge push`.")
@flag("--private", "With --push: make a new repository private.")
@flag("--json json_", "Print the report as JSON (schemas/convert.schema.json).")
def convert(json_: bool, for_: Any, repo: str | None, private: bool, **options: Any) -> None:
    """Convert the adapter in SOURCE, a file, an iteration folder or a run folder.

    At strength 1.0 the written file makes the update that the source made in training. The scale comes from what
    the run recorded. If nothing recorded it and trainers differ, you are asked to state it: it is never guessed.

    \b
    Examples:
      loraforge convert runs/lora-disney-11-20-10-00 --to diffusers
      loraforge convert runs/lora-disney-11-20-10-00 --to diffusers --iteration 500 --ema
      loraforge convert mp_rank_00_model_states.pt --from sat --to diffusers --alpha 1 -o my-style.safetensors
      loraforge convert pytorch_lora_weights.safetensors --to peft --trained-by cogvideo
      loraforge convert peft-folder --to sat --base CogVideoX-2b-sat/transformer
    """
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
        _publish(report, repo, private=private)


@click.command(cls=Numeric, short_help="Say what a file is, from its headers.")
@click.argument("source", type=SOURCE)
@checkpoint
@flag("--json json_", "Print JSON (schemas/inspect.schema.json).")
@flag("--skeleton", "Print names, shapes, element types and metadata as JSON, no weights: attach it to a bug report.")
@architecture
@flag("--history", "Print the file and the commands that it was made from.")
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
    inspection = loraforge.inspect(source, from_, **options)
    show(inspection, json_, inspection.history_lines() if history else None)
    if inspection.problem:
        raise LoraforgeError(inspection.problem, *inspection.remedies)


@click.command(cls=Numeric, short_help="Compare two adapters, or a file with what its loader makes of it.")
@click.argument("a", type=SOURCE)
@click.argument("b", type=SOURCE, required=False)
@choice("--in in_", ["diffusers", "peft"], "Load A with the real library (loraforge[pipeline]) and compare its layers.")
@value(
    "--base", "DIR", "With --in: folder of the transformer's config.json. Default: made from A's shapes.", type=SOURCE
)
@stated
@drop
@flag("--json json_", "Print JSON (schemas/verify.schema.json).")
@click.pass_context
def verify(ctx: click.Context, /, a: str, b: str | None, json_: bool, **options: Any) -> None:
    """Say whether A and B make the same update, in one format or two; or what a loader makes of A.

    They are compared row by row, in float64; rounding to the coarser type, up to 1 % of a module, is no difference.
    A scale that nothing records is taken for 1.0, unless you state it: of the one that records none; where both do,
    of A. --as-in is said of A. Exit code 1 when the two differ.

    \b
    Examples:
      loraforge verify runs/lora-disney-11-20-10-00 my-style.safetensors
      loraforge verify my-style.safetensors --in diffusers
    """
    verdict = loraforge.verify(a, b, **options)
    show(verdict, json_)
    if not verdict.same:
        ctx.exit(1)


@click.command(cls=Numeric, short_help="Record the scale of training in a file's header.")
@click.argument("source", metavar="FILE", type=SOURCE)
@stated
@value("-o --out", "PATH", "File to write. Default: ./<name>-<what you state>.safetensors, printed.", type=PATH)
@flag("--in-place", "Replace FILE itself, once the new file is proved right.")
@drop
@flag("-f --force", "Replace an existing file.")
@flag("--json json_", "Print JSON (schemas/stamp.schema.json).")
def stamp(source: str, json_: bool, **options: Any) -> None:
    """Record in FILE's header the scale of its training, stated as for convert. The tensors do not change.

    Diffusers reads the entry since 0.34; other programs need the scale in the tensors: see `loraforge convert`.
    Without --alpha, an entry that FILE has is completed: Diffusers 0.34 to 0.39 fails on one without rank_pattern.

    \b
    Examples:
      loraforge stamp pytorch_lora_weights.safetensors --alpha 64 -o my-style.safetensors
      loraforge stamp pytorch_lora_weights.safetensors --in-place
    """
    show(loraforge.stamp(source, **options), json_)


@click.command(short_help="Publish an adapter on the Hugging Face Hub, with a card.")
@click.argument("source", type=SOURCE)
@click.argument("repo", metavar="USER/REPO")
@value("--base-model", "REPO", "Base model that the card names: zai-org/CogVideoX-5b.")
@value("--license", "NAME", "Licence. Default: the base model's, from its card.")
@value("--license-name", "NAME", "With --license other: its name.")
@value("--license-link", "URL", "With --license other: where to read it.")
@value("--sample", "VIDEO", "Video or picture to show. Repeatable.", type=PATH, multiple=True)
@value("--prompt", "TEXT", "Prompt of each sample, in order; without a sample, an example.", multiple=True)
@value("--trigger", "TEXT", "Words that prompts must contain.")
@flag("--private", "Make a new repository private.")
@flag("--create-pr", "Propose the change in a pull request.")
@value("--revision", "BRANCH", "Branch to commit to. Default: main.")
@value("--commit-message", "TEXT", "Default: Add or Update, and the file.")
@stated
@drop
@flag("--dry-run", "Print files, digests, card and commit; send nothing.")
@flag("--json json_", "Print the report as JSON (schemas/push.schema.json).")
def push(source: str, repo: str, json_: bool, **options: Any) -> None:
    """Publish SOURCE, an adapter or a model that `fuse` wrote, in USER/REPO: its files and a card, in one commit.

    One tensor file is sent, under the name that loaders look for, and PEFT's configuration if PEFT wrote it; of a
    fused model, what from_pretrained reads. Nothing else is sent: no checkpoints, optimizer states, tokens, links or
    paths of this machine. An existing card keeps what its owner wrote. A file that would not act as trained at
    strength 1.0 is refused. If nothing has changed, there is no commit.

    The token is the one of `hf auth login`, or HF_TOKEN.

    \b
    Examples:
      loraforge push my-style.safetensors user/my-style --dry-run
      loraforge push my-style.safetensors user/my-style --base-model zai-org/CogVideoX-5b --private
      loraforge push my-style.safetensors user/my-style --sample panda.mp4 --prompt "DISNEY a panda plays the guitar"
    """
    show(_pushed(source, repo, **options), json_)


def _pushed(source: str | Path, repo: str, **options: Any) -> Document:
    """Push, and end a refusal with the state of the repository."""
    try:
        return loraforge.push(source, repo, **options, wait=lambda why: say("note: ", why))
    except LoraforgeError as error:
        error.state = error.state or f"Nothing was sent; {repo} is as it was."
        raise


def _publish(converted: Report, repo: str, *, private: bool) -> None:
    """Push the result of a conversion; a refusal says that the file was written, and how to push it later."""
    written = Path(converted.output["path"])
    source = written.parent if converted.output["format"] == "peft" else written
    as_loaded = bool(converted.scale.program)
    try:
        show(_pushed(source, repo, private=private, as_loaded=as_loaded), json_=False)
    except LoraforgeError as error:
        error = as_commands(error, "loraforge", "push", source, repo, *(["--private"] if private else []))
        text = f"the file is written, {written}, and not published: {error.message}"
        refused = LoraforgeError(text, *error.remedies)
        refused.state = error.state
        raise refused from error
