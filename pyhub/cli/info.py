"""pyhub info: all about one channel."""

from __future__ import annotations

import json
import time

import click
from rich.console import Console
from rich.table import Table

from pyhub.cli.ls import as_dict, known_readers
from pyhub.cli.options import example
from pyhub.cli.outcome import ExitCode
from pyhub.cli.tap import spelled, to_json
from pyhub.monitor.survey import survey


@click.command("info", epilog=example("pyhub info cam1"))
@click.argument("channel")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
@click.pass_context
def command(ctx: click.Context, channel: str, as_json: bool) -> None:
    """Show CHANNEL's header, rate, readers and newest parameters."""
    (state,) = survey([channel])
    facts = as_dict(state, known_readers())
    if as_json:
        click.echo(json.dumps(facts | {"flex": to_json(state.flex)}, indent=2))
    else:
        table = Table(show_header=False, box=None)
        for name, value in facts.items():
            if name in ("timestamp", "created") and isinstance(value, float) and value:
                value = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value))
            table.add_row(name, str(value))
        for name, value in spelled(state.flex or {}).items():
            table.add_row(f"flex.{name}", value)
        # What a producer writes is text, and no markup of ours.
        Console(soft_wrap=True, markup=False, emoji=False).print(table)
    if state.state == "unreadable":
        ctx.exit(ExitCode.FAILED)
