"""The commands about what there is to convert between, and how it is learned: formats, layouts, plugins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import loraforge
from loraforge.cli.console import PATH, Numeric, as_json, say, show
from loraforge.cli.options import flag, value
from loraforge.errors import LoraforgeError
from loraforge.text import command


@click.command(cls=Numeric, short_help="List the adapter formats.")
@flag("--json json_", "Print JSON (schemas/formats.schema.json).")
def formats(json_: bool) -> None:
    """List the adapter formats: which can be read and written, what each can hold, and the package that adds it."""
    from loraforge.cli.screen import table
    from loraforge.format.registry import known_plugins, owners

    packages = {name: plugin.package for name, plugin in known_plugins().items()}
    rows: list[dict[str, Any]] = [
        {
            "name": name,
            "reads": True,
            "writes": form.writer is not None,
            "architectures": sorted(form.layouts),
            "holds": form.storage.text(),
            "package": packages[owners()[name]],
            "what": form.summary,
        }
        for name, form in loraforge.formats().items()
    ]
    tell_broken()
    if json_:
        click.echo(as_json(rows))
        return
    cells = [[row["name"], "yes" if row["writes"] else "no", row["holds"], row["package"], row["what"]] for row in rows]
    table(["format", "written", "holds", "package", "what"], cells)


class _Layouts(click.Group):
    """A group whose first word may be an architecture: then that is shown."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if next((word for word in args if not word.startswith("-")), "") in self.commands:
            return super().parse_args(ctx, ["", *args])  # no architecture
        ctx.allow_interspersed_args = True
        return super().parse_args(ctx, args)


class _Architecture(click.Argument):
    """An argument that the usage of the group shows as optional, and that of its commands not at all."""

    def get_usage_pieces(self, ctx: click.Context) -> list[str]:
        return [f"[{self.metavar}]"] if isinstance(ctx.command, _Layouts) else []


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


@click.group(short_help="List, check and write plugins.")
def plugins() -> None:
    """List the installed plugins, check a data file, or start a package of your own.

    \b
    Example:
      loraforge plugins list
    """


@plugins.command("list", short_help="List the plugins, and what is wrong with them.")
@flag("--json json_", "Print JSON (schemas/plugins.schema.json).")
def plugins_list(json_: bool) -> None:
    """List the plugins: what each adds, its package, and what is wrong with it.

    \b
    Example:
      loraforge plugins list
    """
    from dataclasses import asdict

    from loraforge.cli.screen import table
    from loraforge.format.registry import known_plugins

    every = known_plugins().values()
    if json_:
        click.echo(as_json([asdict(plugin) for plugin in every]))
        return
    rows = [[p.name, p.package, ", ".join(p.adds) or "nothing", "broken" if p.errors else "fine"] for p in every]
    table(["plugin", "package", "adds", "state"], rows)
    tell_broken()


@plugins.command("new", short_help="Write a ready plugin package.")
@click.argument("name")
@value("-o --out", "PATH", "Folder to write. Default: ./loraforge-NAME.", type=PATH)
def plugins_new(name: str, out: Path | None) -> None:
    """Write a package that adds the format NAME: a data file to fill in, and a conformance test that passes.

    \b
    Example:
      loraforge plugins new my-trainer
    """
    from loraforge.format.new_plugin import new_plugin

    folder = new_plugin(name, out)
    data = next(folder.glob("loraforge_*/*.toml"))
    click.echo(f"{folder} is ready: change the names in {data}, then")
    click.echo(f"  loraforge plugins check {data}")
    path = folder if folder.is_absolute() else f"./{folder}"  # without the dot, pip would look in an index
    click.echo(f"  pip install '{path}[test]' && pytest {path}")


@plugins.command("check", short_help="Find the faults of a data file.")
@click.argument("file", type=PATH)
def plugins_check(file: Path) -> None:
    """Check FILE, a TOML file that adds a format or layouts, and list the problems with their lines.

    \b
    Example:
      loraforge plugins check kohya.toml
    """
    from loraforge.names.check import check as faults

    adds, problems = faults(file)
    for problem in problems:
        click.echo(f"{file}: {problem}")
    if problems:
        count = f"{len(problems)} problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise LoraforgeError(f"{file} has {count}.", "loraforge layouts cogvideox")
    click.echo(f"{file} is sound: {', '.join(adds)}")


def tell_broken() -> None:
    from loraforge.format.registry import broken

    for plugin in broken():
        remedy = f"   # {plugin.remove}" if plugin.remove else ""
        text = f"plugin {plugin.name} ({plugin.package}): {'; '.join(plugin.errors)}{remedy}"
        say("warning: ", text, colour="yellow")
