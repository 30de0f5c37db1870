"""The commands about layouts: what there is, and how one is learned from two checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from loraforge.cli.console import PATH, show
from loraforge.cli.options import flag, value
from loraforge.cli.plugins import tell_broken
from loraforge.text import command


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
@flag("--adapter", "Write an adapter on the matrices, for a converter of LoRAs.")
@value("--rank", "N", "Rank of the adapter. Default: 6.", type=click.IntRange(1, 128), default=6)
@flag("-f --force", "Replace an earlier result.")
def probe(source: Path, out: Path, **options: Any) -> None:
    """Write a checkpoint with the names and shapes of A, and random rows, no two of them the same.

    A real checkpoint has equal rows: norms of 1, biases of 0. Run a converter on the probe, and learn from both files.

    \b
    Example:
      loraforge layouts probe original.safetensors -o probe.safetensors
    """
    from loraforge.learning.probe import probe as write

    count = write(source, out, **options)
    line = command("loraforge", "layouts", "learn", out, "CONVERTED", "-o", "LAYOUT.toml")
    click.echo(f"{out}: {count} tensors. Run the converter on it, then: {line}")


def _split(ctx: click.Context, param: click.Parameter, given: str | tuple[str, ...]) -> list[tuple[str, ...]]:
    """Words in two parts, `PATTERN=reason` or `A,B`."""
    words, sep = ([given], ",") if isinstance(given, str) else (given, "=")
    pairs = [tuple(word.split(sep, 1)) for word in words]
    if any(len({*pair}) != 2 or not all(pair) for pair in pairs):
        raise click.BadParameter(f"give {param.metavar}, two words.", ctx, param)
    return pairs


@layouts.command(short_help="Find the layout in which two checkpoints differ.")
@click.argument("a", type=PATH)
@click.argument("b", type=PATH)
@value("-o --out", "PATH", "File to write (.toml); a new architecture is called so.", type=PATH, required=True)
@value("--onto", "ARCHITECTURE", "Add A's layout to an architecture that knows B's names.")
@value("--names layouts", "A,B", "What to call both layouts. Default: original,diffusers.", callback=_split,
       default="original,diffusers")  # fmt: skip
@value("--drop", "PATTERN=reason", "Leave out the tensors whose name matches (* and ?). Repeatable.", multiple=True,
       callback=_split)  # fmt: skip
@flag("-f --force", "Replace an earlier result.")
@flag("--json json_", "Print JSON (schemas/learn.schema.json).")
def learn(a: Path, b: Path, out: Path, layouts: list[tuple[str, str]], json_: bool, **options: Any) -> None:
    """Compare the rows of A and B, which hold the same weights under two names, and write what goes where.

    Best of a probe (loraforge layouts probe) and what a converter made of it. Numbers decide, never names; what they
    leave open is listed and left out. The result is a file for --plugin.

    \b
    Examples:
      loraforge layouts learn probe.safetensors converted.safetensors -o mymodel.toml
      loraforge layouts learn comfy.safetensors diffusers/ --onto cogvideox --names comfy,diffusers -o comfy.toml
    """
    from loraforge.learning.learn import learn as write

    show(write(a, b, out, layouts=layouts[0], **options), json_)


@layouts.command(short_help="Try a layout on checkpoints of another size.")
@click.argument("file", type=PATH)
@click.argument("pairs", metavar="A B...", type=PATH, nargs=-1, required=True)
@flag("--json json_", "Print JSON (schemas/layout-check.schema.json).")
def check(file: Path, pairs: tuple[Path, ...], json_: bool) -> None:
    """Check that FILE moves checkpoint A to B in each bit. Of two pairs (A B A2 B2), also print the sizes they share.

    The sizes are for a table [dimensions], which refuses an adapter whose modules are not of one model.

    \b
    Example:
      loraforge layouts check mymodel.toml small.safetensors small-diffusers large.safetensors large-diffusers
    """
    from loraforge.learning.check import check as compare

    if len(pairs) % 2:
        raise click.UsageError("Give checkpoints in pairs: A and B.")
    show(compare(file, list(zip(pairs[::2], pairs[1::2], strict=True))), json_)
