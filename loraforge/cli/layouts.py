"""The commands about layouts: what there is, and how one is learned from two checkpoints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from loraforge.cli.console import PATH
from loraforge.cli.options import flag, value
from loraforge.cli.plugins import tell_broken
from loraforge.text import command, plain


class _Layouts(click.Group):
    """A group whose first word may be an architecture: then that is shown."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if next((word for word in args if not word.startswith("-")), "") in self.commands:
            return super().parse_args(ctx, ["", *args])  # no architecture
        ctx.allow_interspersed_args = True
        return super().parse_args(ctx, args)


class _Architecture(click.Argument):
    """An argument that the usage of the group shows, and that of its commands does not."""

    def get_usage_pieces(self, ctx: click.Context) -> list[str]:
        return super().get_usage_pieces(ctx) if isinstance(ctx.command, _Layouts) else []


@click.group(
    cls=_Layouts, invoke_without_command=True, short_help="Show how the frameworks name an architecture's parameters."
)
@click.argument("name", metavar="ARCHITECTURE", required=False, cls=_Architecture)
@click.option("--mermaid", "kind", flag_value="mermaid", help="Print a Mermaid diagram.")
@click.option("--dot", "kind", flag_value="dot", help="Print a Graphviz diagram.")
@click.pass_context
def layouts(ctx: click.Context, name: str | None, kind: str | None) -> None:
    """Show the layouts of ARCHITECTURE side by side: the segments of the base model that each module holds.

    \b
    Examples:
      loraforge layouts cogvideox
      loraforge layouts cogvideox --mermaid
    """
    if ctx.invoked_subcommand:
        return
    from loraforge.cli.screen import table
    from loraforge.names import picture
    from loraforge.names.catalog import architecture, architectures

    tell_broken()
    if name is None:
        rows = [[arch.name, arch.title, ", ".join(arch.layouts)] for arch in architectures().values()]
        table(["architecture", "title", "layouts"], rows)
        return
    arch = architecture(name)
    if kind:
        click.echo({"mermaid": picture.mermaid, "dot": picture.dot}[kind](arch))
        return
    for columns, *cells in (picture.table(arch), picture.dropped(arch)):
        table(columns, cells)


@layouts.command(short_help="Write a checkpoint whose rows differ, to run a converter on.")
@click.argument("source", metavar="A", type=PATH)
@value("-o --out", "PATH", "File to write (.safetensors).", type=PATH, required=True)
@flag("-f --force", "Replace an earlier result.")
def probe(source: Path, out: Path, force: bool) -> None:
    """Write a checkpoint with the names and shapes of A, and random rows, no two of them the same.

    A real checkpoint has equal rows: norms of 1, biases of 0. Run a converter on the probe, and learn from both files.

    \b
    Example:
      loraforge layouts probe original.safetensors -o probe.safetensors
    """
    from loraforge.learning.probe import probe as write

    count = write(source, out, force=force)
    line = command("loraforge", "layouts", "learn", out, "CONVERTED", "-o", "LAYOUT.toml")
    click.echo(f"{out}: {count} tensors. Run the converter on it, then: {line}")


def _reasons(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> list[tuple[str, str]]:
    """`PATTERN=reason`, split."""
    pairs = [(pattern, reason) for pattern, _, reason in (text.partition("=") for text in values)]
    if not all(map(all, pairs)):
        raise click.BadParameter("give PATTERN=reason.", ctx, param)
    return pairs


def _names(ctx: click.Context, param: click.Parameter, text: str) -> tuple[str, str]:
    """The names of two layouts."""
    match = re.fullmatch(r"([a-z][a-z0-9-]*),(?!\1$)([a-z][a-z0-9-]*)", text)
    if not match:
        raise click.BadParameter(f"{text!r} is not two names, as original,diffusers.", ctx, param)
    return match[1], match[2]


@layouts.command(short_help="Find the layout in which two checkpoints differ.")
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@value("-o --out", "PATH", "File to write (.toml).", type=PATH, required=True)
@value("--onto", "ARCHITECTURE", "Add a layout to an architecture that knows A's or B's names.")
@value("--architecture name", "NAME", "What to call a new architecture. Default: as the file.")
@value("--names layouts", "A,B", "What to call both layouts. Default: original,diffusers.", callback=_names,
       default="original,diffusers")  # fmt: skip
@value("--drop", "PATTERN=reason", "Leave out the tensors whose name matches (* and ?). Repeatable.", multiple=True,
       callback=_reasons)  # fmt: skip
@flag("-f --force", "Replace an earlier result.")
def learn(a: Path, b: Path, out: Path, **options: Any) -> None:
    """Compare the rows of A and B, which hold the same weights under two names, and write what goes where.

    Best of a probe (loraforge layouts probe) and what a converter made of it. Numbers decide, never names; what they
    leave open is listed and left out. The result is a file for --plugin.

    \b
    Examples:
      loraforge layouts learn probe.safetensors converted.safetensors -o mymodel.toml
      loraforge layouts learn comfy.safetensors diffusers/ --onto cogvideox --names comfy,diffusers -o comfy.toml
    """
    from loraforge.learning.learn import learn as write

    click.echo("\n".join(map(plain, write(a, b, out, **options).lines())))


@layouts.command(short_help="Try a layout on checkpoints of another size.")
@click.argument("file", type=PATH)
@click.argument("pairs", metavar="A B...", type=PATH, nargs=-1, required=True)
def check(file: Path, pairs: tuple[Path, ...]) -> None:
    """Check that FILE moves checkpoint A to B in each bit. Of two pairs (A B A2 B2), also print the sizes they share.

    The sizes are for a table [dimensions], which refuses an adapter whose modules are not of one model.

    \b
    Example:
      loraforge layouts check mymodel.toml small.safetensors small-diffusers large.safetensors large-diffusers
    """
    from loraforge.learning.check import check as compare

    if len(pairs) % 2:
        raise click.UsageError("Give checkpoints in pairs: A and B.")
    click.echo("\n".join(map(plain, compare(file, list(zip(pairs[::2], pairs[1::2], strict=True))).lines())))
