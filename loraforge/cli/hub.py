"""The command that publishes: push."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import loraforge
from loraforge.cli.console import PATH, SOURCE, say, show
from loraforge.cli.options import architecture, drop, stated_scale
from loraforge.errors import LoraforgeError, as_commands

if TYPE_CHECKING:
    from loraforge.conversion.report import Report
    from loraforge.publishing.push import PushReport


@click.command(short_help="Publish an adapter on the Hugging Face Hub, with a card.")
@click.argument("source", type=SOURCE)
@click.argument("repo", metavar="USER/REPO")
@click.option("--base-model", metavar="REPO", help="Base model the card names: zai-org/CogVideoX-5b.")
@click.option("--license", metavar="NAME", help="Licence. Default: the base model's, from its card.")
@click.option("--license-name", metavar="NAME", help="With --license other: what it is called.")
@click.option("--license-link", metavar="URL", help="With --license other: where it can be read.")
@click.option("--sample", type=PATH, multiple=True, metavar="VIDEO", help="Video or picture to show. Repeatable.")
@click.option(
    "--prompt",
    multiple=True,
    metavar="TEXT",
    help="What a sample was made with, in their order; without one, an example.",
)
@click.option("--trigger", metavar="TEXT", help="Words that prompts must have in them.")
@click.option("--private", is_flag=True, help="If the repository is new: for you alone.")
@click.option("--create-pr", is_flag=True, help="Propose the change in a pull request.")
@click.option("--revision", metavar="BRANCH", help="Branch to commit to. Default: main.")
@click.option("--commit-message", metavar="TEXT", help="Default: Add or Update, and the file.")
@stated_scale
@architecture
@drop
@click.option("--dry-run", is_flag=True, help="Print files, digests, card and commit; send nothing.")
@click.option("--json", "json_", is_flag=True, help="Print the report as JSON (schemas/push.schema.json).")
def push(source: str, repo: str, json_: bool, **options: Any) -> None:
    """Publish SOURCE, an adapter or a model that `fuse` wrote, in USER/REPO: its files and a card, in one commit.

    One tensor file leaves, under the name loaders look for, with PEFT's configuration where it is PEFT's; of a
    fused model what from_pretrained reads. Nothing that lies beside it leaves: no checkpoints, optimizer states,
    tokens, links or paths of this machine. A card that is there keeps what its owner wrote. A file that would not act
    as trained at strength 1.0 is refused. Without a change there is no commit.

    The token is the one of `hf auth login`, or HF_TOKEN.

    \b
    Examples:
      loraforge push my-style.safetensors user/my-style --dry-run
      loraforge push my-style.safetensors user/my-style --base-model zai-org/CogVideoX-5b --private
      loraforge push my-style.safetensors user/my-style --sample panda.mp4 --prompt "DISNEY a panda plays the guitar"
    """
    show(_pushed(source, repo, **options), json_)


def _pushed(source: str | Path, repo: str, **options: Any) -> PushReport:
    """The push; what it refuses says in its last line how it left the repository."""
    try:
        return loraforge.push(source, repo, **options, wait=lambda why: say("note: ", why))
    except LoraforgeError as error:
        error.state = error.state or f"Nothing was sent; {repo} is as it was."
        raise


def publish(converted: Report, repo: str, *, private: bool) -> None:
    """Push what a conversion wrote; of a refusal say that the file is there, and how to push it later."""
    written = Path(converted.output["path"])
    source = written.parent if converted.output["format"] == "peft" else written
    as_loaded = bool(converted.scale.program)
    try:
        show(_pushed(source, repo, private=private, as_loaded=as_loaded), json_=False)
    except LoraforgeError as error:
        words = ["--private"] if private else []
        more = as_commands(error, "loraforge", "push", source, repo, *words).remedies
        refused = LoraforgeError(f"the file is written, {written}, and not published: {error.message}", *more)
        refused.state = error.state
        raise refused from error
