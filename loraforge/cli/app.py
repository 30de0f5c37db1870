"""The command line: each command is a thin call of the library function of the same name."""

from __future__ import annotations

from pathlib import Path

import click

import loraforge
from loraforge.cli.console import Cli
from loraforge.cli.doctor import doctor
from loraforge.cli.explain import explain
from loraforge.cli.options import declared
from loraforge.cli.plugins import formats, layouts, plugins
from loraforge.cli.verbs import convert, convert_base, fuse, inspect, push, run, stamp, verify

SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda token: token.replace("_", "-"),
    "max_content_width": 110,
}


@declared("loraforge", Cli, context_settings=SETTINGS)
@click.version_option(loraforge.__version__, "-V", "--version", prog_name="loraforge")
def main(plugins_: tuple[Path, ...]) -> None:
    for path in plugins_:
        loraforge.use_plugin(path)


_VERBS = (convert, inspect, verify, stamp, doctor, explain, fuse, convert_base, push, run, formats, layouts, plugins)
for verb in _VERBS:
    main.add_command(verb)
