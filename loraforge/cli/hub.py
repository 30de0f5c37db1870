"""The command that publishes: push."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import loraforge
from loraforge.cli.console import PATH, SOURCE, say, show
from loraforge.cli.options import drop, flag, stated, value
from loraforge.document import Document
from loraforge.errors import LoraforgeError, as_commands

if TYPE_CHECKING:
    from loraforge.conversion.report import Report


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


def publish(converted: Report, repo: str, *, private: bool) -> None:
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
