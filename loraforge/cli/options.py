"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import click

from loraforge.cli.console import PATH
from loraforge.tables import package_table


def _format(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A registered format's name; the registry is asked only when one is typed."""
    from loraforge.format.registry import formats, named

    names = [name for name, entry in formats().items() if entry.writer or param.name != "to"]
    if value is not None and any(getattr(form, "family", None) == value.lower() for form in formats().values()):
        named(value.lower(), f"--{(param.name or '').rstrip('_')}")
    if value is not None and value.lower() not in names:
        verb = "written" if param.name == "to" else "read"
        raise click.BadParameter(f"{value!r} is no format that is {verb}; there are {', '.join(names)}.", ctx, param)
    return value and value.lower()


def _runtime(ctx: click.Context, param: click.Parameter, value: str | None) -> Any:
    """A program that runs adapters, by name; the table is read only when one is typed."""
    from loraforge.programs.table import runtimes

    if value is not None and value not in runtimes():
        raise click.BadParameter(f"{value!r} is none of {', '.join(runtimes())}.", ctx, param)
    return value and runtimes()[value]


Decorator = Callable[[Any], Any]


_TRAINERS = sorted(package_table("facts/trainers"))


_STATED: tuple[Decorator, ...] = (
    click.option(
        "--alpha",
        type=float,
        metavar="N",
        help="lora_alpha the training used, where no file records it. States, never multiplies.",
    ),
    click.option(
        "--trained-scale", type=float, metavar="S", help="The scaling itself (lora_alpha / rank), instead of --alpha."
    ),
    click.option(
        "--trained-by",
        type=click.Choice(_TRAINERS),
        metavar="NAME",
        help=f"Trainer whose default scale was used: {', '.join(_TRAINERS)}.",
    ),
    click.option(
        "--training-config",
        type=PATH,
        metavar="FILE",
        help="Training configuration that records the scale (YAML, JSON, TOML, hparams.yml, launch script, "
        "adapter_config.json), where it does not lie in the folder of SOURCE's run.",
    ),
    click.option(
        "--as-in",
        metavar="PROGRAM",
        help="Not the scale of training: keep what PROGRAM does with SOURCE today (names: `loraforge doctor`'s table).",
    ),
    click.option("--as-loaded", is_flag=True, help="The same as --as-in diffusers."),
    click.option("--override-scale", is_flag=True, help="Believe the scale you state over the one recorded."),
)


def stated_scale(command: Any) -> Any:
    """The options that say at what scale an adapter was trained."""
    return reduce(lambda made, option: option(made), reversed(_STATED), command)


architecture: Decorator = click.option(
    "--architecture", metavar="NAME", help="What it is an adapter of (cogvideox), where nothing in it shows that."
)

fetch: Decorator = click.option(
    "--fetch", is_flag=True, help="Of what lies on the Hub get the tensors too, into its cache; not the header alone."
)


drop: Decorator = click.option(
    "--drop",
    multiple=True,
    metavar="PATTERN",
    help="Leave out the modules whose path matches (* and ?), and the other tensors whose name does. Repeatable.",
)


def element_type(text: str) -> Decorator:
    """`--dtype`."""
    kinds = click.Choice(["keep", "fp32", "bf16", "fp16"])
    return click.option("--dtype", type=kinds, default="keep", show_default=True, help=text)
