"""The commands about what there is to convert between: formats, layouts, plugins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

import loraforge
from loraforge.cli.console import PATH, Numeric, as_json, say
from loraforge.cli.options import flag, value
from loraforge.errors import LoraforgeError


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
    from loraforge.names.check import check

    adds, problems = check(file)
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
