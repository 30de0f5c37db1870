"""The commands about what there is to convert between, and how it is learned: formats, layouts, plugins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import loraforge
from loraforge.cli.console import as_json, say, show
from loraforge.cli.options import declared
from loraforge.errors import LoraforgeError
from loraforge.text import command


@declared("formats")
def formats(json_: bool) -> None:
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

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Without the architecture in the usage of its commands."""
        return [param for param in super().get_params(ctx) if ctx.command is self or param.name != "name"]


@declared("layouts", _Layouts, invoke_without_command=True)
@click.pass_context
def layouts(ctx: click.Context, name: str | None, mermaid: bool) -> None:
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
    if mermaid:
        click.echo(picture.mermaid(arch))
        return
    for columns, *cells in (picture.table(arch), picture.dropped(arch)):
        table(columns, cells)


@declared("layouts probe", within=layouts)
def probe(source: Path, out: Path, **options: Any) -> None:
    from loraforge.learning.probe import probe as write

    count = write(source, out, **options)
    line = command("loraforge", "layouts", "learn", out, "CONVERTED", "-o", "LAYOUT.toml")
    click.echo(f"{out}: {count} tensors. Run the converter on it, then: {line}")


@declared("layouts learn", within=layouts)
def learn(a: Path, b: Path, out: Path, layouts: list[tuple[str, str]], json_: bool, **options: Any) -> None:
    from loraforge.learning.learn import learn as write

    show(write(a, b, out, layouts=layouts[0], **options), json_)


@declared("layouts check", within=layouts)
def check(file: Path, pairs: tuple[Path, ...], json_: bool) -> None:
    from loraforge.learning.check import check as compare

    if len(pairs) % 2:
        raise click.UsageError("Give checkpoints in pairs: A and B.")
    show(compare(file, list(zip(pairs[::2], pairs[1::2], strict=True))), json_)


@declared("plugins", click.Group)
def plugins() -> None:
    """A group does nothing by itself."""


@declared("plugins list", within=plugins)
def plugins_list(json_: bool) -> None:
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


@declared("plugins new", within=plugins)
def plugins_new(name: str, out: Path | None) -> None:
    from loraforge.format.new_plugin import new_plugin

    folder = new_plugin(name, out)
    data = next(folder.glob("loraforge_*/*.toml"))
    click.echo(f"{folder} is ready: change the names in {data}, then")
    click.echo(f"  loraforge plugins check {data}")
    path = folder if folder.is_absolute() else f"./{folder}"  # without the dot, pip would look in an index
    click.echo(f"  pip install '{path}[test]' && pytest {path}")


@declared("plugins check", within=plugins)
def plugins_check(file: Path) -> None:
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
