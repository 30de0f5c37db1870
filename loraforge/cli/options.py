"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import click

from loraforge.cli.console import PATH, say
from loraforge.tables import package_table

Decorator = Callable[[Any], Any]


def flag(names: str, text: str) -> Decorator:
    """An option without a value. `names`: `-f --force`, or with the parameter it becomes, `--json json_`."""
    return click.option(*names.split(), is_flag=True, help=text)


def value(names: str, metavar: str, text: str, **settings: Any) -> Decorator:
    """An option with a value, which the help calls `metavar`."""
    return click.option(*names.split(), metavar=metavar, help=text, **settings)


def choice(names: str, words: Sequence[str], text: str, **settings: Any) -> Decorator:
    """An option whose value is one of these words."""
    return click.option(*names.split(), type=click.Choice(words), help=text, **settings)


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


def _together(*options: Decorator) -> Decorator:
    """The options as one decorator; they keep their order in `--help`."""
    return lambda command: reduce(lambda made, option: option(made), reversed(options), command)


_TRAINERS = sorted(name for name, entry in package_table("facts/trainers").items() if "alpha" in entry)
_NAMES = ", ".join(_TRAINERS)
architecture = value(
    "--architecture", "NAME", "Model architecture (flux, wan, ...), if the file shows none.", callback=_architecture
)
stated = _together(
    value("--alpha", "N", "lora_alpha used in training, if no file records it. States, never multiplies.", type=float),
    value("--trained-scale", "S", "The scaling itself (lora_alpha / rank), instead of --alpha.", type=float),
    choice("--trained-by", _TRAINERS, f"Trainer whose default scale was used: {_NAMES}.", metavar="NAME"),
    value(
        "--training-config",
        "FILE",
        "Training configuration that records the scale (YAML, JSON, TOML, hparams.yml, launch script, "
        "adapter_config.json), if it is not in the folder of SOURCE's run.",
        type=PATH,
    ),
    value(
        "--as-in", "PROGRAM", "Keep what PROGRAM (see `loraforge doctor`) does with SOURCE, not the scale of training."
    ),
    flag("--as-loaded", "The same as --as-in diffusers."),
    flag("--override-scale", "Use the scale you state, not the one that is recorded."),
    architecture,
)
"""What the user can state about the training if no file records it."""
fetch = flag("--fetch", "Download the tensors of a Hub file too, into the Hub's cache. Default: the header only.")
checkpoint = _together(
    value("--from from_", "FORMAT", "Format of SOURCE. Default: detected from its content.", callback=_format),
    value("--iteration", "N", "Checkpoint to take from a run. Default: the one that `latest` names.", type=int),
    flag("--ema", "Take the averaged weights (N-ema) instead of the plain ones."),
)
target = _together(
    value("--to", "FORMAT", "Format to write; see `loraforge formats`.", callback=_format),
    value("--for for_", "RUNTIME", "Program to write for, instead of --to; see `loraforge doctor`.", callback=_runtime),
)
drop = value(
    "--drop", "PATTERN", "Leave out modules and tensors whose name matches (* and ?). Repeatable.", multiple=True
)


def dtype(text: str) -> Decorator:
    """`--dtype`."""
    return choice("--dtype", ["keep", "fp32", "bf16", "fp16"], text, default="keep", show_default=True)
