"""`loraforge doctor`: what is wrong with an adapter."""

from __future__ import annotations

from typing import Any

import click

import loraforge
from loraforge.cli.console import show
from loraforge.cli.explain import typed_log
from loraforge.cli.options import declared
from loraforge.text import listed, short_fraction


@declared("doctor")
@click.pass_context
def doctor(ctx: click.Context, /, source: str, json_: bool, **options: Any) -> None:
    if options["error"] is not None:
        options["error"] = typed_log(options["error"])
    diagnosis = loraforge.doctor(source, **options)
    show(diagnosis, json_)
    if diagnosis.outlooks and not json_:
        from loraforge.cli.screen import table

        rows = [
            [
                o.runtime,
                "stops" if o.raises else f"{o.applied}/{o.modules}",
                ", ".join(short_fraction(scale) for scale in o.scalings),
                ", ".join(f"{ratio:.4g}" for ratio in o.ratios),
                o.raises or o.otherwise or listed(list(o.lost), 4),
                o.mark,
            ]
            for o in diagnosis.outlooks
        ]
        table(["runtime", "modules", "scale", "x trained", "passes over, or stops at", "known by"], rows)
    if not diagnosis.healthy:
        ctx.exit(1)
