"""The commands that call the library's function of the same name: they convert, compare, fuse, run and publish."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import loraforge
from loraforge.cli.console import as_json, say, show
from loraforge.cli.options import declared
from loraforge.document import Document
from loraforge.errors import LoraforgeError, as_commands

if TYPE_CHECKING:
    from loraforge.conversion.report import Report

_GO_ON = "interrupted. Type the same command again to go on; the work is in {}.partial"


@declared("convert")
def convert(json_: bool, for_: Any, repo: str | None, private: bool, **options: Any) -> None:
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


@declared("inspect")
def inspect(source: str, from_: str | None, json_: bool, skeleton: bool, history: bool, **options: Any) -> None:
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


@declared("verify")
@click.pass_context
def verify(ctx: click.Context, /, json_: bool, **options: Any) -> None:
    verdict = loraforge.verify(**options)
    show(verdict, json_)
    if not verdict.same:
        ctx.exit(1)


@declared("stamp")
def stamp(json_: bool, **options: Any) -> None:
    show(loraforge.stamp(**options), json_)


@declared("push")
def push(source: str, repo: str, json_: bool, **options: Any) -> None:
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


@declared("fuse")
def fuse(json_: bool, **options: Any) -> None:
    _with_progress(loraforge.fuse, "fusing", _GO_ON.format(options["out"]), json_, options)


@declared("convert-base")
def convert_base(json_: bool, **options: Any) -> None:
    _with_progress(loraforge.convert_base, "converting", _GO_ON.format(options["out"]), json_, options)


@declared("run")
def run(json_: bool, **options: Any) -> None:
    _with_progress(loraforge.run, "steps", "interrupted; no file was written", json_, options)


def _with_progress(
    verb: Callable[..., Document], label: str, interrupted: str, json_: bool, options: dict[str, Any]
) -> None:
    from loraforge.cli.screen import progress

    with progress(label, interrupted) as update:
        report = verb(**options, progress=update)
    show(report, json_)
