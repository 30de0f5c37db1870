"""Tables and progress bars. A module of its own, because rich takes longer to load than `--help`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import click
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from loraforge.cli.console import say
from loraforge.text import plain


@contextmanager
def progress(label: str, interrupted: str) -> Iterator[Callable[[int, int], None]]:
    """A function to call with (done, total); on a terminal it draws a bar from the first call on.

    `interrupted` is printed if the user stops the work.
    """
    bar = Progress(console=Console(stderr=True), disable=not sys.stderr.isatty())

    def update(done: int, total: int) -> None:
        if not bar.tasks:
            bar.add_task(label)
            bar.start()
        bar.update(bar.tasks[0].id, completed=done, total=total)

    try:
        yield update
    except KeyboardInterrupt:
        bar.stop()
        click.echo(err=True)
        say("note: ", interrupted)
        raise
    finally:
        bar.stop()


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with nothing cut off: one block of lines per row if the terminal is too narrow."""
    cells = [[plain(cell) for cell in row] for row in rows]
    width = sum(max(len(row[n]) for row in [columns, *cells]) + 3 for n in range(len(columns)))
    if sys.stdout.isatty() and width > Console().width:
        for name, *others in cells:
            click.secho(name, bold="NO_COLOR" not in os.environ)
            for column, cell in zip(columns[1:], others, strict=True):
                click.echo(f"  {column:<{max(map(len, columns[1:]))}}  {cell}")
        return
    grid = Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in cells:
        grid.add_row(*row)
    console = Console(width=width, markup=False, emoji=False)  # cells may be texts of plugins
    with console.capture() as captured:
        console.print(grid)
    click.echo("\n".join(line.rstrip() for line in captured.get().strip("\n").splitlines()))
