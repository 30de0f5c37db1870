"""Makes the commands of commands.toml: help, arguments and options, each with the function that carries it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

from loraforge.cli.console import PATH, Numeric, say
from loraforge.tables import package_table

_TABLE = package_table("cli/commands")


def declared(
    name: str, kind: type[click.Command] | None = None, *, within: click.Group | None = None, **settings: Any
) -> Callable[[Callable[..., None]], Any]:
    """The decorator that makes a function the command of this name (`layouts learn`), in the group `within`."""
    entry = _TABLE[name]
    texts = {"help": entry["help"], "short_help": entry.get("short")}
    kind = kind or (Numeric if entry.get("computes") else click.Command)
    params = [click.Argument([word], **_settings(how)) for word, how in entry.get("arguments", {}).items()]
    every = [*params, *_options(entry.get("options", {}))]
    make = within.command if within else click.command
    return make(name.rpartition(" ")[2], kind, params=every, **texts, **settings)


def _options(table: Mapping[str, Any]) -> Iterator[click.Option]:
    for names, how in table.items():
        if not names.startswith("-"):
            yield from _options(_TABLE["shared"][names])
        elif isinstance(how, str):
            yield click.Option(names.split(), is_flag=True, help=how)
        else:
            yield click.Option(names.split(), **_settings(how))


def _settings(how: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an option or argument for click."""
    settings = {key: value for key, value in how.items() if key not in ("is", "one_of")}
    if "help" in settings:
        settings["help"] = settings["help"].replace("{trainers}", ", ".join(_TRAINERS))
    if "one_of" in how:
        settings["type"] = click.Choice(how["one_of"])
    return settings | _KINDS[how.get("is", "text")]


def _format(_: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """The name of a registered format; the registry is read only if one is typed."""
    if value is None:
        return None
    from loraforge.format.registry import named, renamed

    name, note = renamed(value.lower())
    if note:
        say("note: ", f"{value} is read as {name}: {note}")
    return named(value, written=param.name == "to").name


def _runtime(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Any:
    """A program that runs adapters, by name; the table is read only if one is typed."""
    if value is None:
        return None
    from loraforge.programs.table import runtime

    return runtime(value)


def _architecture(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    """The name of a known architecture; the catalog is read only if one is typed."""
    if value is None:
        return None
    from loraforge.names.catalog import architecture

    return architecture(value).name


def _strengths(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[float, ...]:
    """`0,0.5,1` as numbers."""
    try:
        return tuple(float(word) for word in value.split(",")) if value else ()
    except ValueError:
        raise click.BadParameter(f"{value!r} is no list of strengths like 0,0.5,1.", ctx, param) from None


def _pairs(ctx: click.Context, param: click.Parameter, given: str | tuple[str, ...]) -> list[tuple[str, ...]]:
    """Words in two parts, `PATTERN=reason` or `A,B`."""
    words, sep = ([given], ",") if isinstance(given, str) else (given, "=")
    pairs = [tuple(word.split(sep, 1)) for word in words]
    if any(len({*pair}) != 2 or not all(pair) for pair in pairs):
        raise click.BadParameter(f"give {param.metavar}, two words.", ctx, param)
    return pairs


_TRAINERS = sorted(name for name, entry in package_table("facts/trainers").items() if "alpha" in entry)
_KINDS: Mapping[str, dict[str, Any]] = {
    "text": {},
    "switch": {"default": None},  # one that is not given says neither yes nor no
    "path": {"type": PATH},
    "int": {"type": int},
    "float": {"type": float},
    "count": {"type": click.IntRange(min=1)},
    "rank": {"type": click.IntRange(1, 128)},
    "trainer": {"type": click.Choice(_TRAINERS)},
    "format": {"callback": _format},
    "runtime": {"callback": _runtime},
    "architecture": {"callback": _architecture},
    "strengths": {"callback": _strengths},
    "pairs": {"callback": _pairs},
}
"""What a value is -> how click reads it. A text may be an address on the Hub, whose `//` a `Path` would change."""
